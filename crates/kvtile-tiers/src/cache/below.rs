//! The tiers below a cache's host memory. A cache has one group of blocks.

use kvtile_blocks::BlockKey;

use crate::{
    below::TendedTier,
    tier::{BlockName, GroupId, TierHold},
};

/// The group of a cache's blocks. There is one.
pub(super) const GROUP: GroupId = GroupId(0);

/// A tier of a cache, below host memory. Its spill list names host blocks by their keys.
pub(super) type CacheTier = TendedTier<BlockKey>;

impl CacheTier {
    /// Whether it has the block.
    pub(super) fn has(&self, key: &BlockKey) -> bool {
        self.tier.has(GROUP, key)
    }

    /// Pins the leading blocks of `keys` that it has, without counting a use for its policy.
    pub(super) fn hold(&self, keys: &[BlockKey]) -> Option<Box<dyn TierHold>> {
        self.tier.hold(GROUP, keys)
    }

    /// Pins one block.
    pub(super) fn hold_one(&self, key: &BlockKey) -> Option<Box<dyn TierHold>> {
        self.hold(std::slice::from_ref(key))
    }
}

/// The name of a cache's block in a tier.
pub(super) fn name(key: BlockKey) -> BlockName {
    BlockName { group: GROUP, key }
}
