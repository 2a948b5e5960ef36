//! The pieces of a load: consecutive blocks in one tier, cut so that several threads read at once.

use kvtile_blocks::events::TierId;
use kvtile_layout::broken;
use kvtile_transfer::LayoutHandle;

use super::{
    CacheParts, Match,
    found::{MatchSegment, SegmentPlace},
    layered,
};

/// Parts per worker thread that a load from tiers below is split into.
const PARTS_PER_WORKER: usize = 2;

/// Consecutive blocks of a load in one tier.
pub(super) struct LoadPiece {
    pub(super) segment: MatchSegment,
    /// Index of its first block in the load.
    pub(super) first: usize,
    /// Index of its first block in the chain.
    pub(super) position: usize,
    /// The layout and its blocks to copy to; `None` for a prefetch.
    pub(super) destinations: Option<(LayoutHandle, Vec<usize>)>,
}

/// Splits a match into pieces: its segments, with those below host memory cut so that several
/// threads read at once.
pub(super) fn cut(
    inner: &CacheParts,
    mut found: Match,
    (destinations, is_prefetch): (Option<(LayoutHandle, &[usize])>, bool),
) -> Vec<LoadPiece> {
    let (position, mut first) = (found.first, 0);
    let below = found.blocks() - found.blocks_in(TierId::HOST);
    let most = inner.settings.workers.max(1) * PARTS_PER_WORKER;
    let others = found.segments.len().saturating_sub(1);
    let most = most.min(inner.settings.queue_capacity.saturating_sub(others));
    let chunk = below.div_ceil(most.max(1)).max(1);
    let mut pieces = Vec::new();
    let mut add = |segment: MatchSegment, first: usize| {
        let blocks = first..first + segment.blocks();
        let destinations = destinations.map(|(layout, ids)| {
            let Some(mine) = ids.get(blocks.clone()) else {
                broken(format_args!(
                    "blocks {blocks:?} of {} destinations",
                    ids.len()
                ))
            };
            (layout, mine.to_vec())
        });
        pieces.push(LoadPiece {
            first,
            position: position + first,
            destinations,
            segment,
        });
    };
    for mut segment in found.segments.drain(..) {
        let mut start = first;
        first += segment.blocks();
        if is_prefetch && segment.tier == TierId::HOST {
            // The segment is already in host memory; its pins are released.
            continue;
        }
        let layered = destinations.is_some() && is_layered(inner, &segment);
        while !layered && segment.tier != TierId::HOST && segment.blocks() > chunk {
            let rest = segment.split_off(chunk);
            add(std::mem::replace(&mut segment, rest), start);
            start += chunk;
        }
        add(segment, start);
    }
    pieces
}

/// Whether a segment is loaded layer by layer. One part of the load then reads all of its blocks.
pub(super) fn is_layered(inner: &CacheParts, segment: &MatchSegment) -> bool {
    match &segment.place {
        SegmentPlace::Host(_) => false,
        SegmentPlace::Below(tier, ..) | SegmentPlace::Leaving(tier, _) => {
            !layered::chunks(inner, inner.tier(*tier), segment.blocks()).is_empty()
        }
    }
}
