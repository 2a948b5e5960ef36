//! A software pipeline of kernel steps: it prefetches the next steps while it executes one.
//!
//! ```text
//! nest  ->  hops [ now | prefetch ]  ->  kernel  ->  destination
//!                                          |           ^
//!                                          +-> stage --+   a dense piece, before it is streamed
//! ```

use kvtile_layout::broken;
use kvtile_memory::AlignedBuffer;

use super::{
    kernel::{
        CopyHop, LINE_BYTES, LevelKernels, LoopStride, MatrixTranspose, RunGather, StoreKind,
    },
    nest::{CopyManner, MatrixTile, NestKernel, STAGE_BYTES_MAX},
};
use crate::error::TransferError;

/// Number of steps that are collected before they are executed.
const HOPS: usize = 256;

/// Bytes that are prefetched in advance: about as many as the memory system has in flight.
const AHEAD_BYTES: usize = 4096;

/// As [`AHEAD_BYTES`], for steps that are staged first: they read a whole step at once.
const STAGED_AHEAD_BYTES: usize = 2 * AHEAD_BYTES;

/// Maximum number of steps that are prefetched in advance.
const AHEAD_MAX: usize = 32;

/// Bytes that are streamed between two prefetches of as many bytes.
const OUT_BYTES: usize = 256;

/// Buffers of a copying thread, reused from one nest to the next.
#[derive(Debug, Default)]
pub(super) struct CopyScratch {
    hops: Vec<CopyHop>,
    stage: Option<AlignedBuffer>,
}

/// The steps of one kernel.
#[derive(Debug)]
pub(super) struct KernelPipeline<'k> {
    kernel: &'k NestKernel,
    manner: CopyManner,
    ahead: usize,
    hops: &'k mut Vec<CopyHop>,
    /// Memory for a dense piece before it is streamed.
    stage: Option<&'k mut AlignedBuffer>,
}

