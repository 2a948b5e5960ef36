//! Kernels: the loops that copy bytes, one set for each level of vector instructions.
//!
//! | file | contents |
//! | --- | --- |
//! | `level` | detects the instruction set of the machine |
//! | `runs` | runs of bytes with ordinary stores, without explicit vectors |
//! | `transpose` | matrices of 1, 2, 4, 8 and 16-byte elements: shapes, edges, choice of vector width |
//! | `vectors` | transposes in registers, written once for all vector widths |
//! | `gather` | gathers scattered runs into one dense piece |
//! | `x86`, `arm` | intrinsics: runs, streaming stores, prefetches, vector lanes |
//!
//! A kernel knows pointers, lengths and strides. `nest` chooses the kernel, and leases exclude
//! other access to the bytes.

#[cfg(target_arch = "aarch64")]
mod arm;
mod gather;
mod level;
mod runs;
mod transpose;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod vectors;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(super) use gather::{GatherLoop, RunGather};
pub(crate) use level::SimdLevel;
pub(super) use transpose::MatrixTranspose;

/// Bytes of a cache line, on every machine that these kernels support.
pub(super) const LINE_BYTES: usize = 64;

/// Runs of at most this many lines are copied without a call for each run.
const ROW_LINES_MAX: usize = 16;

/// The source and the destination of one run or one tile.
#[derive(Clone, Copy, Debug)]
pub(super) struct CopyHop {
    pub(super) source: *const u8,
    pub(super) destination: *mut u8,
}

/// One loop: its extent, and the stride of each side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LoopStride {
    pub(super) extent: usize,
    pub(super) source: usize,
    pub(super) destination: usize,
}

impl LoopStride {
    /// A loop of one iteration.
    pub(super) const ONCE: LoopStride = LoopStride {
        extent: 1,
        source: 0,
        destination: 0,
    };
}

/// How a kernel writes bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StoreKind {
    /// Through the caches, so that a later read hits them.
    Ordinary,
    /// Past the caches, in whole lines: the CPU does not read a line before it overwrites it.
    Streaming,
}

/// The kernels of one level.
#[derive(Clone, Copy, Debug)]
pub(super) struct LevelKernels {
    level: SimdLevel,
}

impl LevelKernels {
    /// The kernels of `level`, which the machine supports.
    pub(super) fn new(level: SimdLevel) -> LevelKernels {
        LevelKernels { level }
    }

    pub(super) fn level(self) -> SimdLevel {
        self.level
    }

    /// Copies a run of `bytes` for every iteration of a loop with ordinary stores.
    ///
    /// # Safety
    /// Every iteration has `bytes` readable bytes at its source and `bytes` writable bytes at its
    /// destination; no source byte of any iteration is a destination byte of one, and nothing else
    /// writes the former or reads or writes the latter.
    pub(super) unsafe fn copy_rows(self, first: CopyHop, rows: LoopStride, bytes: usize) {
        let lines = bytes / LINE_BYTES;
        let is_short = bytes.is_multiple_of(LINE_BYTES) && lines <= ROW_LINES_MAX;
        #[cfg(not(target_arch = "x86_64"))]
        let _ = is_short;
        match self.level {
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx512 if is_short => {
                // SAFETY: the machine has the level; the rest is passed on to the caller.
                unsafe { x86::copy_rows_avx512(first, rows, lines) }
            }
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx2 if is_short => {
                // SAFETY: the machine has the level; the rest is passed on to the caller.
                unsafe { x86::copy_rows_avx2(first, rows, lines) }
            }
            // SAFETY: passed on to the caller.
            _ => unsafe { runs::copy_rows(first, rows, bytes) },
        }
    }

    /// Copies a run of `bytes` for each of the first `count` hops with streaming stores, and
    /// prefetches `ahead` hops in advance. It only prefetches the hops after `count`.
    ///
    /// [`LevelKernels::fence`] orders these writes before later stores.
    ///
    /// # Safety
    /// As for [`LevelKernels::copy_rows`], for the first `count` hops.
    pub(super) unsafe fn stream_runs(
        self,
        hops: &[CopyHop],
        count: usize,
        bytes: usize,
        ahead: usize,
    ) {
        #[cfg(not(target_arch = "x86_64"))]
        let _ = ahead;
        match self.level {
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx512 => {
                // SAFETY: the machine has the level; the rest is passed on to the caller.
                unsafe { x86::stream_runs_avx512(hops, count, bytes, ahead) }
            }
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx2 => {
                // SAFETY: the machine has the level; the rest is passed on to the caller.
                unsafe { x86::stream_runs_avx2(hops, count, bytes, ahead) }
            }
            _ => {
                for hop in hops.iter().take(count) {
                    // SAFETY: passed on to the caller.
                    unsafe { runs::copy_rows(*hop, LoopStride::ONCE, bytes) };
                }
            }
        }
    }

    /// Transposes a matrix with ordinary stores.
    ///
    /// # Safety
    /// `hop` has the spans of `matrix` at its ends, which do not overlap; nothing else writes the
    /// source or reads or writes the destination.
    pub(super) unsafe fn transpose(self, matrix: &MatrixTranspose, hop: CopyHop) {
        // SAFETY: passed on to the caller; the machine has the level.
        unsafe { transpose::transpose(self.level, matrix, hop) }
    }

    /// Prefetches up to `count` lines. Any address is allowed.
    pub(super) fn prefetch(self, lines: &mut impl Iterator<Item = *const u8>, count: usize) {
        #[cfg(target_arch = "x86_64")]
        lines.take(count).for_each(x86::prefetch);
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (lines, count);
    }

    /// Orders all streaming stores of this thread before its later stores. A thread that observes
    /// one of the later stores also observes the streamed bytes.
    pub(super) fn fence(self) {
        #[cfg(target_arch = "x86_64")]
        x86::fence();
    }
}
