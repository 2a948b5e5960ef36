//! Block pairs: checked, grouped by what they have in common, and compressed into progressions.

use std::collections::HashMap;

use super::{BlockPair, PairBase, Selection};
use crate::{axis::Axis, error::LayoutError, shape::Shape, strided::StridedLayout};

/// Words of a bitmap of blocks that are not worth avoiding, 512 KiB.
const BITMAP_WORDS_MIN: u64 = 1 << 16;

/// What all pairs of a class share.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct ClassKey {
    /// First source token modulo the source's largest modulus of N.
    pub(super) source_phase: u64,
    /// First destination token modulo the destination's largest modulus of N.
    pub(super) destination_phase: u64,
    /// Tokens a pair.
    pub(super) tokens: u64,
    /// Consecutive pairs of the progression.
    pub(super) blocks: u64,
    /// Source blocks from one to the next.
    pub(super) source_stride: u64,
    /// Destination blocks from one to the next.
    pub(super) destination_stride: u64,
}

pub(super) struct Class {
    pub(super) key: ClassKey,
    pub(super) pairs: Vec<PairBase>,
}

/// Checks every pair: inside both shapes, not empty, and no destination token twice.
pub(super) fn check(
    selection: &Selection,
    source: &Shape,
    destination: &Shape,
) -> Result<(), LayoutError> {
    if selection.pairs.is_empty() {
        return Err(LayoutError::NothingSelected);
    }
    // A bitmap over the blocks where it is not much larger than the list, else sorting: a shape may
    // claim any number of blocks, and memory is only taken for those that are named.
    let words = destination.num_blocks().div_ceil(64);
    let named = selection.pairs.len() as u64;
    let dense = words <= BITMAP_WORDS_MIN.max(named.saturating_mul(4));
    let words = usize::try_from(words).ok().filter(|_| dense);
    let mut seen = vec![0u64; words.unwrap_or(0)];
    let mut repeated = words.is_none();
    for pair in &selection.pairs {
        check_side("source", pair.source_block, pair.source_token, pair, source)?;
        check_side(
            "destination",
            pair.destination_block,
            pair.destination_token,
            pair,
            destination,
        )?;
        let word = usize::try_from(pair.destination_block / 64).unwrap_or(usize::MAX);
        if let Some(word) = seen.get_mut(word) {
            let bit = 1 << (pair.destination_block % 64);
            repeated |= *word & bit != 0;
            *word |= bit;
        }
    }
    if repeated {
        check_repeated(&selection.pairs)?;
    }
    Ok(())
}

fn check_side(
    side: &'static str,
    block: u64,
    token: u64,
    pair: &BlockPair,
    shape: &Shape,
) -> Result<(), LayoutError> {
    if block >= shape.num_blocks() {
        return Err(LayoutError::BlockOutOfRange {
            side,
            block,
            num_blocks: shape.num_blocks(),
        });
    }
    let end = token.checked_add(pair.tokens);
    if pair.tokens == 0 || end.is_none_or(|end| end > shape.page_size()) {
        return Err(LayoutError::SelectionRange {
            side,
            axis: "tokens",
            start: token,
            count: pair.tokens,
            extent: shape.page_size(),
        });
    }
    Ok(())
}

/// Several pairs may fill one destination block, as long as their tokens do not overlap.
fn check_repeated(pairs: &[BlockPair]) -> Result<(), LayoutError> {
    let mut parts: Vec<(u64, u64, u64)> = pairs
        .iter()
        .map(|p| (p.destination_block, p.destination_token, p.tokens))
        .collect();
    parts.sort_unstable();
    for window in parts.windows(2) {
        if let [(block, token, tokens), (next_block, next_token, _)] = window
            && block == next_block
            && token + tokens > *next_token
        {
            return Err(LayoutError::DuplicateDestination {
                block: *block,
                token: *next_token,
            });
        }
    }
    Ok(())
}

/// The classes of the pairs, in the order of first appearance.
pub(super) fn classes(
    selection: &Selection,
    source: &StridedLayout,
    destination: &StridedLayout,
) -> Vec<Class> {
    let moduli = (token_modulus(source), token_modulus(destination));
    let single = |layout: &StridedLayout| {
        let pieces = layout.pieces().iter();
        pieces
            .clone()
            .all(|piece| piece.digits_of(Axis::B).count() <= 1)
    };
    let progressions = single(source) && single(destination);
    let mut classes: Vec<Class> = Vec::new();
    let mut index: HashMap<ClassKey, usize> = HashMap::new();
    let mut last: Option<(ClassKey, usize)> = None;
    let mut rest = selection.pairs.as_slice();
    while let Some((first, _)) = rest.split_first() {
        let (blocks, strides) = if progressions {
            progression(rest)
        } else {
            (1, (1, 1))
        };
        let key = ClassKey {
            source_phase: first.source_token % moduli.0,
            destination_phase: first.destination_token % moduli.1,
            tokens: first.tokens,
            blocks: blocks as u64,
            source_stride: strides.0,
            destination_stride: strides.1,
        };
        let at = match last {
            Some((last_key, at)) if last_key == key => at,
            _ => *index.entry(key).or_insert_with(|| {
                let pairs = Vec::new();
                classes.push(Class { key, pairs });
                classes.len() - 1
            }),
        };
        last = Some((key, at));
        if let Some(class) = classes.get_mut(at) {
            class.pairs.push(PairBase {
                source_block: first.source_block,
                source_token: first.source_token - key.source_phase,
                destination_block: first.destination_block,
                destination_token: first.destination_token - key.destination_phase,
            });
        }
        rest = rest.get(blocks..).unwrap_or_default();
    }
    classes
}

/// The least common multiple of the moduli of N in all pieces: whole multiples of it only move
/// the base of a pair. Where it does not fit, no token is a multiple of it.
fn token_modulus(layout: &StridedLayout) -> u64 {
    let digits = layout.pieces().iter().flat_map(|p| p.digits_of(Axis::N));
    digits.fold(1, |multiple: u64, digit| {
        let mut gcd = (multiple, digit.low);
        while gcd.1 != 0 {
            gcd = (gcd.1, gcd.0 % gcd.1);
        }
        (multiple / gcd.0).saturating_mul(digit.low)
    })
}

/// How many of the first pairs form an arithmetic progression in both block ids, and its strides.
/// Short ones are worth a loop only where both ids go up by one.
fn progression(pairs: &[BlockPair]) -> (usize, (u64, u64)) {
    let none = (1, (1, 1));
    let (Some(first), Some(second)) = (pairs.first(), pairs.get(1)) else {
        return none;
    };
    let alike = |a: &BlockPair, b: &BlockPair| {
        a.tokens == b.tokens
            && a.source_token == b.source_token
            && a.destination_token == b.destination_token
    };
    let (Some(source), Some(destination)) = (
        second.source_block.checked_sub(first.source_block),
        second
            .destination_block
            .checked_sub(first.destination_block)
            .filter(|&d| d > 0),
    ) else {
        return none;
    };
    let follows = |(a, b): (&BlockPair, &BlockPair)| {
        alike(a, b)
            && b.source_block.checked_sub(a.source_block) == Some(source)
            && b.destination_block.checked_sub(a.destination_block) == Some(destination)
    };
    let count = 1 + pairs
        .iter()
        .zip(pairs.iter().skip(1))
        .take_while(|&pair| follows(pair))
        .count();
    let shortest = if (source, destination) == (1, 1) {
        2
    } else {
        4
    };
    if count < shortest {
        none
    } else {
        (count, (source, destination))
    }
}
