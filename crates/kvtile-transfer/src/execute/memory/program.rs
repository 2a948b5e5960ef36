//! Programs: the nests of a class of pairs with a kernel for each, compiled once and cached.
//!
//! ```text
//! MannerPrograms   cached with the nests of a class, which a planner keeps from plan to plan
//!   ClassProgram     for a manner: the parts of each nest, with variants for whole lines
//!     NestPart         a nest, or a range of its runs that is split alike
//!       CellLoop …       the loops around a cell: both ends of a cell stay in one region
//! ```
//!
//! This module knows loops and kernels. `copy` decides for which pairs a program runs, at which
//! addresses, and on how many threads.

use std::sync::OnceLock;

use kvtile_layout::{AddressStep, ClassNests, Loop, Nest, broken};

use super::super::{
    kernel::LINE_BYTES,
    nest::{CopyManner, LocalNest, choose, is_local},
};
use crate::error::{CopyError, TransferError};

/// Longer runs are split into segments of this size before they are streamed, so that threads can
/// share them and prefetch the next one.
const SEGMENT_BYTES: u64 = 16 << 10;

/// Minimum number of bytes that are read in order: a page.
const READ_BYTES: u64 = 4096;

/// Approximate bytes of a cell, whose bounds are checked once.
const CELL_BYTES: u64 = 256 << 10;

/// The programs of a class, cached with its nests: one for each manner.
#[derive(Debug, Default)]
struct MannerPrograms {
    of_manners: [OnceLock<ClassProgram>; CopyManner::COUNT],
}

/// The program for the nests of a class, from the cache or new.
pub(super) fn program_of(
    nests: &ClassNests,
    manner: CopyManner,
) -> Result<&ClassProgram, TransferError> {
    let programs = nests.made::<MannerPrograms>();
    let kept = programs.and_then(|programs| programs.of_manners.get(manner.index()));
    // No other code attaches data to nests, and every manner has an entry.
    let kept = kept.ok_or(TransferError::Copy(CopyError::Missing {
        what: "the program of manner",
        index: manner.index() as u64,
    }))?;
    if let Some(program) = kept.get() {
        return Ok(program);
    }
    let program = ClassProgram::new(nests, manner)?;
    Ok(kept.get_or_init(|| program))
}

/// The compiled form of a class, which copies any of its pairs.
#[derive(Debug)]
pub(super) struct ClassProgram {
    parts: Vec<PartVariants>,
}

/// The variants of the parts of a nest.
#[derive(Debug)]
struct PartVariants {
    anywhere: Vec<NestPart>,
    /// For runs that all start at a line of the destination if the first one does. `None` where
    /// that makes no difference.
    at_lines: Option<Vec<NestPart>>,
}

impl ClassProgram {
    fn new(nests: &[Nest], manner: CopyManner) -> Result<ClassProgram, TransferError> {
        let parts = nests.iter().map(|nest| {
            let is_line = |l: &Loop| l.destination.bytes.is_multiple_of(LINE_BYTES as u64);
            let keeps_lines = manner.streams() && nest.loops.iter().all(is_line);
            let at_lines = keeps_lines.then(|| parts_of(nest, manner, true));
            Ok(PartVariants {
                anywhere: parts_of(nest, manner, false)?,
                at_lines: at_lines.transpose()?,
            })
        });
        Ok(ClassProgram {
            parts: parts.collect::<Result<_, TransferError>>()?,
        })
    }

    /// The parts of nest `index`. `at_line` returns whether its first run starts at a line of the
    /// destination; a wrong answer only costs time.
    pub(super) fn parts(&self, index: usize, at_line: impl FnOnce() -> bool) -> &[NestPart] {
        match self.parts.get(index) {
            None => broken(format_args!(
                "nest {index} of a program of {} nests",
                self.parts.len()
            )),
            Some(PartVariants {
                at_lines: Some(parts),
                ..
            }) if at_line() => parts,
            Some(parts) => &parts.anywhere,
        }
    }
}

/// A nest, or a segment of its runs.
#[derive(Debug)]
pub(super) struct NestPart {
    /// Its offset from the start of the nest, on both sides.
    pub(super) behind: AddressStep,
    pub(super) turns: Vec<CellLoop>,
    pub(super) local: LocalNest,
    pub(super) cells_per_pair: u64,
}

/// A loop around cells.
#[derive(Clone, Copy, Debug)]
pub(super) struct CellLoop {
    pub(super) source: AddressStep,
    pub(super) destination: AddressStep,
    /// Cells per iteration.
    pub(super) cells: u64,
}

/// The parts of a nest: one, or two if a long run has a remainder after equal segments.
fn parts_of(
    nest: &Nest,
    manner: CopyManner,
    at_lines: bool,
) -> Result<Vec<NestPart>, TransferError> {
    let segment = match manner.streams() {
        true => SEGMENT_BYTES,
        false => CELL_BYTES,
    };
    if nest.run_bytes <= 2 * segment {
        let run = (0, nest.run_bytes);
        return Ok(vec![part(nest.loops.clone(), run, manner, at_lines)?]);
    }
    let mut loops = nest.loops.clone();
    loops.push(Loop {
        extent: nest.run_bytes / segment,
        source: AddressStep::bytes(segment),
        destination: AddressStep::bytes(segment),
        axes: nest.run_axes,
    });
    let mut parts = vec![part(loops, (0, segment), manner, at_lines)?];
    let rest = nest.run_bytes % segment;
    if rest > 0 {
        let run = (nest.run_bytes - rest, rest);
        parts.push(part(nest.loops.clone(), run, manner, at_lines)?);
    }
    Ok(parts)
}

/// `run` is the offset of the runs from those of the nest, and their length.
fn part(
    mut loops: Vec<Loop>,
    (behind, run_bytes): (u64, u64),
    manner: CopyManner,
    at_lines: bool,
) -> Result<NestPart, TransferError> {
    let kernel = choose(&mut loops, run_bytes, at_lines, manner)?;
    if manner.streams() {
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
    let mut cells = 1u64;
    let mut turns: Vec<CellLoop> = Vec::with_capacity(loops.len());
    for l in loops.iter().rev() {
        turns.push(CellLoop {
            source: l.source,
            destination: l.destination,
            cells,
        });
        cells = cells.saturating_mul(l.extent);
    }
    turns.reverse();
    Ok(NestPart {
        behind: AddressStep::bytes(behind),
        turns,
        local: LocalNest::new(&inner, kernel)?,
        cells_per_pair: cells,
    })
}

/// Orders loops around steps of `bytes` for streaming. The inner loops read at least a page of the
/// source in order. The outer loops write the destination in order, so that its pages are filled
/// one after the other.
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
    let (outer, _) = loops.split_at_mut(outer);
    outer.sort_by_key(|l| std::cmp::Reverse((l.destination, l.source)));
}
