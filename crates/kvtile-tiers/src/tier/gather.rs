//! Batches whose blocks complete in parts, on any threads. Every batch completes exactly once, also
//! if a part is dropped.

use std::{ops::Range, sync::Arc, time::Duration};

use kvtile_transfer::completion::{Completer, Completion};
use parking_lot::{Mutex, MutexGuard};

/// Collects the outcomes of a batch from its parts.
pub struct OutcomeGather<O, R> {
    state: Mutex<GatherState<O>>,
    completer: Completer<R>,
    /// The outcome of a block whose part was dropped without one.
    lost: fn() -> O,
    report: fn(Vec<O>, Duration) -> R,
}

struct GatherState<O> {
    /// One entry for each block of the batch.
    outcomes: Vec<Option<O>>,
    /// Number of blocks without an outcome.
    left: usize,
    elapsed: Duration,
}

/// Consecutive blocks of a batch. Dropping a part gives its blocks the outcome `lost`.
pub struct BatchPart<O, R: Clone> {
    gather: Arc<OutcomeGather<O, R>>,
    blocks: Range<usize>,
}

impl<O, R: Clone> OutcomeGather<O, R> {
    /// Begins a batch of `blocks` blocks. `report` builds the result from the outcomes and the
    /// longest time of a part. `lost` is the outcome of blocks whose part is dropped without
    /// outcomes.
    pub fn begin(
        blocks: usize,
        lost: fn() -> O,
        report: fn(Vec<O>, Duration) -> R,
    ) -> (Completion<R>, BatchPart<O, R>) {
        let completer = Completer::new(0, 0);
        let completion = completer.completion();
        let gather = Arc::new(OutcomeGather {
            state: Mutex::new(GatherState {
                outcomes: (0..blocks).map(|_| None).collect(),
                left: blocks,
                elapsed: Duration::ZERO,
            }),
            completer,
            lost,
            report,
        });
        if blocks == 0 {
            gather.completer.finish(report(Vec::new(), Duration::ZERO));
        }
        let blocks = 0..blocks;
        (completion, BatchPart { gather, blocks })
    }

    fn lock(&self) -> MutexGuard<'_, GatherState<O>> {
        self.state.lock()
    }

    fn set(&self, blocks: Range<usize>, mut outcome: impl FnMut() -> O, elapsed: Duration) {
        let mut state = self.lock();
        state.elapsed = state.elapsed.max(elapsed);
        let mut set = 0;
        for one in state
            .outcomes
            .iter_mut()
            .take(blocks.end)
            .skip(blocks.start)
        {
            if one.is_none() {
                *one = Some(outcome());
                set += 1;
            }
        }
        state.left -= set;
        if state.left > 0 || set == 0 {
            return;
        }
        let outcomes: Vec<O> = state.outcomes.drain(..).flatten().collect();
        let elapsed = state.elapsed;
        drop(state);
        self.completer.finish((self.report)(outcomes, elapsed));
    }
}

impl<O, R: Clone> BatchPart<O, R> {
    /// The indices of its blocks in the batch.
    #[must_use]
    pub fn blocks(&self) -> Range<usize> {
        self.blocks.clone()
    }

    /// Splits off the blocks after the first `blocks`.
    #[must_use]
    pub fn split_off(&mut self, blocks: usize) -> BatchPart<O, R> {
        let middle = self
            .blocks
            .start
            .saturating_add(blocks)
            .min(self.blocks.end);
        let rest = middle..self.blocks.end;
        self.blocks.end = middle;
        BatchPart {
            gather: Arc::clone(&self.gather),
            blocks: rest,
        }
    }

    /// Completes the blocks with their outcomes. The caller must drop the host memory of the blocks
    /// first.
    ///
    /// # Panics
    /// If the numbers of outcomes and blocks differ.
    pub fn end(self, outcomes: Vec<O>, elapsed: Duration) {
        let blocks = self.blocks();
        assert_eq!(
            outcomes.len(),
            blocks.len(),
            "outcomes of blocks {blocks:?}"
        );
        let mut outcomes = outcomes.into_iter();
        let lost = self.gather.lost;
        self.gather
            .set(blocks, || outcomes.next().unwrap_or_else(lost), elapsed);
    }
}

impl<O, R: Clone> Drop for BatchPart<O, R> {
    fn drop(&mut self) {
        let gather = &self.gather;
        gather.set(self.blocks(), gather.lost, Duration::ZERO);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(blocks: usize) -> (Completion<Vec<u32>>, BatchPart<u32, Vec<u32>>) {
        OutcomeGather::begin(blocks, || 9, |outcomes, _| outcomes)
    }

    #[test]
    fn a_batch_ends_once_with_an_outcome_for_each_block_in_their_order() {
        let (completion, mut first) = begin(5);
        let mut second = first.split_off(2);
        let third = second.split_off(2);
        assert_eq!(third.blocks(), 4..5);
        third.end(vec![4], Duration::ZERO);
        first.end(vec![0, 1], Duration::ZERO);
        assert!(!completion.is_complete());
        // Dropped without outcomes.
        drop(second);
        assert_eq!(completion.try_result(), Some(vec![0, 1, 9, 9, 4]));
    }

    #[test]
    fn an_empty_batch_has_ended() {
        let (completion, part) = begin(0);
        assert_eq!(completion.try_result(), Some(vec![]));
        part.end(vec![], Duration::ZERO);
        let (completion, part) = begin(1);
        drop(part);
        assert_eq!(completion.try_result(), Some(vec![9]));
    }
}
