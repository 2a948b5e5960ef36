//! Extents: the bytes of regions and of blocks as ranges of addresses.

use std::sync::Arc;

use kvtile_layout::{RegionSpan, StridedLayout, broken};

use super::spans::{BlockSpans, stored_spans};
use crate::{error::TransferError, execute::AddressSpace, physical::PhysicalLayout};

/// Maximum number of runs of a block list that an overlap check of two layouts examines.
const RUNS_MAX: u64 = 1 << 22;

/// A range of addresses, or of offsets in a file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct AddressExtent {
    pub(super) space: AddressSpace,
    pub(super) start: u64,
    pub(super) end: u64,
}

impl AddressExtent {
    pub(super) fn overlaps(&self, other: &AddressExtent) -> bool {
        self.space == other.space && self.start < other.end && other.start < self.end
    }
}

/// The extents of the regions of a layout; none for a remote one.
pub(super) fn extents(layout: &PhysicalLayout) -> Vec<AddressExtent> {
    let regions = layout.memory_regions().iter();
    regions
        .map(|region| AddressExtent {
            space: AddressSpace::of(region.as_ref()),
            start: region.addr() as u64,
            end: (region.addr() as u64).saturating_add(region.size() as u64),
        })
        .collect()
}

/// The exact bytes of `blocks` of `layout`, sorted. `regions` are the extents of its regions.
pub(super) fn block_extents(
    layout: &StridedLayout,
    regions: &[AddressExtent],
    blocks: &[u64],
) -> Result<Vec<AddressExtent>, TransferError> {
    Ok(placed(stored_spans(layout, blocks, RUNS_MAX)?, regions))
}

/// The extents of each of `blocks`, as [`block_extents`] computes them.
pub(super) fn extents_by_block(
    layout: &Arc<StridedLayout>,
    regions: &[AddressExtent],
    blocks: impl Iterator<Item = u64>,
) -> Result<Vec<(u64, Vec<AddressExtent>)>, TransferError> {
    let mut spans = BlockSpans::new(layout)?;
    let by_block = blocks.map(|block| {
        let spans = spans.of(block, RUNS_MAX)?;
        Ok((block, placed(spans, regions)))
    });
    by_block.collect()
}

/// Converts spans to sorted extents.
fn placed(spans: Vec<RegionSpan>, regions: &[AddressExtent]) -> Vec<AddressExtent> {
    let mut found = Vec::new();
    for span in spans {
        let index = usize::try_from(span.start.region).ok();
        // A skipped span would never conflict, so a missing region is a defect.
        let Some(region) = index.and_then(|index| regions.get(index)) else {
            broken(format_args!("{span:?} in {} regions", regions.len()))
        };
        let start = region.start.saturating_add(span.start.offset);
        found.push(AddressExtent {
            space: region.space,
            start,
            end: start.saturating_add(span.bytes),
        });
    }
    found.sort_unstable();
    found
}

/// The first byte that two sorted lists of disjoint extents share. It iterates over the shorter
/// list and searches the longer one: one list may be a block, the other a transfer of thousands of
/// blocks.
pub(super) fn first_overlap(a: &[AddressExtent], b: &[AddressExtent]) -> Option<u64> {
    let (few, many) = match a.len() <= b.len() {
        true => (a, b),
        false => (b, a),
    };
    few.iter().find_map(|extent| {
        let before =
            |other: &AddressExtent| (other.space, other.end) <= (extent.space, extent.start);
        let next = many.get(many.partition_point(before))?;
        let start = extent.start.max(next.start);
        next.overlaps(extent).then_some(start)
    })
}
