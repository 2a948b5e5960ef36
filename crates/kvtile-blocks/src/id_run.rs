//! Blocks with consecutive ids, as one item. As a rule, blocks of a chain that were allocated
//! together have consecutive ids, in either direction. Comparing a list with such a run costs a
//! fraction of a nanosecond per block, a branch for each block several times as much.

use crate::BlockId;

/// Ids compared as one step.
const STEP: usize = 16;

/// Blocks `first`, `first` + 1, … or `first`, `first` - 1, ….
#[derive(Clone, Copy, Debug)]
pub(crate) struct IdRun {
    first: u32,
    len: u32,
    down: bool,
}

impl IdRun {
    /// The runs of a list, in order, each as long as possible.
    pub(crate) fn split(blocks: &[BlockId]) -> impl Iterator<Item = IdRun> + '_ {
        let mut rest = blocks;
        std::iter::from_fn(move || {
            let run = IdRun::leading(rest)?;
            rest = rest.get(run.len()..).unwrap_or(&[]);
            Some(run)
        })
    }

    /// The longest run at the start of a list.
    fn leading(blocks: &[BlockId]) -> Option<IdRun> {
        let (&BlockId(first), rest) = blocks.split_first()?;
        let second = rest.first().map(|second| second.0);
        let down = second.is_some() && second == first.checked_sub(1);
        let up = second.is_some() && second == first.checked_add(1);
        if !up && !down {
            let len = 1;
            return Some(IdRun { first, len, down });
        }
        // So many ids there are in this direction.
        let most = if down { first } else { u32::MAX - first };
        let step = if down { u32::MAX } else { 1 };
        let pairs = rest.len().min(most as usize);
        let (after, before) = (rest.split_at(pairs).0, blocks.split_at(pairs).0);
        let follows = |(after, before): (&BlockId, &BlockId)| after.0.wrapping_sub(before.0);
        let mut found = 0;
        let chunks = after.as_chunks::<STEP>().0.iter();
        for (after, before) in chunks.zip(before.as_chunks::<STEP>().0) {
            let steps = after.iter().zip(before).map(follows);
            if steps.fold(0, |found, other| found | (other ^ step)) != 0 {
                break;
            }
            found += STEP;
        }
        let left = after.iter().zip(before).skip(found);
        found += left.map(follows).take_while(|&other| other == step).count();
        let len = 1 + u32::try_from(found).unwrap_or(0);
        Some(IdRun { first, len, down })
    }

    /// The number of blocks.
    pub(crate) fn len(self) -> usize {
        self.len as usize
    }

    /// The lowest id.
    pub(crate) fn lowest(self) -> BlockId {
        BlockId(if self.down {
            self.first - (self.len - 1)
        } else {
            self.first
        })
    }

    /// Appends the blocks in their order.
    pub(crate) fn append_to(self, blocks: &mut Vec<BlockId>) {
        let BlockId(lowest) = self.lowest();
        let ids = lowest..=lowest + (self.len - 1);
        if self.down {
            blocks.extend(ids.rev().map(BlockId));
        } else {
            blocks.extend(ids.map(BlockId));
        }
    }
}

#[cfg(test)]
mod tests {
    use kvtile_random::SplitMix64;

    use super::*;

    /// The runs, found block by block.
    fn one_by_one(blocks: &[u32]) -> Vec<Vec<u32>> {
        let mut runs: Vec<Vec<u32>> = Vec::new();
        for &block in blocks {
            let extends = runs.last().is_some_and(|run| match run[..] {
                [first] => block.abs_diff(first) == 1,
                [first, second, ..] => {
                    let last = i64::from(run[run.len() - 1]);
                    i64::from(block) - last == i64::from(second) - i64::from(first)
                }
                [] => false,
            });
            match runs.last_mut().filter(|_| extends) {
                Some(run) => run.push(block),
                None => runs.push(vec![block]),
            }
        }
        runs
    }

    #[test]
    fn runs_equal_those_found_block_by_block() {
        let mut random = SplitMix64::new(3);
        for round in 0..2_000 {
            let mut list: Vec<u32> = Vec::new();
            for _ in 0..random.below(6) {
                let start = u32::try_from(random.below(70)).unwrap();
                let len = u32::try_from(random.below(60)).unwrap();
                match random.below(3) {
                    0 => list.extend(start..start + len),
                    1 => list.extend((start..start + len).rev()),
                    _ => list.extend([start, start]),
                }
            }
            if round % 4 == 0 {
                list.extend([0, 1, u32::MAX - 1, u32::MAX, 0]);
            }
            let blocks: Vec<BlockId> = list.iter().copied().map(BlockId).collect();
            let found: Vec<Vec<u32>> = IdRun::split(&blocks)
                .map(|run| {
                    let mut ids = Vec::new();
                    run.append_to(&mut ids);
                    let lowest = ids.iter().min().copied();
                    assert_eq!((ids.len(), lowest), (run.len(), Some(run.lowest())));
                    ids.into_iter().map(|block| block.0).collect()
                })
                .collect();
            assert_eq!(found, one_by_one(&list), "{list:?}");
        }
    }
}
