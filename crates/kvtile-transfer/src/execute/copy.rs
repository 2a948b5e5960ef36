//! Memory to memory: running the nests of a plan with ordinary stores.
//!
//! Knows pointers and strides; which nests there are is the planner's business, and that nobody
//! else touches the bytes meanwhile is the business of leases.

use kvtile_layout::{CopyPlan, Location, Loop, Nest, Step};

use super::bound::BoundLayout;
use crate::error::TransferError;

/// Where one side of a nest lies.
#[derive(Clone, Copy)]
pub(super) enum Place<'a> {
    /// In the regions of a bound layout.
    Regions(&'a BoundLayout, Location),
    /// In a buffer: what the plan calls offset `from` of one region starts at `buffer`, and
    /// `bytes` bytes follow.
    Buffer {
        buffer: *mut u8,
        bytes: usize,
        from: u64,
        at: u64,
    },
}

impl Place<'_> {
    /// The address of `bytes` bytes from here on.
    fn pointer(self, bytes: u64) -> Result<*mut u8, TransferError> {
        match self {
            Place::Regions(layout, location) => layout.pointer(location, bytes),
            Place::Buffer {
                buffer,
                bytes: size,
                from,
                at,
            } => at
                .checked_sub(from)
                .filter(|offset| {
                    offset
                        .checked_add(bytes)
                        .is_some_and(|end| end <= size as u64)
                })
                .and_then(|offset| usize::try_from(offset).ok())
                .map(|offset| buffer.wrapping_add(offset))
                .ok_or(TransferError::OutsidePlan { region: 0 }),
        }
    }

    /// The place `step` further.
    fn further(self, step: Step) -> Self {
        match self {
            Place::Regions(layout, location) => Place::Regions(layout, further(location, step)),
            Place::Buffer {
                buffer,
                bytes,
                from,
                at,
            } => Place::Buffer {
                buffer,
                bytes,
                from,
                at: at + step.bytes,
            },
        }
    }
}

/// Runs from this length on are worth streaming: what they write is not touched twice.
const STREAM_RUN_BYTES: usize = 4096;

/// Executes all of `plan`.
///
/// # Safety
/// For the whole call nobody else writes the source units or reads or writes the destination
/// units of the plan, and no source byte is a destination byte.
///
/// # Errors
/// A plan that does not fit the layouts; nothing outside their regions is touched.
pub(super) unsafe fn copy_plan(
    plan: &CopyPlan,
    source: &BoundLayout,
    destination: &BoundLayout,
) -> Result<(), TransferError> {
    for class in plan.classes() {
        let nests: Vec<(Vec<Loop>, LocalNest)> = class
            .nests
            .iter()
            .map(|nest| split(&nest.loops, nest.run_bytes))
            .collect::<Result<_, _>>()?;
        let starts = |nest: &Nest| -> Vec<(Location, Location)> {
            let pairs = class.pairs.iter();
            pairs.map(|pair| plan.start(nest, pair)).collect()
        };
        for (nest, (far, local)) in class.nests.iter().zip(&nests) {
            if streams(far, local) {
                let sides = (source, destination);
                // SAFETY: passed on to the caller.
                unsafe { stream(far, local, sides, &starts(nest)) }?;
            }
        }
        for pair in &class.pairs {
            for (nest, (far, local)) in class.nests.iter().zip(&nests) {
                if streams(far, local) {
                    continue;
                }
                let (from, to) = plan.start(nest, pair);
                let places = (
                    Place::Regions(source, from),
                    Place::Regions(destination, to),
                );
                // SAFETY: passed on to the caller.
                unsafe { copy_nest(far, local, places) }?;
            }
        }
    }
    Ok(())
}

/// Whether the source is read in order only region by region.
fn streams(far: &[Loop], local: &LocalNest) -> bool {
    local.run >= STREAM_RUN_BYTES && far.iter().any(|l| !l.source.is_local())
}

