//! Random selections between two shapes.

use kvtile_layout::{Axis, PlanePer, Shape};

use super::{choices::Choices, shapes::token_unit};
use crate::copy::{NaivePair, NaiveRange, NaiveSelection};

/// A selection that fits both shapes, is not empty, and has each destination token at most once.
pub(super) fn selection(choices: &mut Choices, src: &Shape, dst: &Shape) -> NaiveSelection {
    let headless = src.planes().iter().any(|plane| !plane.has(Axis::H));
    let heads = match headless {
        true => NaiveRange::first(src.num_heads()),
        false => range(choices, src.num_heads(), dst.num_heads()),
    };
    let layers = range(choices, src.num_layers(), dst.num_layers());
    let per_page = src
        .planes()
        .iter()
        .any(|plane| plane.per() == PlanePer::Page);
    let whole = src.page_size() == dst.page_size() && (per_page || !choices.once_in(3));
    let pairs = match whole {
        true => whole_blocks(choices, src, dst),
        false => parts_of_blocks(choices, src, dst),
    };
    NaiveSelection {
        pairs,
        layers,
        heads,
    }
}

fn range(choices: &mut Choices, src: u64, dst: u64) -> NaiveRange {
    let most = src.min(dst);
    let count = most - choices.below(most);
    NaiveRange {
        src_start: choices.below(src - count + 1),
        dst_start: choices.below(dst - count + 1),
        count,
    }
}

/// Distinct destination blocks, some of them consecutive or evenly spaced; any source blocks.
fn whole_blocks(choices: &mut Choices, src: &Shape, dst: &Shape) -> Vec<NaivePair> {
    let (from, to) = (src.num_blocks(), dst.num_blocks());
    let step = 1 + choices.below(3);
    let in_a_row = !choices.once_in(2);
    let ids: Vec<u64> = (0..to).collect();
    let ids = match in_a_row {
        true => ids
            .into_iter()
            .step_by(usize::try_from(step).unwrap_or(1))
            .collect(),
        false => choices.shuffled(ids),
    };
    let count = ids.len() - choices.index(ids.len());
    let (first, stride) = (choices.below(from), choices.below(3));
    let mut pairs = Vec::new();
    for (i, id) in (0u64..).zip(ids).take(count) {
        let source = match in_a_row {
            true => (first + i * stride) % from,
            false => choices.below(from),
        };
        pairs.push(NaivePair::whole(source, id, src.page_size()));
    }
    pairs
}

/// Parts of destination blocks from parts of source blocks, for any page sizes. No part cuts an entry.
fn parts_of_blocks(choices: &mut Choices, src: &Shape, dst: &Shape) -> Vec<NaivePair> {
    let unit = token_unit(src.planes());
    let (src_page, dst_page) = (src.page_size() / unit, dst.page_size() / unit);
    let mut pairs = Vec::new();
    for dst_block in choices.shuffled((0..dst.num_blocks()).collect()) {
        let mut dst_start = choices.below(dst_page);
        while dst_start < dst_page {
            let most = src_page.min(dst_page - dst_start);
            let count = most - choices.below(most);
            pairs.push(NaivePair {
                src_block: choices.below(src.num_blocks()),
                src_token: choices.below(src_page - count + 1) * unit,
                dst_block,
                dst_token: dst_start * unit,
                tokens: count * unit,
            });
            dst_start += count + choices.below(2);
        }
    }
    choices.shuffled(pairs)
}
