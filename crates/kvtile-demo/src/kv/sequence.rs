//! A sequence: the blocks of its tokens, in order, and their number.

use std::collections::BTreeSet;

use super::order::HeadRun;
use crate::DemoError;

/// The block table of one sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    block_ids: Vec<usize>,
    tokens: usize,
}

impl Sequence {
    /// An empty sequence whose token `t` will be in slot `t % page_size` of block
    /// `block_ids[t / page_size]`.
    ///
    /// # Errors
    /// [`DemoError::KvBlockRepeated`] when a block occurs twice.
    pub fn new(block_ids: Vec<usize>) -> Result<Self, DemoError> {
        let mut seen = BTreeSet::new();
        if let Some(block) = block_ids.iter().find(|block| !seen.insert(**block)) {
            return Err(DemoError::KvBlockRepeated { block: *block });
        }
        Ok(Self {
            block_ids,
            tokens: 0,
        })
    }

    /// A sequence whose first `tokens` tokens are in the blocks already: loaded, or shared with
    /// another sequence. The caller guarantees their contents.
    ///
    /// # Errors
    /// As [`Sequence::new`], and [`DemoError::TooManyTokens`] when the blocks of
    /// `page_size` tokens do not hold that many.
    pub fn resume(
        block_ids: Vec<usize>,
        tokens: usize,
        page_size: usize,
    ) -> Result<Self, DemoError> {
        let mut sequence = Self::new(block_ids)?;
        sequence.check_room(tokens, page_size)?;
        sequence.tokens = tokens;
        Ok(sequence)
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.tokens
    }

    /// Whether there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.tokens == 0
    }

    /// The blocks, in the order of the tokens.
    pub fn block_ids(&self) -> &[usize] {
        &self.block_ids
    }

    /// Removes all tokens from `tokens` on.
    pub fn truncate(&mut self, tokens: usize) {
        self.tokens = self.tokens.min(tokens);
    }

    pub(crate) fn advance(&mut self, tokens: usize) {
        self.tokens += tokens;
    }

    pub(crate) fn check_room(&self, tokens: usize, page_size: usize) -> Result<(), DemoError> {
        let limit = self.block_ids.len().saturating_mul(page_size);
        if tokens > limit {
            return Err(DemoError::TooManyTokens {
                tokens,
                limit,
                what: "blocks",
            });
        }
        Ok(())
    }

    /// Positions `start..end`, split at block boundaries.
    pub(crate) fn runs(
        &self,
        page_size: usize,
        start: usize,
        end: usize,
    ) -> impl Iterator<Item = SlotRun> + '_ {
        let page_size = page_size.max(1);
        let first = start / page_size;
        self.block_ids
            .iter()
            .enumerate()
            .skip(first)
            .map_while(move |(index, block)| {
                let from = start.max(index * page_size);
                let to = end.min((index + 1) * page_size);
                (from < to).then(|| SlotRun {
                    block: *block,
                    slot: from % page_size,
                    position: from,
                    count: to - from,
                })
            })
    }
}

/// Consecutive tokens inside one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SlotRun {
    /// The block.
    pub(crate) block: usize,
    /// Slot of the first token inside the block.
    pub(crate) slot: usize,
    /// Position of the first token inside the sequence.
    pub(crate) position: usize,
    /// Number of tokens.
    pub(crate) count: usize,
}

impl SlotRun {
    /// The run inside one head.
    pub(crate) fn of_head(self, head: usize) -> HeadRun {
        HeadRun {
            head,
            slot: self.slot,
            count: self.count,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_cover_a_range_and_stop_at_block_borders() {
        let sequence = Sequence::new(vec![7, 2, 9]).unwrap();
        let runs: Vec<_> = sequence
            .runs(4, 3, 9)
            .map(|run| (run.block, run.slot, run.position, run.count))
            .collect();
        assert_eq!(runs, [(7, 3, 3, 1), (2, 0, 4, 4), (9, 0, 8, 1)]);
        assert_eq!(sequence.runs(4, 5, 5).count(), 0);
    }

    /// A block table that names a block twice would overwrite its own tokens.
    #[test]
    fn repeated_blocks_and_too_many_tokens_are_refused() {
        let repeated = Sequence::new(vec![1, 2, 1]);
        assert!(matches!(
            repeated,
            Err(DemoError::KvBlockRepeated { block: 1 })
        ));
        let long = Sequence::resume(vec![1, 2], 9, 4);
        assert!(matches!(
            long,
            Err(DemoError::TooManyTokens {
                tokens: 9,
                limit: 8,
                ..
            })
        ));
    }
}
