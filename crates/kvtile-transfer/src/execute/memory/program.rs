//! Programs: the nests of a class of pairs with a kernel for each, worked out once and kept.
//!
//! ```text
//! Programs    kept with the nests of a class, which a planner keeps from plan to plan
//!   Program     of a manner: for each nest its parts, and others for whole lines
//!     Part        a nest, or what of its runs is cut alike
//!       Turn …      the loops around a cell: both ends of a cell stay in one region
//! ```
//!
//! Knows loops and kernels. Which pairs a program is run for, where they lie, and on how many
//! threads, is the business of `copy`.

use std::sync::OnceLock;

use kvtile_layout::{ClassNests, Loop, Nest, Step, broken};

use super::super::{
    kernel::LINE_BYTES,
    nest::{LocalNest, Manner, choose, is_local},
};
use crate::error::TransferError;

/// Longer runs are cut into pieces of this size before they are streamed, so that threads can share
/// them and what comes next can be asked for.
const SEGMENT_BYTES: u64 = 16 << 10;

/// Bytes that are read in order at least: a page.
const READ_BYTES: u64 = 4096;

/// Bytes of a cell, about: its bounds are checked once.
const CELL_BYTES: u64 = 256 << 10;

/// The programs of a class, kept with its nests: one for each manner.
#[derive(Debug, Default)]
struct Programs {
    of_manners: [OnceLock<Program>; Manner::COUNT],
}

/// The program for the nests of a class: the one that was made for them before, or a new one.
pub(super) fn program_of(nests: &ClassNests, manner: Manner) -> Result<&Program, TransferError> {
    let programs = nests.made::<Programs>();
    let kept = programs.and_then(|programs| programs.of_manners.get(manner.index()));
    // Nobody else keeps anything with nests, and every manner has its place.
    let kept = kept.ok_or(TransferError::Missing {
        what: "the program of manner",
        index: manner.index() as u64,
    })?;
    if let Some(program) = kept.get() {
        return Ok(program);
    }
    let program = Program::new(nests, manner)?;
    Ok(kept.get_or_init(|| program))
}

/// What copies a pair of a class.
#[derive(Debug)]
pub(super) struct Program {
    parts: Vec<Variants>,
}

/// The parts of a nest.
#[derive(Debug)]
struct Variants {
    anywhere: Vec<Part>,
    /// Where all runs start at a line of the destination as soon as the first one does, and it
    /// makes a difference.
    at_lines: Option<Vec<Part>>,
}

impl Program {
    fn new(nests: &[Nest], manner: Manner) -> Result<Program, TransferError> {
        let parts = nests.iter().map(|nest| {
            let is_line = |l: &Loop| l.destination.bytes.is_multiple_of(LINE_BYTES as u64);
            let keeps_lines = manner.streams() && nest.loops.iter().all(is_line);
            let at_lines = keeps_lines.then(|| parts_of(nest, manner, true));
            Ok(Variants {
                anywhere: parts_of(nest, manner, false)?,
                at_lines: at_lines.transpose()?,
            })
        });
        Ok(Program {
            parts: parts.collect::<Result<_, TransferError>>()?,
        })
    }

    /// The parts of nest `index`. `at_line` is asked whether its first run starts at a line of the
    /// destination; what it gets wrong costs time, nothing else.
    pub(super) fn parts(&self, index: usize, at_line: impl FnOnce() -> bool) -> &[Part] {
        match self.parts.get(index) {
            None => broken(format_args!(
                "nest {index} of a program of {} nests",
                self.parts.len()
            )),
            Some(Variants {
                at_lines: Some(parts),
                ..
            }) if at_line() => parts,
            Some(parts) => &parts.anywhere,
        }
    }
}

/// A nest, or a piece of its runs.
#[derive(Debug)]
pub(super) struct Part {
    /// Where it starts behind the nest, on both sides.
    pub(super) behind: Step,
    pub(super) turns: Vec<Turn>,
    pub(super) local: LocalNest,
    pub(super) cells_per_pair: u64,
}

/// A loop around cells.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    pub(super) source: Step,
    pub(super) destination: Step,
    /// Cells of one iteration.
    pub(super) cells: u64,
}

/// The parts of a nest: one, or two where a long run does not fall into equal segments.
fn parts_of(nest: &Nest, manner: Manner, at_lines: bool) -> Result<Vec<Part>, TransferError> {
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
        source: Step::bytes(segment),
        destination: Step::bytes(segment),
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

/// `run`: where the runs start behind those of the nest, and their bytes.
fn part(
    mut loops: Vec<Loop>,
    (behind, run_bytes): (u64, u64),
    manner: Manner,
    at_lines: bool,
) -> Result<Part, TransferError> {
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
    let mut turns: Vec<Turn> = Vec::with_capacity(loops.len());
    for l in loops.iter().rev() {
        turns.push(Turn {
            source: l.source,
            destination: l.destination,
            cells,
        });
        cells = cells.saturating_mul(l.extent);
    }
    turns.reverse();
    Ok(Part {
        behind: Step::bytes(behind),
        turns,
        local: LocalNest::new(&inner, kernel)?,
        cells_per_pair: cells,
    })
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
    let (outer, _) = loops.split_at_mut(outer);
    outer.sort_by_key(|l| std::cmp::Reverse((l.destination, l.source)));
}
