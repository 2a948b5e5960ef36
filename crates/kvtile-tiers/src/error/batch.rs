//! A batch that does not fit its tier, or a tier that breaks its contract.

use std::sync::Arc;

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
    /// Ends of pieces that do not describe a valid cut of a block.
    #[error(
        "a block cannot be cut into pieces that end at {ends:?}; give 1 to {most} ends that ascend"
    )]
    Pieces {
        /// The ends that were given, in bytes.
        ends: Arc<[u64]>,
        /// The largest number of pieces of a block.
        most: usize,
    },
}
