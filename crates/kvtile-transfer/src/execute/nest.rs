//! A nest that stays in one region on each side: its kernel, and the loops around it.
//!
//! ```text
//! loops of the plan   ->   loops around   [ kernel: a run | a transpose | a gather ]
//! ```
//!
//! This module knows strides and kernels; each execution passes the addresses.

use kvtile_layout::{AddressStep, LayoutError, Loop, ShapeError, broken};

use super::{
    kernel::{
        GatherLoop, LINE_BYTES, LevelKernels, LoopStride, MatrixTranspose, RunGather, SimdLevel,
        StoreKind,
    },
    pipeline::KernelPipeline,
};
use crate::error::TransferError;

/// The operation of one step of a nest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NestKernel {
    /// A run of this many bytes.
    Run(usize),
    /// A matrix of small elements.
    Transpose(MatrixTranspose),
    /// Small matrices that together are dense in the destination.
    Tile(MatrixTile),
    /// Small runs that are adjacent in the destination.
    Gather(RunGather),
}

impl NestKernel {
    /// Bytes that one step copies.
    pub(super) fn bytes(&self) -> usize {
        match self {
            NestKernel::Run(bytes) => *bytes,
            NestKernel::Transpose(matrix) => matrix.bytes(),
            NestKernel::Tile(tile) => tile.bytes,
            NestKernel::Gather(gather) => gather.bytes(),
        }
    }
}

/// Small matrices that fill one dense piece of the destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MatrixTile {
    pub(super) matrix: MatrixTranspose,
    /// The loops over the matrices, in no particular order.
    pub(super) loops: Vec<LoopStride>,
    /// Bytes of the dense piece.
    pub(super) bytes: usize,
}

impl MatrixTile {
    /// Calls `visit` with the offset of every matrix in the source and in the dense piece.
    pub(super) fn for_each(&self, visit: &mut impl FnMut(usize, usize)) {
        fn walk(
            loops: &[LoopStride],
            from: usize,
            to: usize,
            visit: &mut impl FnMut(usize, usize),
        ) {
            let Some((outer, inner)) = loops.split_first() else {
                return visit(from, to);
            };
            for i in 0..outer.extent {
                walk(
                    inner,
                    from + i * outer.source,
                    to + i * outer.destination,
                    visit,
                );
            }
        }
        walk(&self.loops, 0, 0, visit);
    }
}

/// The instruction set and the stores, which decide the kernel of a nest.
#[derive(Clone, Copy, Debug)]
pub(super) struct CopyManner {
    pub(super) kernels: LevelKernels,
    pub(super) stores: StoreKind,
}

impl CopyManner {
    /// Ordinary stores with the best kernels of the machine.
    pub(super) fn ordinary() -> CopyManner {
        CopyManner {
            kernels: LevelKernels::new(SimdLevel::of_machine()),
            stores: StoreKind::Ordinary,
        }
    }

    /// Number of manners.
    pub(super) const COUNT: usize = 2 * SimdLevel::COUNT;

    /// Its index among all manners.
    pub(super) fn index(self) -> usize {
        2 * self.kernels.level() as usize + usize::from(self.streams())
    }

    pub(super) fn streams(self) -> bool {
        self.stores == StoreKind::Streaming
    }
}

/// Maximum bytes that are staged in the cache before they are streamed: small enough that they fit
/// the level-1 cache together with their sources.
const STAGE_BYTES: usize = 16 << 10;

/// Maximum bytes that are staged where they cannot be split further.
pub(super) const STAGE_BYTES_MAX: usize = 64 << 10;

/// Smaller matrices are staged together with adjacent ones before they are streamed.
const SMALL_MATRIX_BYTES: usize = 1024;

/// Shorter runs are gathered before they are streamed, unless they are whole lines.
const GATHER_RUN_BYTES: usize = 1024;

/// Shorter runs are gathered with ordinary stores too, to avoid a hop for each.
const SMALL_RUN_BYTES: usize = 64;

