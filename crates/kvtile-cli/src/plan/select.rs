//! Builds a selection from the options.

use kvtile::layout::{BlockPair, RangePair, Selection, Shape};

use super::SelectionArgs;
use crate::{error::CliError, ranges::IndexRange};

/// Number of blocks by default.
const BLOCKS_DEFAULT: u64 = 8;

/// The selection of the options between two shapes.
pub(super) fn selection(
    args: &SelectionArgs,
    source: &Shape,
    destination: &Shape,
) -> Result<Selection, CliError> {
    let (a, b) = (source.page_size(), destination.page_size());
    let mut selection = match (args.token_range, a == b) {
        (Some(tokens), _) => part_of_pages(tokens, args, source, destination)?,
        (None, true) => {
            let (from, to) = lists(args, source.num_blocks().min(destination.num_blocks()));
            Selection::blocks(&from, &to, a)?
        }
        (None, false) => sequence(args, source, destination)?,
    };
    if let Some(IndexRange { start, count }) = args.layer_range {
        selection.layers = Some(RangePair::same(start, count));
    }
    selection.heads = heads(args, source, destination)?;
    Ok(selection)
}

/// The block lists; one list applies to both sides.
fn lists(args: &SelectionArgs, held: u64) -> (Vec<u64>, Vec<u64>) {
    let first = |count: usize| (0..count as u64).collect::<Vec<u64>>();
    match (&args.source_blocks, &args.destination_blocks) {
        (Some(from), Some(to)) => (from.0.clone(), to.0.clone()),
        (Some(from), None) => (from.0.clone(), first(from.0.len())),
        (None, Some(to)) => (first(to.0.len()), to.0.clone()),
        (None, None) => {
            let blocks: Vec<u64> = (0..held.min(BLOCKS_DEFAULT)).collect();
            (blocks.clone(), blocks)
        }
    }
}

/// The same tokens of every block on both sides.
fn part_of_pages(
    tokens: IndexRange,
    args: &SelectionArgs,
    source: &Shape,
    destination: &Shape,
) -> Result<Selection, CliError> {
    let (from, to) = lists(args, source.num_blocks().min(destination.num_blocks()));
    let mut selection = Selection::blocks(&from, &to, tokens.count)?;
    selection.pairs.iter_mut().for_each(|pair: &mut BlockPair| {
        pair.source_token = tokens.start;
        pair.destination_token = tokens.start;
    });
    Ok(selection)
}

/// A token sequence through pages of different sizes: as many tokens as fill whole pages of both.
fn sequence(
    args: &SelectionArgs,
    source: &Shape,
    destination: &Shape,
) -> Result<Selection, CliError> {
    let (a, b) = (source.page_size(), destination.page_size());
    let pages = |given: Option<usize>, page: u64, larger: u64, held: u64| match given {
        Some(count) => count as u64,
        None => larger.div_ceil(page).max(1).min(held),
    };
    let larger = a.max(b);
    let given = |list: &Option<crate::ranges::IndexList>| list.as_ref().map(|list| list.0.len());
    let many = (
        pages(given(&args.source_blocks), a, larger, source.num_blocks()),
        pages(
            given(&args.destination_blocks),
            b,
            larger,
            destination.num_blocks(),
        ),
    );
    let ids = |list: &Option<crate::ranges::IndexList>, count: u64| match list {
        Some(list) => list.0.clone(),
        None => (0..count).collect(),
    };
    let tokens = many.0.saturating_mul(a).min(many.1.saturating_mul(b));
    let (from, to) = (
        ids(&args.source_blocks, many.0),
        ids(&args.destination_blocks, many.1),
    );
    Ok(Selection::sequence(&from, a, &to, b, tokens)?)
}

/// The given heads, or the heads that two shards of one model share.
fn heads(
    args: &SelectionArgs,
    source: &Shape,
    destination: &Shape,
) -> Result<Option<RangePair>, CliError> {
    let (from, to) = (args.source_heads, args.destination_heads);
    let (from, to) = match (from, to) {
        (None, None) => {
            let (ours, theirs) = (source.shard(), destination.shard());
            if ours.heads == theirs.heads || ours.total_heads != theirs.total_heads {
                return Ok(None);
            }
            let shared = RangePair::shared(ours.heads, theirs.heads);
            return shared.map(Some).ok_or_else(|| CliError::Option {
                option: "--source-rank, --destination-rank",
                value: format!("heads {} and {}", ours.heads, theirs.heads),
                problem: "these shards share no heads; choose ranks that do".to_owned(),
            });
        }
        (Some(both), None) | (None, Some(both)) => (both, both),
        (Some(from), Some(to)) => (from, to),
    };
    if from.count != to.count {
        return Err(CliError::Option {
            option: "--destination-heads",
            value: format!("{}..{}", to.start, to.start.saturating_add(to.count)),
            problem: format!("the source has {} heads; give as many", from.count),
        });
    }
    Ok(Some(RangePair {
        source: from.start,
        destination: to.start,
        count: from.count,
    }))
}