/// Runs `far` around all blocks, so that long runs stream through one region after the other
/// instead of jumping between all of them with every block.
///
/// # Safety
/// As for [`copy_plan`], for the units of this nest of all blocks, which start at `starts`.
unsafe fn stream(
    far: &[Loop],
    local: &LocalNest,
    sides: (&BoundLayout, &BoundLayout),
    starts: &[(Location, Location)],
) -> Result<(), TransferError> {
    let Some((outer, inner)) = far.split_first() else {
        for &(from, to) in starts {
            let places = (Place::Regions(sides.0, from), Place::Regions(sides.1, to));
            // SAFETY: passed on to the caller.
            unsafe { copy_nest(&[], local, places) }?;
        }
        return Ok(());
    };
    let mut starts = starts.to_vec();
    for _ in 0..outer.extent {
        // SAFETY: passed on to the caller.
        unsafe { stream(inner, local, sides, &starts) }?;
        for (from, to) in &mut starts {
            *from = further(*from, outer.source);
            *to = further(*to, outer.destination);
        }
    }
    Ok(())
}

fn further(from: Location, step: Step) -> Location {
    Location {
        region: from.region + step.regions,
        offset: from.offset + step.bytes,
    }
}

/// The loops that change regions, and the nest that stays inside them.
pub(super) fn split(
    loops: &[Loop],
    run_bytes: u64,
) -> Result<(Vec<Loop>, LocalNest), TransferError> {
    let local = |l: &&Loop| l.source.is_local() && l.destination.is_local();
    let far = loops.iter().filter(|l| !local(l)).copied().collect();
    let local: Vec<Loop> = loops.iter().filter(local).copied().collect();
    Ok((far, LocalNest::new(&local, run_bytes)?))
}

/// Runs `far` around `local`.
///
/// # Safety
/// As for [`copy_plan`], for the units of this nest.
pub(super) unsafe fn copy_nest(
    far: &[Loop],
    local: &LocalNest,
    (from, to): (Place<'_>, Place<'_>),
) -> Result<(), TransferError> {
    let Some((outer, inner)) = far.split_first() else {
        let source = from.pointer(local.source_span)?;
        let destination = to.pointer(local.destination_span)?;
        // SAFETY: both pointers reach as far as the nest goes; the rest is the caller's promise.
        unsafe { local.copy(source, destination) };
        return Ok(());
    };
    let (mut from, mut to) = (from, to);
    for _ in 0..outer.extent {
        // SAFETY: passed on to the caller.
        unsafe { copy_nest(inner, local, (from, to)) }?;
        from = from.further(outer.source);
        to = to.further(outer.destination);
    }
    Ok(())
}

/// One loop of a local nest: how often, and how far each side goes.
#[derive(Clone, Copy, Debug)]
struct Stride {
    extent: usize,
    source: usize,
    destination: usize,
}

/// A nest that stays in one region on each side.
#[derive(Debug)]
pub(super) struct LocalNest {
    strides: Vec<Stride>,
    run: usize,
    source_span: u64,
    destination_span: u64,
}

/// Below this run length, elements are moved by typed loads and stores and transposed in tiles.
const SMALL_RUN_BYTES: usize = 16;

/// Side of a transposed tile, in elements.
const TILE: usize = 16;

impl LocalNest {
    fn new(loops: &[Loop], run_bytes: u64) -> Result<LocalNest, TransferError> {
        let too_large = |_| TransferError::OutsidePlan { region: 0 };
        let mut strides = Vec::with_capacity(loops.len());
        let (mut source_span, mut destination_span) = (run_bytes, run_bytes);
        for l in loops {
            source_span += (l.extent - 1) * l.source.bytes;
            destination_span += (l.extent - 1) * l.destination.bytes;
            strides.push(Stride {
                extent: usize::try_from(l.extent).map_err(too_large)?,
                source: usize::try_from(l.source.bytes).map_err(too_large)?,
                destination: usize::try_from(l.destination.bytes).map_err(too_large)?,
            });
        }
        let run = usize::try_from(run_bytes).map_err(too_large)?;
        if run <= SMALL_RUN_BYTES && strides.len() > 1 {
            // The two loops that matter to a transpose go innermost: the one that walks the
            // source most closely around the one that walks the destination most closely.
            let closest = |side: fn(&Stride) -> usize| {
                let all = strides.iter().enumerate();
                all.min_by_key(|(_, s)| side(s))
                    .map_or(0, |(index, _)| index)
            };
            let destination = strides.remove(closest(|s| s.destination));
            let closest_source = strides.iter().enumerate().min_by_key(|(_, s)| s.source);
            let source = closest_source.map_or(0, |(index, _)| index);
            let source = strides.remove(source);
            strides.push(source);
            strides.push(destination);
        }
        Ok(LocalNest {
            strides,
            run,
            source_span,
            destination_span,
        })
    }