/// Removes the loops of the kernel from `loops`, which are those of a whole nest. `aligned` states
/// that every run starts at a line of the destination.
pub(super) fn choose(
    loops: &mut Vec<Loop>,
    run_bytes: u64,
    aligned: bool,
    manner: CopyManner,
) -> Result<NestKernel, TransferError> {
    let run_bytes = merge(loops, run_bytes);
    let run = size(run_bytes)?;
    if let Some(matrix) = take_matrix(loops, run_bytes, manner)? {
        return Ok(match take_tile(loops, matrix, manner)? {
            Some(tile) => NestKernel::Tile(tile),
            None => NestKernel::Transpose(matrix),
        });
    }
    let whole_lines = aligned && run.is_multiple_of(LINE_BYTES);
    let gathers = match manner.stores {
        StoreKind::Ordinary => run < SMALL_RUN_BYTES,
        StoreKind::Streaming => run < GATHER_RUN_BYTES && !whole_lines,
    };
    if gathers && let Some(gather) = take_gather(loops, run)? {
        return Ok(NestKernel::Gather(gather));
    }
    Ok(NestKernel::Run(run))
}

/// Merges the loops that extend the run on both sides into the run; tiles of a nest may have such
/// loops.
fn merge(loops: &mut Vec<Loop>, mut run_bytes: u64) -> u64 {
    let continues =
        |l: &Loop, run| is_local(l) && (l.source.bytes, l.destination.bytes) == (run, run);
    while let Some(index) = loops.iter().position(|l| continues(l, run_bytes)) {
        run_bytes *= loops.remove(index).extent;
    }
    run_bytes
}

fn size(bytes: u64) -> Result<usize, TransferError> {
    let too_large = LayoutError::Shape(ShapeError::TooLarge {
        what: "an extent or a stride of a nest",
    });
    usize::try_from(bytes).map_err(|_| too_large.into())
}

pub(super) fn is_local(l: &Loop) -> bool {
    l.source.is_local() && l.destination.is_local()
}

/// The loop that is dense in the source and the one that is dense in the destination, as a matrix.
fn take_matrix(
    loops: &mut Vec<Loop>,
    run_bytes: u64,
    manner: CopyManner,
) -> Result<Option<MatrixTranspose>, TransferError> {
    if !MatrixTranspose::takes(run_bytes) {
        return Ok(None);
    }
    let column = |l: &Loop| is_local(l) && l.source.bytes == run_bytes;
    let row = |l: &Loop| is_local(l) && l.destination.bytes == run_bytes;
    let (Some(column), Some(row)) = (loops.iter().position(column), loops.iter().position(row))
    else {
        return Ok(None);
    };
    let (Some(columns), Some(rows)) = (loops.get(column).copied(), loops.get(row).copied()) else {
        broken(format_args!("loops {column} and {row} of {}", loops.len()))
    };
    let mut matrix = MatrixTranspose {
        element: size(run_bytes)?,
        rows: size(rows.extent)?,
        columns: size(columns.extent)?,
        source_stride: size(rows.source.bytes)?,
        destination_stride: size(columns.destination.bytes)?,
    };
    let keep = |index: usize| index != column && index != row;
    let mut index = 0;
    loops.retain(|_| {
        index += 1;
        keep(index - 1)
    });
    if manner.streams() {
        cut(&mut matrix, loops, (rows, columns));
    }
    Ok(Some(matrix))
}

