//! The byte ranges of layers inside a block, computed once for all blocks of a layout.

use std::ops::Range;

use kvtile_layout::{Axis, Digit, Location, PlanePiece, RegionSpan, StridedLayout};

/// A layout with contiguous, equally ordered blocks, in which each layer is one byte range of its
/// block.
#[derive(Debug)]
pub(super) struct LayerBytes {
    /// The start of block 0.
    first: Location,
    /// The digits of the block axis.
    blocks: Vec<Digit>,
    /// The range of each layer, relative to the start of the block.
    ranges: Vec<Range<u64>>,
}

impl LayerBytes {
    /// Returns `None` for any other layout.
    pub(super) fn of(layout: &StridedLayout) -> Option<LayerBytes> {
        // The location of a unit is the sum of the steps of its indices. If all planes have the
        // same steps along the block axis, every block is a translation of block 0. Then the ranges
        // of block 0 hold for every block.
        let mut planes = layout.pieces().iter().map(block_digits);
        let blocks = planes.next()?;
        if !planes.all(|digits| digits == blocks) {
            return None;
        }
        let block = layout.block_span(0).ok()?;
        let range = |layer| {
            let page = layout.page_span(0, layer).ok()?;
            let start = page.start.offset.checked_sub(block.start.offset)?;
            Some(start..start.checked_add(page.bytes)?)
        };
        let ranges: Option<Vec<Range<u64>>> = (0..layout.shape().num_layers()).map(range).collect();
        Some(LayerBytes {
            first: block.start,
            blocks,
            ranges: ranges?,
        })
    }

    pub(super) fn ranges(&self) -> &[Range<u64>] {
        &self.ranges
    }

    /// The bytes of `layers` of a block; `None` where two consecutive layers are not adjacent.
    pub(super) fn span(&self, block: u64, layers: &Range<u64>) -> Option<RegionSpan> {
        let index = |layer: u64| usize::try_from(layer).ok();
        let ranges = self.ranges.get(index(layers.start)?..index(layers.end)?)?;
        let (first, last) = (ranges.first()?, ranges.last()?);
        let mut neighbours = ranges.iter().zip(ranges.iter().skip(1));
        if !neighbours.all(|(layer, next)| layer.end == next.start) {
            return None;
        }
        let mut start = self.first;
        for digit in &self.blocks {
            let value = (block / digit.low) % digit.extent;
            start.region += value * digit.step.regions;
            start.offset += value * digit.step.bytes;
        }
        start.offset += first.start;
        Some(RegionSpan {
            start,
            bytes: last.end - first.start,
        })
    }
}

/// The digits of a plane's block axis, in a normal form: equal locations have equal digits.
fn block_digits(piece: &PlanePiece) -> Vec<Digit> {
    let mut digits = StridedLayout::canonical_digits(piece);
    digits.retain(|digit| digit.axis == Axis::B);
    digits
}
