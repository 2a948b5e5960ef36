//! Copies between memories: programs bound to the pairs of a plan, on one thread or several.
//!
//! ```text
//! job    a part of a program, for all pairs of its class
//!   cell   one iteration of the outer loops for one block pair; both ends stay in one region
//!     chunk  consecutive cells that a thread takes at a time
//! ```
//!
//! This module knows regions, pairs and threads. Kernels copy the bytes, and leases exclude other
//! access to them.

use std::{
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
};

use kvtile_layout::{AddressStep, CopyPlan, Location, Nest, PlanClass};
use parking_lot::Mutex;

use super::{
    super::{
        bound::BoundLayout,
        kernel::LINE_BYTES,
        nest::CopyManner,
        pipeline::{CopyScratch, KernelPipeline},
    },
    pool::{CopyPool, CopyShare},
    program::{CellLoop, ClassProgram, NestPart, program_of},
};
use crate::error::{CopyError, TransferError};

/// Executes all of `plan`.
///
/// # Safety
/// For the whole call nothing else writes the source units or reads or writes the destination units
/// of the plan, and no source byte is a destination byte.
///
/// # Errors
/// A plan that does not fit the layouts. Bytes outside their regions are never touched.
pub(in super::super) unsafe fn copy_plan(
    plan: &CopyPlan,
    sides: (&BoundLayout, &BoundLayout),
    manner: CopyManner,
    share: Option<(&CopyPool, CopyShare)>,
) -> Result<(), TransferError> {
    let binding = PlanBinding {
        plan,
        sides,
        manner,
    };
    let Some((pool, share)) = share else {
        let mut scratch = CopyScratch::default();
        for class in plan.classes() {
            for job in binding.jobs(class, program_of(&class.nests, manner)?) {
                // SAFETY: passed on to the caller.
                unsafe { job.copy(&binding, 0..job.cells(), &mut scratch) }?;
            }
        }
        return Ok(());
    };
    let mut jobs = Vec::new();
    for class in plan.classes() {
        jobs.extend(binding.jobs(class, program_of(&class.nests, manner)?));
    }
    // SAFETY: passed on to the caller: every chunk is taken once.
    unsafe { binding.share(&jobs, pool, share) }
}

/// A plan with its layouts and manner.
struct PlanBinding<'p> {
    plan: &'p CopyPlan,
    sides: (&'p BoundLayout, &'p BoundLayout),
    manner: CopyManner,
}

/// A part of a program, for the pairs of its class.
#[derive(Clone, Copy)]
struct CopyJob<'p> {
    class: &'p PlanClass,
    nest: &'p Nest,
    part: &'p NestPart,
}