impl<'k> KernelPipeline<'k> {
    pub(super) fn new(
        kernel: &'k NestKernel,
        manner: CopyManner,
        scratch: &'k mut CopyScratch,
    ) -> Result<KernelPipeline<'k>, TransferError> {
        let ahead = match manner.stores {
            StoreKind::Ordinary => 0,
            StoreKind::Streaming => {
                let bytes = match kernel {
                    NestKernel::Run(_) => AHEAD_BYTES,
                    _ => STAGED_AHEAD_BYTES,
                };
                (bytes / kernel.bytes().max(1)).clamp(1, AHEAD_MAX)
            }
        };
        let stage = match (kernel, manner.stores) {
            (NestKernel::Run(_), _) | (_, StoreKind::Ordinary) => None,
            (kernel, _) if kernel.bytes() > STAGE_BYTES_MAX => None,
            _ => {
                if scratch.stage.is_none() {
                    scratch.stage = Some(AlignedBuffer::new(STAGE_BYTES_MAX, LINE_BYTES)?);
                }
                scratch.stage.as_mut()
            }
        };
        scratch.hops.clear();
        Ok(KernelPipeline {
            kernel,
            manner,
            ahead,
            hops: &mut scratch.hops,
            stage,
        })
    }

    /// Executes one step, immediately or after enough steps are collected.
    ///
    /// # Safety
    /// Until the pipeline has been drained: `source` and `destination` are valid for the spans of
    /// the kernel, do not overlap in its units, and nothing else writes the former or reads or
    /// writes the latter.
    pub(super) unsafe fn push(&mut self, source: *const u8, destination: *mut u8) {
        if !self.manner.streams() {
            // SAFETY: passed on to the caller.
            unsafe { self.copy_now(LoopStride::ONCE, source, destination) };
            return;
        }
        self.hops.push(CopyHop {
            source,
            destination,
        });
        if self.hops.len() >= HOPS + self.ahead {
            // SAFETY: every hop was pushed under this contract.
            unsafe { self.advance() };
        }
    }

    /// Executes the steps of a loop.
    ///
    /// # Safety
    /// As for [`KernelPipeline::push`], for every step.
    pub(super) unsafe fn push_loop(
        &mut self,
        stride: LoopStride,
        source: *const u8,
        destination: *mut u8,
    ) {
        if !self.manner.streams() {
            // SAFETY: passed on to the caller.
            unsafe { self.copy_now(stride, source, destination) };
            return;
        }
        let mut first = 0;
        while first < stride.extent {
            let room = (HOPS + self.ahead).saturating_sub(self.hops.len()).max(1);
            let last = stride.extent.min(first + room);
            self.hops.extend((first..last).map(|i| CopyHop {
                source: source.wrapping_add(i * stride.source),
                destination: destination.wrapping_add(i * stride.destination),
            }));
            first = last;
            if self.hops.len() >= HOPS + self.ahead {
                // SAFETY: every hop was pushed under this contract.
                unsafe { self.advance() };
            }
        }
    }

    /// Executes the steps of a loop with ordinary stores: without prefetches, no step has to wait.
    ///
    /// # Safety
    /// As for [`KernelPipeline::push`], for every step.
    unsafe fn copy_now(&self, stride: LoopStride, source: *const u8, destination: *mut u8) {
        let kernels = self.manner.kernels;
        let hop = |i: usize| CopyHop {
            source: source.wrapping_add(i * stride.source),
            destination: destination.wrapping_add(i * stride.destination),
        };
        match self.kernel {
            // SAFETY: passed on to the caller, in all of these.
            NestKernel::Run(bytes) => unsafe { kernels.copy_rows(hop(0), stride, *bytes) },
            NestKernel::Transpose(matrix) => {
                for i in 0..stride.extent {
                    // SAFETY: as above.
                    unsafe { kernels.transpose(matrix, hop(i)) };
                }
            }
            NestKernel::Tile(tile) => {
                for i in 0..stride.extent {
                    // SAFETY: as above.
                    unsafe { transpose_tile(kernels, tile, hop(i)) };
                }
            }
            NestKernel::Gather(gather) => {
                for i in 0..stride.extent {
                    let hop = hop(i);
                    // SAFETY: as above.
                    unsafe { gather.gather(hop.source, hop.destination) };
                }
            }
        }
    }

    /// Executes all steps except those that are only prefetched.
    ///
    /// # Safety
    /// As for [`KernelPipeline::push`], for every hop.
    unsafe fn advance(&mut self) {
        let count = self.hops.len().saturating_sub(self.ahead);
        // SAFETY: passed on to the caller.
        unsafe { self.run(count) };
        self.hops.drain(..count);
    }

    /// Executes the remaining steps. Streamed bytes are ordered before later stores of this thread.
    ///
    /// # Safety
    /// As for [`KernelPipeline::push`], for every hop.
    pub(super) unsafe fn drain(mut self) {
        // SAFETY: passed on to the caller.
        unsafe { self.run(self.hops.len()) };
        if self.manner.streams() {
            self.manner.kernels.fence();
        }
    }

    /// # Safety
    /// As for [`KernelPipeline::push`], for the first `count` hops.
    unsafe fn run(&mut self, count: usize) {
        let kernels = self.manner.kernels;
        let Some(hops) = self.hops.get(..count) else {
            broken(format_args!("{count} of {} hops", self.hops.len()))
        };
        match (self.kernel, self.stage.as_deref_mut()) {
            (NestKernel::Run(bytes), _) => {
                // SAFETY: passed on to the caller.
                unsafe { kernels.stream_runs(self.hops, count, *bytes, self.ahead) };
            }
            (NestKernel::Transpose(matrix), Some(stage)) => {
                // SAFETY: passed on to the caller.
                unsafe { transpose_staged(kernels, matrix, (self.hops, count, self.ahead), stage) };
            }
            (NestKernel::Transpose(matrix), None) => {
                for hop in hops {
                    // SAFETY: passed on to the caller.
                    unsafe { kernels.transpose(matrix, *hop) };
                }
            }
            (NestKernel::Tile(tile), Some(stage)) => {
                // SAFETY: passed on to the caller.
                unsafe { tile_staged(kernels, tile, (self.hops, count, self.ahead), stage) };
            }
            (NestKernel::Tile(tile), None) => {
                for hop in hops {
                    // SAFETY: passed on to the caller.
                    unsafe { transpose_tile(kernels, tile, *hop) };
                }
            }
            (NestKernel::Gather(gather), Some(stage)) => {
                // SAFETY: passed on to the caller.
                unsafe { gather_staged(kernels, gather, (self.hops, count, self.ahead), stage) };
            }
            (NestKernel::Gather(gather), None) => {
                for hop in hops {
                    // SAFETY: passed on to the caller.
                    unsafe { gather.gather(hop.source, hop.destination) };
                }
            }
        }
    }
}

