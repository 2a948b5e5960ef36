//! Checks of block pairs: inside both shapes, not empty, and no destination token twice.

use super::{
    BlockPair,
    frame::{FrameSide, PlanFrame},
};
use crate::{
    broken::broken,
    error::{LayoutError, PlanError},
};

/// Bitmaps up to this many words (512 KiB) are always affordable.
const BITMAP_WORDS_MIN: u64 = 1 << 16;

/// Lists up to this length are compared pair by pair.
const COMPARED_MAX: usize = 8;

/// A bitmap of blocks. Every check leaves it clear, so that a check costs the length of its list
/// and not the number of blocks of the shape.
#[derive(Clone, Debug, Default)]
pub(super) struct SeenBlocks {
    words: Vec<u64>,
}

impl SeenBlocks {
    /// Checks every pair.
    pub(super) fn check(
        &mut self,
        frame: &PlanFrame,
        pairs: impl ExactSizeIterator<Item = BlockPair> + Clone,
    ) -> Result<(), LayoutError> {
        if pairs.len() == 0 {
            return Err(LayoutError::Plan(PlanError::NothingSelected));
        }
        // Blocks and tokens of most lists only ascend, and an ascending list has no repetition.
        let mut ascending = true;
        let mut free = (0, 0);
        for pair in pairs.clone() {
            check_side(&frame.source, pair.source_block, pair.source_token, &pair)?;
            let (block, token) = (pair.destination_block, pair.destination_token);
            check_side(&frame.destination, block, token, &pair)?;
            ascending &= (block > free.0) | ((block == free.0) & (token >= free.1));
            free = (block, token + pair.tokens);
        }
        if !ascending && self.repeats(frame.destination.num_blocks, pairs.clone()) {
            return check_repeated(pairs);
        }
        Ok(())
    }

    /// Whether a destination block may occur twice.
    fn repeats(
        &mut self,
        num_blocks: u64,
        pairs: impl ExactSizeIterator<Item = BlockPair> + Clone,
    ) -> bool {
        let named = pairs.len();
        let blocks = pairs.map(|pair| pair.destination_block);
        if named <= COMPARED_MAX {
            let repeated = |(index, block)| blocks.clone().take(index).any(|b| b == block);
            return blocks.clone().enumerate().any(repeated);
        }
        // A shape may declare any number of blocks. Where it has many more than the list names,
        // sorting keeps memory proportional to the list.
        let words = num_blocks.div_ceil(64);
        let dense = words <= BITMAP_WORDS_MIN.max((named as u64).saturating_mul(4));
        let Some(words) = usize::try_from(words).ok().filter(|_| dense) else {
            return true;
        };
        if self.words.len() < words {
            self.words.resize(words, 0);
        }
        let mut repeated = false;
        for block in blocks.clone() {
            let word = self.word_of(block);
            let bit = 1 << (block % 64);
            repeated |= *word & bit != 0;
            *word |= bit;
        }
        for block in blocks {
            *self.word_of(block) = 0;
        }
        repeated
    }

    /// The word with the bit of a block. The caller has checked that the shape has the block.
    fn word_of(&mut self, block: u64) -> &mut u64 {
        let words = self.words.len();
        let at = usize::try_from(block / 64).ok();
        let Some(word) = at.and_then(|at| self.words.get_mut(at)) else {
            broken(format_args!("block {block} in a bitmap of {words} words"))
        };
        word
    }
}

#[inline]
fn check_side(
    side: &FrameSide,
    block: u64,
    token: u64,
    pair: &BlockPair,
) -> Result<(), LayoutError> {
    let end = token.checked_add(pair.tokens);
    let inside = pair.tokens != 0 && end.is_some_and(|end| end <= side.page_size);
    match inside && block < side.num_blocks {
        true => Ok(()),
        false => Err(outside(side, block, token, pair.tokens)),
    }
}

#[cold]
fn outside(side: &FrameSide, block: u64, token: u64, tokens: u64) -> LayoutError {
    if block >= side.num_blocks {
        return LayoutError::Plan(PlanError::BlockOutOfRange {
            side: side.name,
            block,
            num_blocks: side.num_blocks,
        });
    }
    LayoutError::Plan(PlanError::SelectionRange {
        side: side.name,
        axis: "tokens",
        start: token,
        count: tokens,
        extent: side.page_size,
    })
}

/// Several pairs may fill one destination block, as long as their tokens do not overlap.
fn check_repeated(pairs: impl Iterator<Item = BlockPair>) -> Result<(), LayoutError> {
    let mut parts: Vec<(u64, u64, u64)> = pairs
        .map(|p| (p.destination_block, p.destination_token, p.tokens))
        .collect();
    parts.sort_unstable();
    for window in parts.windows(2) {
        if let [(block, token, tokens), (next_block, next_token, _)] = window
            && block == next_block
            && token + tokens > *next_token
        {
            return Err(LayoutError::Plan(PlanError::DuplicateDestination {
                block: *block,
                token: *next_token,
            }));
        }
    }
    Ok(())
}
