//! Kernels: the loops that touch bytes, one set for each level of vector instructions.
//!
//! | file | what it has |
//! | --- | --- |
//! | `level` | which instructions the machine has |
//! | `runs` | runs of bytes with ordinary stores, without vectors of ours |
//! | `transpose` | matrices of 1, 2, 4, 8 and 16-byte elements: shapes, edges, choice of width |
//! | `vectors` | transposes in registers, written once for all widths |
//! | `gather` | scattered pieces into one dense piece |
//! | `x86`, `arm` | the instructions themselves: runs, streaming stores, prefetches, lanes |
//!
//! A kernel knows pointers, lengths and strides. Which kernel a nest needs is decided by
//! `nest`, and that nobody else touches the bytes meanwhile is the business of leases.

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

pub(super) use gather::{Gather, GatherLoop};
pub(crate) use level::Level;
pub(super) use transpose::Transpose;

/// Bytes of a line of the cache, as every machine has them that these kernels were written for.
pub(super) const LINE_BYTES: usize = 64;

/// Runs of so many lines at most are copied without a call for each.
const ROW_LINES_MAX: usize = 16;

/// Where one run or one tile comes from, and where it goes to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hop {
    pub(super) source: *const u8,
    pub(super) destination: *mut u8,
}

/// One loop: how often, and how far each side goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stride {
    pub(super) extent: usize,
    pub(super) source: usize,
    pub(super) destination: usize,
}

impl Stride {
    /// A loop that runs once.
    pub(super) const ONCE: Stride = Stride {
        extent: 1,
        source: 0,
        destination: 0,
    };
}

/// How bytes are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stores {
    /// Through the caches, where a reader finds them.
    Ordinary,
    /// Past the caches, a line at a time: nothing is read before it is written.
    Streaming,
}

/// The kernels of one level.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernels {
    level: Level,
}

impl Kernels {
    /// The kernels of `level`, which the machine has.
    pub(super) fn new(level: Level) -> Kernels {
        Kernels { level }
    }

    pub(super) fn level(self) -> Level {
        self.level
    }

    /// Copies a run of `bytes` for every turn of a loop with ordinary stores.
    ///
    /// # Safety
    /// Every turn has `bytes` readable bytes at its source and `bytes` writable bytes at its
    /// destination; no source byte of any turn is a destination byte of one, and nobody else
    /// writes the former or touches the latter.
    pub(super) unsafe fn copy_rows(self, first: Hop, rows: Stride, bytes: usize) {
        let lines = bytes / LINE_BYTES;
        let is_short = bytes.is_multiple_of(LINE_BYTES) && lines <= ROW_LINES_MAX;
        #[cfg(not(target_arch = "x86_64"))]
        let _ = is_short;
        match self.level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 if is_short => {
                // SAFETY: the machine has the level; the rest is passed on to the caller.
                unsafe { x86::copy_rows_avx512(first, rows, lines) }
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 if is_short => {
                // SAFETY: the machine has the level; the rest is passed on to the caller.
                unsafe { x86::copy_rows_avx2(first, rows, lines) }
            }
            // SAFETY: passed on to the caller.
            _ => unsafe { runs::copy_rows(first, rows, bytes) },
        }
    }

    /// Copies a run of `bytes` for each of the first `count` hops past the caches, reading
    /// `ahead` hops in advance; the hops after `count` are only read ahead of.
    ///
    /// What it wrote is ordered before later stores only by [`Kernels::fence`].
    ///
    /// # Safety
    /// As for [`Kernels::copy_rows`], for the first `count` hops.
    pub(super) unsafe fn stream_runs(self, hops: &[Hop], count: usize, bytes: usize, ahead: usize) {
        #[cfg(not(target_arch = "x86_64"))]
        let _ = ahead;
        match self.level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => {
                // SAFETY: the machine has the level; the rest is passed on to the caller.
                unsafe { x86::stream_runs_avx512(hops, count, bytes, ahead) }
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => {
                // SAFETY: the machine has the level; the rest is passed on to the caller.
                unsafe { x86::stream_runs_avx2(hops, count, bytes, ahead) }
            }
            _ => {
                for hop in hops.iter().take(count) {
                    // SAFETY: passed on to the caller.
                    unsafe { runs::copy_rows(*hop, Stride::ONCE, bytes) };
                }
            }
        }
    }

    /// Transposes a matrix with ordinary stores.
    ///
    /// # Safety
    /// `hop` has the spans of `matrix` at its ends, which do not overlap; nobody else writes the
    /// source or touches the destination.
    pub(super) unsafe fn transpose(self, matrix: &Transpose, hop: Hop) {
        // SAFETY: passed on to the caller; the machine has the level.
        unsafe { transpose::transpose(self.level, matrix, hop) }
    }

    /// Asks for up to `count` lines that will be read soon. Any address may be given.
    pub(super) fn prefetch(self, lines: &mut impl Iterator<Item = *const u8>, count: usize) {
        #[cfg(target_arch = "x86_64")]
        lines.take(count).for_each(x86::prefetch);
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (lines, count);
    }

    /// Orders everything streamed so far by this thread before its later stores: whoever learns
    /// from one of those that the copy is done sees the bytes.
    pub(super) fn fence(self) {
        #[cfg(target_arch = "x86_64")]
        x86::fence();
    }
}