/// Transposes into the stage and streams from there, while it prefetches the next matrix.
///
/// # Safety
/// As for [`KernelPipeline::push`], for the first `count` hops; the stage has room for the matrix.
unsafe fn transpose_staged(
    kernels: LevelKernels,
    matrix: &MatrixTranspose,
    (hops, count, ahead): (&[CopyHop], usize, usize),
    stage: &mut AlignedBuffer,
) {
    let dense = matrix.dense();
    let row_bytes = matrix.destination_row_bytes();
    let is_dense = matrix.destination_stride == row_bytes;
    // Rows shorter than a line, with other bytes between them, cannot be streamed.
    let direct = !is_dense && row_bytes < LINE_BYTES;
    for (index, hop) in hops.iter().enumerate().take(count) {
        let mut next = PrefetchLines::of(matrix, hops.get(index + ahead));
        if direct {
            kernels.prefetch(&mut next, usize::MAX);
            // SAFETY: passed on to the caller.
            unsafe { kernels.transpose(matrix, *hop) };
            continue;
        }
        let staged = CopyHop {
            source: hop.source,
            destination: stage.as_mut_ptr(),
        };
        // SAFETY: the caller guarantees the source; the stage is private and has room.
        unsafe { kernels.transpose(&dense, staged) };
        let (rows, bytes) = if is_dense {
            (1, matrix.bytes())
        } else {
            (matrix.columns, row_bytes)
        };
        for row in 0..rows {
            let out = CopyHop {
                source: staged.destination.wrapping_add(row * bytes),
                destination: hop
                    .destination
                    .wrapping_add(row * matrix.destination_stride),
            };
            // SAFETY: a dense row of the stage, and the row of the destination that it is.
            unsafe { stream_out(kernels, out, bytes, &mut next) };
        }
        kernels.prefetch(&mut next, usize::MAX);
    }
}

/// The lines of the next matrix or piece, which are prefetched a few at a time.
struct PrefetchLines {
    start: *const u8,
    row_bytes: usize,
    stride: usize,
    rows: usize,
    at: usize,
}

impl PrefetchLines {
    fn of(matrix: &MatrixTranspose, hop: Option<&CopyHop>) -> PrefetchLines {
        let row_bytes = matrix.source_row_bytes();
        let is_dense = matrix.source_stride == row_bytes;
        let (rows, row_bytes) = match (hop, is_dense) {
            (None, _) => (0, row_bytes),
            (_, true) => (1, row_bytes * matrix.rows),
            (_, false) => (matrix.rows, row_bytes),
        };
        PrefetchLines {
            start: hop.map_or(std::ptr::null(), |hop| hop.source),
            row_bytes,
            stride: matrix.source_stride,
            rows,
            at: 0,
        }
    }
}

impl Iterator for PrefetchLines {
    type Item = *const u8;

    fn next(&mut self) -> Option<*const u8> {
        if self.at >= self.row_bytes {
            self.at = 0;
            self.start = self.start.wrapping_add(self.stride);
            self.rows = self.rows.saturating_sub(1);
        }
        if self.rows == 0 {
            return None;
        }
        let line = self.start.wrapping_add(self.at);
        self.at += LINE_BYTES;
        Some(line)
    }
}

