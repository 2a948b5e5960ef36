//! Sides packed densely: what a plan moves of one side, without the bytes between.
//!
//! ```text
//! offsets of a region    ....[window 0].........[window 1]...
//! packed                 region 0: [window 0][window 1]  region 1: [window 0][window 1]
//! ```
//!
//! All regions that a part touches have the same windows, so the distance from one region to the next is the same
//! everywhere, as kernels need it.

use kvtile_layout::{AddressStep, Location, Loop};

use super::part::PlanPart;

/// Most regions and windows of a packed side.
const PIECES_MAX: usize = 1 << 16;

/// The bytes of one side that a part of a plan moves, packed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedSide {
    /// Sorted, with bytes between them.
    windows: Vec<PackedWindow>,
    /// Sorted.
    regions: Vec<u64>,
    /// Bytes of all windows of a region.
    stride: u64,
}

/// A range of offsets, the same in each region, and its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PackedWindow {
    from: u64,
    to: u64,
    at: u64,
}

/// Contiguous bytes of a region that are contiguous in the packed side too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedPiece {
    /// Where they are in the layout.
    pub start: Location,
    /// How many.
    pub bytes: u64,
    /// Where they are in the packed side.
    pub at: u64,
}

/// How a side is read off a plan.
struct SideView {
    start: fn((Location, Location)) -> Location,
    step: fn(&Loop) -> AddressStep,
}

impl PackedSide {
    /// The source of a part, packed. `None` where its windows have bytes that the part does not move.
    #[must_use]
    pub fn of_source(part: &PlanPart<'_>) -> Option<PackedSide> {
        PackedSide::of(
            part,
            &SideView {
                start: |(source, _)| source,
                step: |l| l.source,
            },
        )
    }

    /// The destination of a part, packed, as [`PackedSide::of_source`].
    #[must_use]
    pub fn of_destination(part: &PlanPart<'_>) -> Option<PackedSide> {
        PackedSide::of(
            part,
            &SideView {
                start: |(_, destination)| destination,
                step: |l| l.destination,
            },
        )
    }

    fn of(part: &PlanPart<'_>, side: &SideView) -> Option<PackedSide> {
        let mut spans: Vec<(u64, u64)> = Vec::new();
        let mut regions: Vec<u64> = Vec::new();
        for (class, pairs) in part.classes() {
            for nest in class.nests.iter() {
                let steps = nest.loops.iter().map(|l| ((side.step)(l), l.extent - 1));
                let reach = steps.clone().fold(nest.run_bytes, |reach, (step, last)| {
                    reach.saturating_add(step.bytes.saturating_mul(last))
                });
                let steps: Vec<(u64, u64)> = steps
                    .filter(|(step, _)| step.regions > 0)
                    .map(|(step, last)| (step.regions, last))
                    .collect();
                for pair in pairs {
                    let start = (side.start)(part.plan().start(nest, pair));
                    spans.push((start.offset, start.offset.saturating_add(reach)));
                    add_regions(&mut regions, start.region, &steps)?;
                }
            }
        }
        spans.sort_unstable();
        regions.sort_unstable();
        regions.dedup();
        let mut packed = PackedSide {
            windows: Vec::new(),
            regions,
            stride: 0,
        };
        for (from, to) in spans {
            match packed.windows.last_mut() {
                Some(last) if from <= last.to => last.to = last.to.max(to),
                _ => packed.windows.push(PackedWindow { from, to, at: 0 }),
            }
        }
        for window in &mut packed.windows {
            window.at = packed.stride;
            packed.stride = packed.stride.checked_add(window.to - window.from)?;
        }
        let pieces = packed.windows.len().checked_mul(packed.regions.len())?;
        (pieces <= PIECES_MAX && packed.bytes() == part.bytes()).then_some(packed)
    }

    /// Bytes of all windows of all regions: those that the part moves.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.stride.saturating_mul(self.regions.len() as u64)
    }

    /// The contiguous pieces, in the order of the packed side.
    pub fn pieces(&self) -> impl Iterator<Item = PackedPiece> + '_ {
        let regions = (0u64..).zip(&self.regions);
        regions.flat_map(move |(index, &region)| {
            self.windows.iter().map(move |window| PackedPiece {
                start: Location {
                    region,
                    offset: window.from,
                },
                bytes: window.to - window.from,
                at: index * self.stride + window.at,
            })
        })
    }

    /// The place of `span` bytes from `start`; `None` if they are not packed side by side.
    pub(super) fn place(&self, start: Location, span: u64) -> Option<u64> {
        let region = self.regions.binary_search(&start.region).ok()? as u64;
        let after = self
            .windows
            .partition_point(|window| window.from <= start.offset);
        let window = self.windows.get(after.checked_sub(1)?)?;
        let inside = start.offset - window.from;
        let end = start.offset.checked_add(span)?;
        (end <= window.to).then_some(region * self.stride + window.at + inside)
    }
}

/// Adds the regions that loops over regions reach from `first`.
fn add_regions(regions: &mut Vec<u64>, first: u64, loops: &[(u64, u64)]) -> Option<()> {
    let Some((&(step, last), inner)) = loops.split_first() else {
        if regions.last() != Some(&first) {
            regions.push(first);
        }
        if regions.len() > PIECES_MAX {
            regions.sort_unstable();
            regions.dedup();
        }
        return (regions.len() <= PIECES_MAX).then_some(());
    };
    for index in 0..=last {
        add_regions(regions, first.checked_add(step.checked_mul(index)?)?, inner)?;
    }
    Some(())
}