    /// # Safety
    /// `source` and `destination` are valid for the spans of the nest, do not overlap in the units
    /// of the nest, and nobody else writes the former or touches the latter.
    unsafe fn copy(&self, source: *const u8, destination: *mut u8) {
        let strides = &self.strides;
        let elements: unsafe fn(&[Stride], *const u8, *mut u8) = match self.run {
            1 => copy_elements::<[u8; 1]>,
            2 => copy_elements::<[u8; 2]>,
            4 => copy_elements::<[u8; 4]>,
            8 => copy_elements::<[u8; 8]>,
            16 => copy_elements::<[u8; 16]>,
            run => {
                // SAFETY: passed on to the caller.
                unsafe { copy_runs(strides, run, source, destination) };
                return;
            }
        };
        // SAFETY: passed on to the caller; the elements have the size of the run.
        unsafe { elements(strides, source, destination) };
    }
}

/// # Safety
/// As for [`LocalNest::copy`].
unsafe fn copy_runs(strides: &[Stride], run: usize, source: *const u8, destination: *mut u8) {
    let Some((outer, inner)) = strides.split_first() else {
        // SAFETY: the run lies inside both spans, and they do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(source, destination, run) };
        return;
    };
    for i in 0..outer.extent {
        let source = source.wrapping_add(i * outer.source);
        let destination = destination.wrapping_add(i * outer.destination);
        // SAFETY: the inner strides from here on stay inside the spans of the whole nest.
        unsafe { copy_runs(inner, run, source, destination) };
    }
}

/// # Safety
/// As for [`LocalNest::copy`], with runs of the size of `T`.
unsafe fn copy_elements<T: Copy>(strides: &[Stride], source: *const u8, destination: *mut u8) {
    match strides {
        [] => {
            // SAFETY: one element on each side, inside the spans.
            unsafe { copy_element::<T>(source, destination) };
        }
        [row, column] => {
            // SAFETY: the tiles cover the two loops, nothing beyond them.
            unsafe { copy_tiles::<T>(*row, *column, source, destination) };
        }
        [outer, inner @ ..] => {
            for i in 0..outer.extent {
                let source = source.wrapping_add(i * outer.source);
                let destination = destination.wrapping_add(i * outer.destination);
                // SAFETY: the inner strides from here on stay inside the spans.
                unsafe { copy_elements::<T>(inner, source, destination) };
            }
        }
    }
}

/// # Safety
/// As for [`LocalNest::copy`], for two loops over elements of the size of `T`.
unsafe fn copy_tiles<T: Copy>(
    row: Stride,
    column: Stride,
    source: *const u8,
    destination: *mut u8,
) {
    for row_start in (0..row.extent).step_by(TILE) {
        let row_end = (row_start + TILE).min(row.extent);
        for column_start in (0..column.extent).step_by(TILE) {
            let column_end = (column_start + TILE).min(column.extent);
            for i in row_start..row_end {
                let source = source.wrapping_add(i * row.source);
                let destination = destination.wrapping_add(i * row.destination);
                for j in column_start..column_end {
                    let source = source.wrapping_add(j * column.source);
                    let destination = destination.wrapping_add(j * column.destination);
                    // SAFETY: `i` and `j` are inside their loops, so the element is inside the
                    // spans.
                    unsafe { copy_element::<T>(source, destination) };
                }
            }
        }
    }
}

/// # Safety
/// Both pointers are valid for one `T`, whatever their alignment.
unsafe fn copy_element<T: Copy>(source: *const u8, destination: *mut u8) {
    // SAFETY: the caller's promise; byte arrays have no invalid values and no alignment.
    let element = unsafe { source.cast::<T>().read_unaligned() };
    // SAFETY: as above.
    unsafe { destination.cast::<T>().write_unaligned(element) };
}
