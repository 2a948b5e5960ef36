//! Plans of the measurements.

use kvtile_layout::{Axis, CopyPlan, Location, Plane, Selection, Shape, StridedLayout, Unit};
use kvtile_random::SplitMix64;

use crate::{
    error::GpuCheckError,
    rig::{CopyRange, RigBuffer, RigRegion},
};

/// Regions start at multiples of this, as allocations of a device do.
const ALIGNMENT: usize = 256;

/// Blocks of one run each.
pub(super) fn run_blocks(blocks: usize, run_bytes: usize) -> Result<StridedLayout, GpuCheckError> {
    let plane = Plane::new("kv", Unit::raw(1)?)?.extent(Axis::C, run_bytes as u64);
    let shape = Shape::new(blocks as u64, 1, 1, vec![plane])?;
    Ok(StridedLayout::canonical(&shape)?)
}

/// Runs between dense blocks and every second of twice as many, in random order.
pub(super) struct ScatteredRuns {
    pub(super) dense: StridedLayout,
    pub(super) scattered: StridedLayout,
    /// From the dense blocks to the scattered ones.
    pub(super) load: CopyPlan,
    /// The way back.
    pub(super) store: CopyPlan,
}

impl ScatteredRuns {
    pub(super) fn new(
        pieces: usize,
        run_bytes: usize,
        seed: u64,
    ) -> Result<ScatteredRuns, GpuCheckError> {
        let (dense, scattered) = (
            run_blocks(pieces, run_bytes)?,
            run_blocks(2 * pieces, run_bytes)?,
        );
        let order = SplitMix64::new(seed).order(pieces);
        let places: Vec<u64> = order.iter().map(|place| 2 * *place as u64).collect();
        let blocks: Vec<u64> = (0..pieces as u64).collect();
        let load = Selection::blocks(&blocks, &places, 1)?;
        let store = Selection::blocks(&places, &blocks, 1)?;
        Ok(ScatteredRuns {
            load: CopyPlan::new(&dense, &scattered, &load)?,
            store: CopyPlan::new(&scattered, &dense, &store)?,
            dense,
            scattered,
        })
    }
}

/// Bytes of all regions of a layout, each with room for its alignment.
pub(super) fn room_of(layout: &StridedLayout) -> usize {
    let regions = layout.region_bytes().iter();
    regions.map(|bytes| aligned(to_usize(*bytes))).sum()
}

/// The regions of a layout in a buffer, one behind the other.
pub(super) fn regions_in(buffer: &RigBuffer, layout: &StridedLayout) -> Vec<RigRegion> {
    let mut start = 0;
    let mut regions = Vec::new();
    for bytes in layout.region_bytes() {
        let bytes = to_usize(*bytes);
        regions.push(RigRegion {
            buffer: buffer.clone(),
            range: start..start + bytes,
        });
        start += aligned(bytes);
    }
    regions
}

/// The runs of a plan as copies between two buffers with these regions.
pub(super) fn copies_of(plan: &CopyPlan, from: &[RigRegion], to: &[RigRegion]) -> Vec<CopyRange> {
    let place = |regions: &[RigRegion], at: Location| {
        let region = regions.get(to_usize(at.region));
        // A region that is absent has no place in any buffer, which the rig refuses.
        region.map_or(usize::MAX, |region| {
            region.range.start.saturating_add(to_usize(at.offset))
        })
    };
    let mut copies = Vec::new();
    plan.for_each_run(|source, destination, bytes| {
        copies.push(CopyRange {
            to: place(to, destination),
            from: place(from, source),
            bytes: to_usize(bytes),
        });
    });
    copies
}

fn aligned(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGNMENT)
}

/// Sizes of layouts that are allocated fit.
pub(super) fn to_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