/// Streams `bytes` bytes of the stage, and prefetches the same number of lines of the next step.
///
/// # Safety
/// As for [`KernelPipeline::push`], for a run of `bytes`.
unsafe fn stream_out(
    kernels: LevelKernels,
    out: CopyHop,
    bytes: usize,
    next: &mut impl Iterator<Item = *const u8>,
) {
    for at in (0..bytes).step_by(OUT_BYTES) {
        let piece = CopyHop {
            source: out.source.wrapping_add(at),
            destination: out.destination.wrapping_add(at),
        };
        let length = OUT_BYTES.min(bytes - at);
        kernels.prefetch(next, length.div_ceil(LINE_BYTES));
        // SAFETY: a piece of the run.
        unsafe { kernels.stream_runs(&[piece], 1, length, 0) };
    }
}

/// Transposes every matrix of a tile.
///
/// # Safety
/// As for [`KernelPipeline::push`], for one hop.
unsafe fn transpose_tile(kernels: LevelKernels, tile: &MatrixTile, hop: CopyHop) {
    tile.for_each(&mut |from, to| {
        let hop = CopyHop {
            source: hop.source.wrapping_add(from),
            destination: hop.destination.wrapping_add(to),
        };
        // SAFETY: a matrix of the tile, whose spans are inside those of the kernel.
        unsafe { kernels.transpose(&tile.matrix, hop) };
    });
}

/// Assembles a tile in the stage and streams it from there, while it prefetches another one.
///
/// # Safety
/// As for [`KernelPipeline::push`], for the first `count` hops; the stage has room for the tile.
unsafe fn tile_staged(
    kernels: LevelKernels,
    tile: &MatrixTile,
    (hops, count, ahead): (&[CopyHop], usize, usize),
    stage: &mut AlignedBuffer,
) {
    for (index, hop) in hops.iter().enumerate().take(count) {
        if let Some(next) = hops.get(index + ahead) {
            tile.for_each(&mut |from, _| {
                let next = CopyHop {
                    source: next.source.wrapping_add(from),
                    ..*next
                };
                let mut lines = PrefetchLines::of(&tile.matrix, Some(&next));
                kernels.prefetch(&mut lines, usize::MAX);
            });
        }
        let staged = CopyHop {
            source: hop.source,
            destination: stage.as_mut_ptr(),
        };
        // SAFETY: the caller guarantees the source; the stage is private and has room.
        unsafe { transpose_tile(kernels, tile, staged) };
        let out = CopyHop {
            source: staged.destination,
            destination: hop.destination,
        };
        // SAFETY: the assembled tile, and the dense piece of the destination that it is.
        unsafe { kernels.stream_runs(&[out], 1, tile.bytes, 0) };
    }
}

/// Gathers into the stage and streams from there, while it prefetches the next piece.
///
/// # Safety
/// As for [`KernelPipeline::push`], for the first `count` hops; the stage has room for the piece.
unsafe fn gather_staged(
    kernels: LevelKernels,
    gather: &RunGather,
    (hops, count, ahead): (&[CopyHop], usize, usize),
    stage: &mut AlignedBuffer,
) {
    for (index, hop) in hops.iter().enumerate().take(count) {
        if let Some(next) = hops.get(index + ahead) {
            gather.for_each_run(next.source, &mut |start| {
                let lines = (0..gather.run).step_by(LINE_BYTES);
                kernels.prefetch(&mut lines.map(|at| start.wrapping_add(at)), usize::MAX);
            });
        }
        let staged = stage.as_mut_ptr();
        // SAFETY: the caller guarantees the source; the stage is private and has room.
        unsafe { gather.gather(hop.source, staged) };
        let out = CopyHop {
            source: staged,
            destination: hop.destination,
        };
        // SAFETY: the gathered piece, and the dense piece of the destination that it is.
        unsafe { kernels.stream_runs(&[out], 1, gather.bytes(), 0) };
    }
}
