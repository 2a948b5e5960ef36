//! Memory to memory: a plan as cells, and cells on one thread or several.
//!
//! ```text
//! part   a nest of a class, with its kernel          the order of its loops is the source's
//!   cell   one block pair, one turn of the outer loops: both ends stay in one region
//!     chunk  neighbouring cells, as many as a thread takes at a time
//! ```
//!
//! Knows regions, pairs and threads; the bytes are the business of kernels, and that nobody else
//! touches them meanwhile is the business of leases.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use kvtile_layout::{CopyPlan, Location, Loop, Nest, PlanClass, Step};

use super::{
    bound::BoundLayout,
    direct::{self, is_plain},
    kernel::LINE_BYTES,
    nest::{LocalNest, Manner, choose, is_local},
    pipeline::{Pipeline, Scratch},
    pool::CopyPool,
};
use crate::error::TransferError;

/// Longer runs are cut into pieces of this size, so that threads can share them and what comes
/// next can be asked for.
const SEGMENT_BYTES: u64 = 16 << 10;

/// Runs up to this size are left whole.
const WHOLE_RUN_BYTES: u64 = 2 * SEGMENT_BYTES;

/// Bytes that are read in order at least: a page.
const READ_BYTES: u64 = 4096;

/// Bytes of a cell, about: its bounds are checked once.
const CELL_BYTES: u64 = 256 << 10;

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
    sides: (&BoundLayout, &BoundLayout),
    manner: Manner,
    pool: Option<&CopyPool>,
) -> Result<(), TransferError> {
    let Some(pool) = pool else {
        let mut program = Program::empty(plan, sides, manner);
        for class in plan.classes() {
            for nest in class.nests.iter() {
                if is_plain(nest, manner) {
                    // SAFETY: passed on to the caller.
                    unsafe { direct::copy(plan, (class, nest), sides, manner.kernels) }?;
                } else {
                    program.add(class, nest)?;
                }
            }
        }
        let mut scratch = Scratch::default();
        return program.parts.iter().try_for_each(|part| {
            // SAFETY: passed on to the caller.
            unsafe { part.copy(&program, 0..part.cells, &mut scratch) }
        });
    };
    let program = Program::new(plan, sides, manner)?;
    // SAFETY: passed on to the caller: every chunk is taken once.
    unsafe { program.share(pool, plan.bytes()) }
}

/// A plan with a kernel for each of its nests.
struct Program<'p> {
    plan: &'p CopyPlan,
    sides: (&'p BoundLayout, &'p BoundLayout),
    manner: Manner,
    parts: Vec<Part<'p>>,
}

/// A nest of a class, or a piece of its runs.
struct Part<'p> {
    class: &'p PlanClass,
    nest: &'p Nest,
    /// Where it starts behind the nest, on both sides.
    behind: u64,
    outer: Vec<Loop>,
    local: LocalNest,
    cells_per_pair: u64,
    cells: u64,
}

impl<'p> Program<'p> {
    fn empty(
        plan: &'p CopyPlan,
        sides: (&'p BoundLayout, &'p BoundLayout),
        manner: Manner,
    ) -> Program<'p> {
        Program {
            plan,
            sides,
            manner,
            parts: Vec::new(),
        }
    }

    /// All of a plan.
    fn new(
        plan: &'p CopyPlan,
        sides: (&'p BoundLayout, &'p BoundLayout),
        manner: Manner,
    ) -> Result<Program<'p>, TransferError> {
        let mut program = Program::empty(plan, sides, manner);
        for class in plan.classes() {
            for nest in class.nests.iter() {
                program.add(class, nest)?;
            }
        }
        Ok(program)
    }

    /// The parts of a nest: one, or two where a long run does not fall into equal segments.
    fn add(&mut self, class: &'p PlanClass, nest: &'p Nest) -> Result<(), TransferError> {
        if nest.run_bytes <= WHOLE_RUN_BYTES {
            return self.add_part(class, nest, nest.loops.clone(), (0, nest.run_bytes));
        }
        let mut loops = nest.loops.clone();
        loops.push(Loop {
            extent: nest.run_bytes / SEGMENT_BYTES,
            source: Step::bytes(SEGMENT_BYTES),
            destination: Step::bytes(SEGMENT_BYTES),
            axes: nest.run_axes,
        });
        self.add_part(class, nest, loops, (0, SEGMENT_BYTES))?;
        match nest.run_bytes % SEGMENT_BYTES {
            0 => Ok(()),
            rest => {
                let run = (nest.run_bytes - rest, rest);
                self.add_part(class, nest, nest.loops.clone(), run)
            }
        }
    }

    /// `run`: where the runs start behind those of the nest, and their bytes.
    fn add_part(
        &mut self,
        class: &'p PlanClass,
        nest: &'p Nest,
        mut loops: Vec<Loop>,
        (behind, run_bytes): (u64, u64),
    ) -> Result<(), TransferError> {
        let aligned = self.manner.streams() && self.is_aligned(class, nest, behind);
        let kernel = choose(&mut loops, run_bytes, aligned, self.manner)?;
        if self.manner.streams() {
            order(&mut loops, kernel.bytes() as u64);
        }
        let mut bytes = kernel.bytes() as u64;
        let mut local = loops.len();
        for l in loops.iter().rev() {
            let more = bytes.saturating_mul(l.extent);
            if !is_local(l) || more > CELL_BYTES {
                break;
            }
            bytes = more;
            local -= 1;
        }
        let inner = loops.split_off(local);
        let turns = loops.iter().fold(1u64, |n, l| n.saturating_mul(l.extent));
        self.parts.push(Part {
            class,
            nest,
            behind,
            local: LocalNest::new(&inner, kernel)?,
            outer: loops,
            cells_per_pair: turns,
            cells: turns.saturating_mul(class.pairs.len() as u64),
        });
        Ok(())
    }

    /// Whether every run of the nest starts at a line of the destination, as far as the first
    /// pairs tell: what is wrong here costs time, nothing else.
    fn is_aligned(&self, class: &PlanClass, nest: &Nest, behind: u64) -> bool {
        let line = LINE_BYTES as u64;
        let starts = class.pairs.iter().take(2).all(|pair| {
            let (_, start) = self.plan.start(nest, pair);
            let pointer = self
                .sides
                .1
                .pointer(further(start, Step::bytes(behind), 1), 0);
            pointer.is_ok_and(|p| p.addr().is_multiple_of(LINE_BYTES))
        });
        let is_line = |l: &Loop| l.destination.bytes.is_multiple_of(line);
        starts && nest.loops.iter().all(is_line)
    }

    /// Moves everything on the threads of `pool`.
    ///
    /// # Safety
    /// As for [`copy_plan`].
    unsafe fn share(&self, pool: &CopyPool, bytes: u64) -> Result<(), TransferError> {
        let threads = pool.threads_for(bytes);
        let wanted = pool.chunk_bytes(bytes);
        let chunks: Vec<(&Part<'_>, std::ops::Range<u64>)> = self
            .parts
            .iter()
            .flat_map(|part| {
                let each = (wanted / (part.local.bytes() as u64).max(1)).max(1);
                let count = part.cells.div_ceil(each);
                (0..count).map(move |index| {
                    let start = index * each;
                    (part, start..part.cells.min(start.saturating_add(each)))
                })
            })
            .collect();
        let next = AtomicU64::new(0);
        let failed = Mutex::new(None);
        pool.run(threads, &|| {
            let mut scratch = Scratch::default();
            let take = || {
                let index = next.fetch_add(1, Ordering::Relaxed);
                usize::try_from(index)
                    .ok()
                    .and_then(|index| chunks.get(index))
            };
            while let Some((part, cells)) = take() {
                // SAFETY: passed on to the caller; the counter gives every chunk to one thread.
                if let Err(error) = unsafe { part.copy(self, cells.clone(), &mut scratch) } {
                    *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                }
            }
        });
        match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            None => Ok(()),
            Some(error) => Err(error),
        }
    }
}

