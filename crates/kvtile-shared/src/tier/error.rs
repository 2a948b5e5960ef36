//! The errors of a shared tier.

use kvtile_blocks::events::TierId;
use kvtile_layout::LayoutError;
use kvtile_tiers::TierError;

use crate::{
    bundle::BUNDLE_BLOCKS_MAX,
    store::{InvalidValueName, SharedStoreError},
};

/// Why a shared tier cannot be opened, or did not do a thing.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SharedTierError {
    /// The store failed.
    #[error("the store {store}: {source}")]
    Store {
        /// The store.
        store: String,
        /// Its error.
        source: SharedStoreError,
    },
    /// The store failed several times, or was late, and is left alone for a time.
    #[error("the {tier} tier leaves its store alone after failures; it tries again by itself")]
    Paused {
        /// The tier.
        tier: TierId,
    },
    /// A prefix that cannot begin the names of values.
    #[error("the prefix of a shared tier: {0}")]
    Prefix(#[from] InvalidValueName),
    /// A bundle size out of range.
    #[error("a bundle of {blocks} blocks; set 1 to {BUNDLE_BLOCKS_MAX}, or leave it to the store")]
    BundleBlocks {
        /// The number that was set.
        blocks: u32,
    },
    /// The name of a group cannot be a part of the names of its values.
    #[error("the group {group:?} cannot be a part of the names of its values: {source}")]
    GroupName {
        /// The name of the group.
        group: String,
        /// Why it cannot.
        source: LayoutError,
    },
    /// Staging memory that is smaller than a bundle.
    #[error(
        "staging memory of {staging_bytes} bytes holds no bundle of {bundle_bytes} bytes; raise \
         staging_bytes, or lower bundle_blocks"
    )]
    Staging {
        /// The bytes that were set.
        staging_bytes: u64,
        /// Bytes of a bundle.
        bundle_bytes: u64,
    },
}

impl From<SharedTierError> for TierError {
    fn from(error: SharedTierError) -> TierError {
        TierError::outside(error)
    }
}
