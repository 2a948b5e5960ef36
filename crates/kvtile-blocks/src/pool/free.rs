//! The free list: a stack of blocks. Blocks that were never used are a range, so the list of a new
//! pool takes no memory, and that of a full one little.

use crate::BlockId;
use std::ops::Range;

/// A shorter list keeps its memory.
const KEPT: usize = 1_024;

/// The free blocks. The stack is the range of unused blocks, the lowest id nearest to the top, with
/// the list above it.
#[derive(Debug, Default)]
pub(super) struct FreeBlocks {
    unused: Range<u32>,
    list: Vec<BlockId>,
}

impl FreeBlocks {
    /// The blocks `0..blocks`.
    pub(super) fn new(blocks: u32) -> FreeBlocks {
        FreeBlocks {
            unused: 0..blocks,
            list: Vec::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.unused.len() + self.list.len()
    }

    /// Moves the `count` topmost blocks to `ids`, the topmost last. Returns false, and moves none,
    /// if there are fewer.
    pub(super) fn take(&mut self, count: usize, ids: &mut Vec<BlockId>) -> bool {
        let fits = count <= self.len();
        if fits {
            self.take_up_to(count, ids);
        }
        fits
    }

    /// Moves the `count` topmost blocks to `ids`, or all if there are fewer.
    pub(super) fn take_up_to(&mut self, count: usize, ids: &mut Vec<BlockId>) {
        let listed = count.min(self.list.len());
        let unused = (count - listed).min(self.unused.len());
        ids.extend(self.unused.by_ref().take(unused).map(BlockId));
        let first = ids.len() - unused;
        ids.split_at_mut(first).1.reverse();
        ids.extend(self.list.drain(self.list.len() - listed..));
        // A pool that was cleared and filled again has no need of a long list.
        if self.list.capacity() > KEPT && self.list.len() < self.list.capacity() / 8 {
            self.list.shrink_to(KEPT.max(2 * self.list.len()));
        }
    }

    /// Puts blocks on top.
    pub(super) fn extend(&mut self, ids: &[BlockId]) {
        self.list.extend_from_slice(ids);
    }

    /// Puts other free blocks below these.
    pub(super) fn put_below(&mut self, mut other: FreeBlocks) {
        other.list.extend(self.unused.by_ref().rev().map(BlockId));
        other.list.append(&mut self.list);
        *self = other;
    }

    /// Removes the blocks for which `taken` holds.
    pub(super) fn remove(&mut self, taken: impl Fn(BlockId) -> bool) {
        self.list.retain(|&id| !taken(id));
        let last = self.unused.clone().rev().find(|&id| taken(BlockId(id)));
        let Some(last) = last else { return };
        let mut below: Vec<BlockId> = (self.unused.start..last)
            .rev()
            .map(BlockId)
            .filter(|&id| !taken(id))
            .collect();
        self.unused.start = last + 1;
        below.append(&mut self.list);
        self.list = below;
    }

    /// All free blocks, from the bottom to the top.
    pub(super) fn iter(&self) -> impl Iterator<Item = BlockId> + '_ {
        let unused = self.unused.clone().rev().map(BlockId);
        unused.chain(self.list.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvtile_random::SplitMix64;

    /// The same operations on a plain stack.
    #[test]
    fn the_list_is_a_stack_whose_lowest_ids_are_on_top_at_first() {
        for seed in 0..200 {
            println!("seed {seed}");
            let mut random = SplitMix64::new(seed);
            let mut free = FreeBlocks::new(60);
            let mut stack: Vec<BlockId> = (0..60).rev().map(BlockId).collect();
            let mut held: Vec<BlockId> = Vec::new();
            for _ in 0..100 {
                match random.index(4) {
                    0 => {
                        let back = held.split_off(random.index(held.len() + 1));
                        free.extend(&back);
                        stack.extend(back);
                    }
                    1 => {
                        let one = stack.get(random.index(stack.len() + 1)).copied();
                        free.remove(|id| Some(id) == one);
                        stack.retain(|&id| Some(id) != one);
                        held.extend(one);
                    }
                    2 if random.index(4) == 0 => {
                        let below = std::mem::take(&mut free);
                        let back = held.split_off(held.len() / 2);
                        free.extend(&back);
                        free.put_below(below);
                        stack.extend(back);
                    }
                    _ => {
                        let count = random.index(20);
                        let mut ids = Vec::new();
                        let fits = free.take(count, &mut ids);
                        assert_eq!(fits, count <= stack.len());
                        if !fits {
                            free.take_up_to(count, &mut ids);
                        }
                        let rest = stack.len().saturating_sub(count);
                        let expected = stack.split_off(rest);
                        assert_eq!(ids, expected);
                        held.extend(ids);
                    }
                }
                assert_eq!(free.iter().collect::<Vec<_>>(), stack);
                assert_eq!(free.len(), stack.len());
            }
        }
    }
}
