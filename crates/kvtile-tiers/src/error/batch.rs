//! A batch that does not fit its tier, or a tier that breaks its contract.

use kvtile_blocks::{BlockKey, events::TierId};
use thiserror::Error;

/// A batch that does not fit its tier, or a tier that breaks its contract.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum BatchError {
    /// The bytes of a loaded block differ from those that were stored.
    #[error("block {key} came back with other bytes than it was stored with")]
    WrongBytes {
        /// The key of the block.
        key: BlockKey,
    },
    /// A lease for a [`HostBlock`](crate::tier::HostBlock) that does not cover exactly one block.
    #[error("a lease of {blocks} blocks was given for one block")]
    NotOneBlock {
        /// Blocks of the lease.
        blocks: usize,
    },
    /// A group that the tier does not store.
    #[error("the {tier} tier has no group {group}")]
    NoSuchGroup {
        /// The tier.
        tier: TierId,
        /// The group.
        group: u32,
    },
    /// A tier broke its contract: a bug of its implementation.
    #[error("the {tier} tier {what}; this is a defect of the tier")]
    TierBroken {
        /// The tier.
        tier: TierId,
        /// What it did wrong.
        what: &'static str,
    },
}
