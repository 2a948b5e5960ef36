//! Runs of bytes with ordinary stores.

use super::Hop;

/// Copies a run of `bytes` for every hop.
///
/// # Safety
/// As for [`super::Kernels::copy_runs`].
pub(super) unsafe fn copy(hops: &[Hop], bytes: usize) {
    // A length that the compiler knows becomes a few moves instead of a call.
    match bytes {
        // SAFETY: passed on to the caller, in all of these.
        16 => unsafe { copy_known::<16>(hops) },
        // SAFETY: as above.
        32 => unsafe { copy_known::<32>(hops) },
        // SAFETY: as above.
        64 => unsafe { copy_known::<64>(hops) },
        // SAFETY: as above.
        128 => unsafe { copy_known::<128>(hops) },
        // SAFETY: as above.
        256 => unsafe { copy_known::<256>(hops) },
        // SAFETY: as above.
        bytes => unsafe { copy_any(hops, bytes) },
    }
}

/// # Safety
/// As for [`copy`], with runs of `N` bytes.
#[inline]
unsafe fn copy_known<const N: usize>(hops: &[Hop]) {
    for hop in hops {
        // SAFETY: both ends of the hop have `N` bytes, and they do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(hop.source, hop.destination, N) };
    }
}

/// # Safety
/// As for [`copy`].
unsafe fn copy_any(hops: &[Hop], bytes: usize) {
    for hop in hops {
        // SAFETY: both ends of the hop have `bytes` bytes, and they do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(hop.source, hop.destination, bytes) };
    }
}