/// The loops that, with a small matrix, form a dense piece of the destination that is worth
/// streaming.
fn take_tile(
    loops: &mut Vec<Loop>,
    matrix: MatrixTranspose,
    manner: CopyManner,
) -> Result<Option<MatrixTile>, TransferError> {
    let row_bytes = matrix.destination_row_bytes();
    let is_dense = matrix.destination_stride == row_bytes;
    let is_small = match is_dense {
        true => matrix.bytes() < SMALL_MATRIX_BYTES,
        false => row_bytes < LINE_BYTES,
    };
    if !manner.streams() || !is_small {
        return Ok(None);
    }
    let mut left = loops.clone();
    let mut tile = MatrixTile {
        matrix,
        loops: Vec::new(),
        bytes: row_bytes,
    };
    let mut has_columns = false;
    loop {
        if !has_columns && matrix.destination_stride == tile.bytes {
            has_columns = true;
            tile.bytes *= matrix.columns;
            continue;
        }
        let continues = |l: &Loop| is_local(l) && l.destination.bytes == tile.bytes as u64;
        let Some(index) = left.iter().position(continues) else {
            break;
        };
        let Some(next) = left.get(index) else {
            broken(format_args!("loop {index} of {}", left.len()))
        };
        let extent = size(next.extent)?;
        if tile.bytes.saturating_mul(extent) > STAGE_BYTES {
            break;
        }
        tile.loops.push(LoopStride {
            extent,
            source: size(next.source.bytes)?,
            destination: tile.bytes,
        });
        tile.bytes *= extent;
        left.remove(index);
    }
    if !has_columns || tile.loops.is_empty() || tile.bytes > STAGE_BYTES {
        return Ok(None);
    }
    *loops = left;
    Ok(Some(tile))
}

/// Splits a matrix that is too large for the stage into equal smaller ones, and adds the loops over
/// them to `loops`.
fn cut(matrix: &mut MatrixTranspose, loops: &mut Vec<Loop>, (rows, columns): (Loop, Loop)) {
    // Columns first, so that destination rows stay long.
    let wanted = STAGE_BYTES / matrix.destination_row_bytes().max(1);
    let kept = divisor(matrix.columns, wanted);
    let part = |whole: Loop, kept: usize| Loop {
        extent: whole.extent / kept as u64,
        source: times(whole.source, kept),
        destination: times(whole.destination, kept),
        axes: whole.axes,
    };
    if kept < matrix.columns && kept > 0 {
        loops.push(part(columns, kept));
        matrix.columns = kept;
    }
    let wanted = STAGE_BYTES / matrix.source_row_bytes().max(1);
    let kept = divisor(matrix.rows, wanted);
    if kept < matrix.rows && kept * matrix.element >= LINE_BYTES {
        loops.push(part(rows, kept));
        matrix.rows = kept;
    }
}

/// The step of `count` iterations of a loop that has more of them, all inside its layout.
fn times(step: AddressStep, count: usize) -> AddressStep {
    let Some(steps) = step.times(count as u64) else {
        broken(format_args!("{count} steps of {step:?} in a loop"))
    };
    steps
}

/// The largest divisor of `extent` up to `max`, or `extent` itself if that divisor is 1.
fn divisor(extent: usize, max: usize) -> usize {
    if extent <= max {
        return extent;
    }
    let best = (2..=max).rev().find(|d| extent.is_multiple_of(*d));
    best.unwrap_or(extent)
}

/// The loops that extend the destination run after run, up to the size of the stage.
fn take_gather(loops: &mut Vec<Loop>, run: usize) -> Result<Option<RunGather>, TransferError> {
    let mut gather = RunGather {
        run,
        loops: Vec::new(),
    };
    loop {
        let bytes = gather.bytes();
        let next = |l: &Loop| is_local(l) && l.destination.bytes == bytes as u64;
        let Some(index) = loops.iter().position(next) else {
            break;
        };
        let whole = loops.remove(index);
        let extent = size(whole.extent)?;
        let kept = divisor(extent, STAGE_BYTES / bytes);
        if kept.saturating_mul(bytes) > STAGE_BYTES {
            loops.insert(index, whole);
            break;
        }
        let inner = GatherLoop {
            extent: kept,
            source_stride: size(whole.source.bytes)?,
        };
        gather.loops.insert(0, inner);
        if kept < extent {
            loops.insert(
                index,
                Loop {
                    extent: whole.extent / kept as u64,
                    source: times(whole.source, kept),
                    destination: times(whole.destination, kept),
                    axes: whole.axes,
                },
            );
            break;
        }
    }
    Ok((!gather.loops.is_empty()).then_some(gather))
}