impl<'p> PlanBinding<'p> {
    fn jobs(
        &self,
        class: &'p PlanClass,
        program: &'p ClassProgram,
    ) -> impl Iterator<Item = CopyJob<'p>> + use<'_, 'p> {
        class
            .nests
            .iter()
            .enumerate()
            .flat_map(move |(index, nest)| {
                let parts = program.parts(index, || self.is_at_line(class, nest));
                parts.iter().map(move |part| CopyJob { class, nest, part })
            })
    }

    /// Whether the nest starts at a line of the destination; checks only the first pairs.
    fn is_at_line(&self, class: &PlanClass, nest: &Nest) -> bool {
        class.pairs.iter().take(2).all(|pair| {
            let (_, start) = self.plan.start(nest, pair);
            let pointer = self.sides.1.pointer(start, 0);
            pointer.is_ok_and(|p| p.addr().is_multiple_of(LINE_BYTES))
        })
    }

    /// Executes all jobs on the threads of `pool`.
    ///
    /// # Safety
    /// As for [`copy_plan`].
    unsafe fn share(
        &self,
        jobs: &[CopyJob<'p>],
        pool: &CopyPool,
        share: CopyShare,
    ) -> Result<(), TransferError> {
        let chunks: Vec<(&CopyJob<'_>, Range<u64>)> = jobs
            .iter()
            .flat_map(|job| {
                let bytes = (job.part.local.bytes() as u64).max(1);
                let each = (share.chunk_bytes / bytes).max(1);
                let cells = job.cells();
                (0..cells.div_ceil(each)).map(move |index| {
                    let start = index * each;
                    (job, start..cells.min(start.saturating_add(each)))
                })
            })
            .collect();
        let next = AtomicU64::new(0);
        let failed = Mutex::new(None);
        pool.run(share.threads, &|| {
            let mut scratch = CopyScratch::default();
            let take = || {
                let index = next.fetch_add(1, Ordering::Relaxed);
                usize::try_from(index)
                    .ok()
                    .and_then(|index| chunks.get(index))
            };
            while let Some((job, cells)) = take() {
                // SAFETY: passed on to the caller; the counter gives every chunk to one thread.
                if let Err(error) = unsafe { job.copy(self, cells.clone(), &mut scratch) } {
                    *failed.lock() = Some(error);
                }
            }
        });
        match failed.into_inner() {
            None => Ok(()),
            Some(error) => Err(error),
        }
    }
}

impl CopyJob<'_> {
    fn cells(&self) -> u64 {
        let pairs = self.class.pairs.len() as u64;
        self.part.cells_per_pair.saturating_mul(pairs)
    }

    /// Copies the bytes of `cells`.
    ///
    /// # Safety
    /// As for [`copy_plan`], for the units of these cells.
    unsafe fn copy(
        &self,
        binding: &PlanBinding<'_>,
        cells: Range<u64>,
        scratch: &mut CopyScratch,
    ) -> Result<(), TransferError> {
        let (from, to) = binding.sides;
        let (part, local) = (self.part, &self.part.local);
        let each = part.cells_per_pair.max(1);
        let mut pipeline = KernelPipeline::new(&local.kernel, binding.manner, scratch)?;
        let mut cell = cells.start % each;
        let mut left = cells.end.saturating_sub(cells.start);
        let first = cells.start / each;
        let first = usize::try_from(first).map_err(|_| {
            TransferError::Copy(CopyError::Missing {
                what: "pair",
                index: first,
            })
        })?;
        let mut checked = Ok(());
        for pair in self.class.pairs.iter().skip(first) {
            if left == 0 || checked.is_err() {
                break;
            }
            let count = left.min(each - cell);
            let (source, destination) = binding.plan.start(self.nest, pair);
            let start = (
                further(source, part.behind, 1),
                further(destination, part.behind, 1),
            );
            let mut visit = |source, destination| {
                let source = from.pointer(source, local.source_span)?;
                let destination = to.pointer(destination, local.destination_span)?;
                // SAFETY: both pointers are valid for the spans of the nest; the caller guarantees
                // the rest.
                unsafe { local.copy(source, destination, &mut pipeline) };
                Ok(())
            };
            checked = for_each_cell(&part.turns, start, cell..cell + count, &mut visit);
            (cell, left) = (0, left - count);
        }
        // SAFETY: as above: the steps in the pipeline were checked.
        unsafe { pipeline.drain() };
        match (checked, left) {
            (Ok(()), 1..) => Err(TransferError::Copy(CopyError::Missing {
                what: "pairs for the last cells:",
                index: left,
            })),
            (checked, _) => checked,
        }
    }
}

/// Calls `visit` with both ends of a range of the cells that `turns` iterate over.
fn for_each_cell(
    turns: &[CellLoop],
    (source, destination): (Location, Location),
    cells: Range<u64>,
    visit: &mut impl FnMut(Location, Location) -> Result<(), TransferError>,
) -> Result<(), TransferError> {
    let Some((outer, inner)) = turns.split_first() else {
        return visit(source, destination);
    };
    let (first, end) = match outer.cells {
        1 => (cells.start, cells.end),
        each => (cells.start / each, cells.end.div_ceil(each)),
    };
    for index in first..end {
        let before = index * outer.cells;
        let cells = cells.start.saturating_sub(before)..outer.cells.min(cells.end - before);
        let start = (
            further(source, outer.source, index),
            further(destination, outer.destination, index),
        );
        for_each_cell(inner, start, cells, visit)?;
    }
    Ok(())
}

fn further(from: Location, step: AddressStep, count: u64) -> Location {
    Location {
        region: from.region + count * step.regions,
        offset: from.offset + count * step.bytes,
    }
}
