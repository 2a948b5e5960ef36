//! Holds of a follower: the facts of the blocks that a lookup found. They keep nothing in the
//! folder, which belongs to another process.

use kvtile_blocks::BlockKey;
use kvtile_layout::broken;

use super::index::FoundBlock;
use crate::tier::TierHold;

/// The parent and the tenant of each block.
#[derive(Debug)]
pub(super) struct FollowerHold(Vec<(Option<BlockKey>, u32)>);

impl FollowerHold {
    /// The hold of these blocks; `None` if there are none.
    pub(super) fn of(found: impl Iterator<Item = FoundBlock>) -> Option<Box<dyn TierHold>> {
        let blocks: Vec<_> = found.map(|block| (block.parent, block.tenant)).collect();
        match blocks.is_empty() {
            true => None,
            false => Some(Box::new(FollowerHold(blocks))),
        }
    }

    fn block(&self, index: usize) -> (Option<BlockKey>, u32) {
        match self.0.get(index) {
            Some(block) => *block,
            None => broken(format_args!("block {index} of {}", self.0.len())),
        }
    }
}

impl TierHold for FollowerHold {
    fn blocks(&self) -> usize {
        self.0.len()
    }

    fn parent(&self, index: usize) -> Option<BlockKey> {
        self.block(index).0
    }

    fn tenant(&self, index: usize) -> u32 {
        self.block(index).1
    }

    fn split_off(&mut self, at: usize) -> Box<dyn TierHold> {
        Box::new(FollowerHold(self.0.split_off(at)))
    }
}
