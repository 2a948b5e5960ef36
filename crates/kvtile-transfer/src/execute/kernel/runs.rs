//! Runs of bytes with ordinary stores.

use super::{CopyHop, LoopStride};

/// Copies a run of `bytes` for every iteration of `rows`.
///
/// # Safety
/// As for [`super::LevelKernels::copy_rows`].
pub(super) unsafe fn copy_rows(first: CopyHop, rows: LoopStride, bytes: usize) {
    // A constant length compiles to a few moves instead of a call.
    match bytes {
        // SAFETY: passed on to the caller, in all of these.
        1 => unsafe { copy_known::<1>(first, rows) },
        // SAFETY: as above.
        2 => unsafe { copy_known::<2>(first, rows) },
        // SAFETY: as above.
        4 => unsafe { copy_known::<4>(first, rows) },
        // SAFETY: as above.
        8 => unsafe { copy_known::<8>(first, rows) },
        // SAFETY: as above.
        16 => unsafe { copy_known::<16>(first, rows) },
        // SAFETY: as above.
        32 => unsafe { copy_known::<32>(first, rows) },
        // SAFETY: as above.
        64 => unsafe { copy_known::<64>(first, rows) },
        // SAFETY: as above.
        128 => unsafe { copy_known::<128>(first, rows) },
        // SAFETY: as above.
        256 => unsafe { copy_known::<256>(first, rows) },
        bytes => {
            for (source, destination) in turns(first, rows) {
                // SAFETY: both ends of an iteration have `bytes` bytes, and they do not overlap.
                unsafe { std::ptr::copy_nonoverlapping(source, destination, bytes) };
            }
        }
    }
}

/// # Safety
/// As for [`copy_rows`], with runs of `N` bytes.
#[inline]
unsafe fn copy_known<const N: usize>(first: CopyHop, rows: LoopStride) {
    for (source, destination) in turns(first, rows) {
        // SAFETY: both ends of an iteration have `N` bytes, and they do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(source, destination, N) };
    }
}

/// The source and destination of every iteration.
#[inline]
fn turns(first: CopyHop, rows: LoopStride) -> impl Iterator<Item = (*const u8, *mut u8)> {
    (0..rows.extent).map(move |i| {
        (
            first.source.wrapping_add(i * rows.source),
            first.destination.wrapping_add(i * rows.destination),
        )
    })
}