/// A kernel and the loops around it that stay in one region on each side.
#[derive(Debug)]
pub(super) struct LocalNest {
    pub(super) strides: Vec<LoopStride>,
    pub(super) kernel: NestKernel,
    /// Bytes from the first to the last one that it reads.
    pub(super) source_span: u64,
    /// Bytes from the first to the last one that it writes.
    pub(super) destination_span: u64,
}

impl LocalNest {
    /// `loops`, which stay in one region, around `kernel`.
    pub(super) fn new(loops: &[Loop], kernel: NestKernel) -> Result<LocalNest, TransferError> {
        let (source, destination) = spans(&kernel);
        let (mut source_span, mut destination_span) = (source as u64, destination as u64);
        let mut strides = Vec::with_capacity(loops.len());
        for l in loops {
            source_span += (l.extent - 1) * l.source.bytes;
            destination_span += (l.extent - 1) * l.destination.bytes;
            strides.push(LoopStride {
                extent: size(l.extent)?,
                source: size(l.source.bytes)?,
                destination: size(l.destination.bytes)?,
            });
        }
        Ok(LocalNest {
            strides,
            kernel,
            source_span,
            destination_span,
        })
    }

    /// Bytes that it copies.
    pub(super) fn bytes(&self) -> usize {
        let strides = self.strides.iter();
        strides.fold(self.kernel.bytes(), |bytes, s| bytes * s.extent)
    }

    /// Copies the bytes of the nest, or leaves some to later steps of `pipeline`, which is for this
    /// nest's kernel.
    ///
    /// # Safety
    /// `source` and `destination` are valid for the spans of the nest, do not overlap in the units
    /// of the nest, and nothing else writes the former or reads or writes the latter until the
    /// pipeline has been drained.
    pub(super) unsafe fn copy(
        &self,
        source: *const u8,
        destination: *mut u8,
        pipeline: &mut KernelPipeline<'_>,
    ) {
        // SAFETY: passed on to the caller.
        unsafe { walk(&self.strides, source, destination, pipeline) }
    }
}

/// Bytes from the first to the last one that a kernel reads, and that it writes.
fn spans(kernel: &NestKernel) -> (usize, usize) {
    match kernel {
        NestKernel::Run(bytes) => (*bytes, *bytes),
        NestKernel::Transpose(matrix) => matrix.spans(),
        NestKernel::Tile(tile) => {
            let loops = tile.loops.iter();
            let (source, _) = tile.matrix.spans();
            let reach = loops.map(|l| (l.extent - 1) * l.source).sum::<usize>();
            (source + reach, tile.bytes)
        }
        NestKernel::Gather(gather) => {
            let loops = gather.loops.iter();
            let source = loops.fold(gather.run, |span, l| {
                span + (l.extent - 1) * l.source_stride
            });
            (source, gather.bytes())
        }
    }
}

/// # Safety
/// As for [`LocalNest::copy`], for the strides given.
unsafe fn walk(
    strides: &[LoopStride],
    source: *const u8,
    destination: *mut u8,
    pipeline: &mut KernelPipeline<'_>,
) {
    match strides {
        [] => {
            // SAFETY: passed on to the caller.
            unsafe { pipeline.push(source, destination) };
        }
        [last] => {
            // SAFETY: passed on to the caller.
            unsafe { pipeline.push_loop(*last, source, destination) };
        }
        [outer, inner @ ..] => {
            for i in 0..outer.extent {
                let source = source.wrapping_add(i * outer.source);
                let destination = destination.wrapping_add(i * outer.destination);
                // SAFETY: the inner strides from here on stay inside the spans of the whole nest.
                unsafe { walk(inner, source, destination, pipeline) };
            }
        }
    }
}