impl Part<'_> {
    /// Moves the bytes of `cells`.
    ///
    /// # Safety
    /// As for [`copy_plan`], for the units of these cells.
    unsafe fn copy(
        &self,
        program: &Program<'_>,
        cells: std::ops::Range<u64>,
        scratch: &mut Scratch,
    ) -> Result<(), TransferError> {
        let (from, to) = program.sides;
        let mut pipeline = Pipeline::new(&self.local.kernel, program.manner, scratch)?;
        let pair = cells.start / self.cells_per_pair.max(1);
        let mut turn = cells.start % self.cells_per_pair.max(1);
        let mut left = cells.end.saturating_sub(cells.start);
        let first = usize::try_from(pair).unwrap_or(usize::MAX);
        let mut checked = Ok(());
        for pair in self.class.pairs.iter().skip(first) {
            if left == 0 {
                break;
            }
            let count = left.min(self.cells_per_pair - turn);
            let (source, destination) = program.plan.start(self.nest, pair);
            let behind = Step::bytes(self.behind);
            let start = (further(source, behind, 1), further(destination, behind, 1));
            checked = self.for_each_turn(start, turn..turn + count, |source, destination| {
                let source = from.pointer(source, self.local.source_span)?;
                let destination = to.pointer(destination, self.local.destination_span)?;
                // SAFETY: both pointers reach as far as the nest goes; the rest is the caller's
                // promise.
                unsafe { self.local.copy(source, destination, &mut pipeline) };
                Ok(())
            });
            if checked.is_err() {
                break;
            }
            (turn, left) = (0, left - count);
        }
        // SAFETY: as above: what is in the pipeline was checked.
        unsafe { pipeline.drain() };
        checked
    }

    /// Calls `visit` with both ends of some turns of the outer loops.
    fn for_each_turn(
        &self,
        start: (Location, Location),
        turns: std::ops::Range<u64>,
        mut visit: impl FnMut(Location, Location) -> Result<(), TransferError>,
    ) -> Result<(), TransferError> {
        for turn in turns {
            let (mut source, mut destination) = start;
            let mut rest = turn;
            for l in self.outer.iter().rev() {
                let index = rest % l.extent;
                rest /= l.extent;
                source = further(source, l.source, index);
                destination = further(destination, l.destination, index);
            }
            visit(source, destination)?;
        }
        Ok(())
    }
}

/// Orders loops around steps of `bytes` for streaming: inside, the source is read in order for a
/// page at least; outside, the destination is written in order, so that its pages are filled one
/// after the other.
fn order(loops: &mut [Loop], mut bytes: u64) {
    loops.sort_by_key(|l| std::cmp::Reverse((l.source, l.destination)));
    let mut outer = loops.len();
    for l in loops.iter().rev() {
        if bytes >= READ_BYTES {
            break;
        }
        bytes = bytes.saturating_mul(l.extent);
        outer -= 1;
    }
    if let Some(outer) = loops.get_mut(..outer) {
        outer.sort_by_key(|l| std::cmp::Reverse((l.destination, l.source)));
    }
}

fn further(from: Location, step: Step, count: u64) -> Location {
    Location {
        region: from.region + count * step.regions,
        offset: from.offset + count * step.bytes,
    }
}
