//! Holds that pin nothing.

use kvtile_blocks::BlockKey;
use kvtile_layout::broken;

use super::TierHold;

/// The hold of a tier that other caches or processes write too: it knows the blocks that a lookup
/// found, and keeps none of them from being evicted. The read decides.
#[derive(Debug)]
pub struct PromisedHold(Vec<(Option<BlockKey>, u32)>);

impl PromisedHold {
    /// The hold of blocks with these parents and tenants; `None` if there are none.
    pub fn of(found: impl Iterator<Item = (Option<BlockKey>, u32)>) -> Option<Box<dyn TierHold>> {
        let blocks: Vec<_> = found.collect();
        match blocks.is_empty() {
            true => None,
            false => Some(Box::new(PromisedHold(blocks))),
        }
    }

    fn block(&self, index: usize) -> (Option<BlockKey>, u32) {
        match self.0.get(index) {
            Some(block) => *block,
            None => broken(format_args!("block {index} of {}", self.0.len())),
        }
    }
}

impl TierHold for PromisedHold {
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
        Box::new(PromisedHold(self.0.split_off(at)))
    }
}
