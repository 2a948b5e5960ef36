//! Huge pages and pre-faulting for a fresh mapping, before any other code has its address.
//!
//! First touch costs a fault per page, so a pool of hundreds of GiB that one thread touches takes
//! tens of minutes to start. Here several threads populate large parts concurrently.

use crate::machine;
use crate::mapping::Mapping;
use crate::options::{AllocateOptions, HugePages, Prefault, PrefaultProgress, ProgressFn};
use crate::{MemoryError, MemoryLimit};
use parking_lot::Mutex;
use rustix::io::Errno;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

/// Bytes that one thread populates between two reports; a multiple of every page size in use.
const PART_BYTES: usize = 32 << 20;

/// The kind of mapping; the kernel has a huge-page setting for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MappingBacking {
    Anonymous,
    Shared,
}

/// Refuses to populate more memory than is available: the kernel would kill the process instead of
/// failing the call.
pub(crate) fn check_room<M>(
    options: &AllocateOptions<'_, M>,
    bytes: usize,
) -> Result<(), MemoryError> {
    match options.prefault {
        Prefault::None => Ok(()),
        Prefault::Populate { .. } => {
            check_limits(bytes, machine::available_memory(), machine::memory_limit())
        }
    }
}

fn check_limits(
    bytes: usize,
    available_bytes: Option<u64>,
    group_bytes: Option<u64>,
) -> Result<(), MemoryError> {
    let limits = [
        (MemoryLimit::ControlGroup, group_bytes),
        (MemoryLimit::Machine, available_bytes),
    ];
    for (limit, allowed_bytes) in limits {
        if let Some(allowed_bytes) = allowed_bytes.filter(|allowed| bytes as u64 > *allowed) {
            return Err(MemoryError::LimitExceeded {
                bytes,
                allowed_bytes,
                limit,
            });
        }
    }
    Ok(())
}

/// Advises huge pages and populates the mapping as the options demand.
///
/// # Safety
///
/// The mapping is fresh: all zeroes, and no other code has its address or its memory.
pub(crate) unsafe fn prepare<M>(
    mapping: &Mapping,
    options: &AllocateOptions<'_, M>,
    backing: MappingBacking,
) -> Result<HugePages, MemoryError> {
    let huge_pages = if options.huge_pages {
        advise(mapping, backing)
    } else {
        HugePages::NotRequested
    };
    let Prefault::Populate { threads } = options.prefault else {
        return Ok(huge_pages);
    };
    // By itself the kernel gives shared memory no huge pages on most machines.
    let collapses = options.huge_pages && backing == MappingBacking::Shared;
    let how = PopulateWay { threads, collapses };
    // SAFETY: our caller guarantees the same.
    let is_collapsed = unsafe { populate(mapping, how, options.progress.as_ref()) }?;
    Ok(match is_collapsed {
        true => HugePages::Advised,
        false => huge_pages,
    })
}

/// How a mapping is populated.
#[derive(Clone, Copy)]
struct PopulateWay {
    threads: usize,
    /// Whether its pages are replaced by huge ones.
    collapses: bool,
}

/// The alignment of a mapping's start that suits huge pages.
pub(crate) fn alignment<M>(options: &AllocateOptions<'_, M>, bytes: usize) -> usize {
    match machine::huge_page_size() {
        Some(huge) if options.huge_pages && bytes >= huge => huge,
        _ => 1,
    }
}

fn advise(mapping: &Mapping, backing: MappingBacking) -> HugePages {
    let mode = match backing {
        MappingBacking::Anonymous => machine::transparent_huge_pages(),
        MappingBacking::Shared => machine::shared_huge_pages(),
    };
    let unavailable = |reason: String| HugePages::Unavailable { reason };
    if let Some(reason) = mode.refusal() {
        return unavailable(reason);
    }
    if machine::huge_page_size().is_some_and(|huge| mapping.len() < huge) {
        return unavailable("the region is smaller than one huge page".to_owned());
    }
    match mapping.advise_huge_pages() {
        Ok(()) => HugePages::Advised,
        Err(errno) => unavailable(format!("the kernel refused the advice: {errno}")),
    }
}

/// Whether all of it that may have huge pages has them.
///
/// # Safety
///
/// As [`prepare`].
unsafe fn populate(
    mapping: &Mapping,
    how: PopulateWay,
    progress: Option<&ProgressFn<'_>>,
) -> Result<bool, MemoryError> {
    let parts = mapping.len().div_ceil(PART_BYTES);
    let threads = match how.threads {
        0 => thread::available_parallelism().map_or(1, std::num::NonZero::get),
        wanted => wanted,
    }
    .min(parts);
    let crew = PrefaultCrew {
        mapping,
        progress,
        huge_page: machine::huge_page_size().filter(|huge| {
            how.collapses && mapping.len() >= *huge && PART_BYTES.is_multiple_of(*huge)
        }),
        collapses: AtomicBool::new(true),
        next_part: AtomicUsize::new(0),
        done_bytes: Mutex::new(0),
        failure: Mutex::new(None),
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            let worker = thread::Builder::new().name("kvtile-prefault".to_owned());
            // SAFETY: our caller guarantees the same.
            let work = || unsafe { crew.work() };
            if worker.spawn_scoped(scope, work).is_err() {
                break; // No further threads: the running ones do all parts.
            }
        }
        // SAFETY: our caller guarantees the same.
        unsafe { crew.work() };
    });
    let is_collapsed = crew.huge_page.is_some() && crew.collapses.into_inner();
    match crew.failure.into_inner() {
        None => Ok(is_collapsed),
        Some(errno) => Err(MemoryError::AllocationFailed {
            bytes: mapping.len(),
            source: errno.into(),
        }),
    }
}

/// The worker threads that populate one mapping, part by part.
struct PrefaultCrew<'a, 'b> {
    mapping: &'a Mapping,
    progress: Option<&'a ProgressFn<'b>>,
    /// Bytes of a huge page, if pages are replaced by huge ones.
    huge_page: Option<usize>,
    /// Whether this has succeeded so far.
    collapses: AtomicBool,
    next_part: AtomicUsize,
    done_bytes: Mutex<usize>,
    failure: Mutex<Option<Errno>>,
}

impl PrefaultCrew<'_, '_> {
    /// Populates parts until none is left or one has failed.
    ///
    /// # Safety
    ///
    /// As [`prepare`].
    unsafe fn work(&self) {
        loop {
            let part = self.next_part.fetch_add(1, Ordering::Relaxed);
            let start = part.saturating_mul(PART_BYTES);
            if start >= self.mapping.len() {
                return;
            }
            let end = start.saturating_add(PART_BYTES).min(self.mapping.len());
            // SAFETY: our caller guarantees the same; each part goes to one thread only.
            let filled = unsafe { fill(self.mapping, start..end) };
            if let Err(errno) = filled {
                let mut failure = self.failure.lock();
                failure.get_or_insert(errno);
                // Past the end, so the other threads stop at their next part.
                self.next_part
                    .store(self.mapping.len().div_ceil(PART_BYTES), Ordering::Relaxed);
                return;
            }
            self.collapse(start..end);
            self.report(end - start);
        }
    }

    /// Replaces the pages of a part, which are populated, by huge ones. Without free huge pages they stay.
    fn collapse(&self, part: std::ops::Range<usize>) {
        let Some(huge) = self.huge_page else { return };
        let whole = part.len() - part.len() % huge;
        let range = part.start..part.start + whole;
        if whole > 0
            && self.collapses.load(Ordering::Relaxed)
            && self.mapping.collapse(range).is_err()
        {
            self.collapses.store(false, Ordering::Relaxed);
        }
    }

    fn report(&self, bytes: usize) {
        let Some(progress) = self.progress else {
            return;
        };
        let mut done = self.done_bytes.lock();
        *done += bytes;
        progress(PrefaultProgress {
            done_bytes: *done,
            total_bytes: self.mapping.len(),
        });
    }
}

/// # Safety
///
/// As [`prepare`], for this range.
unsafe fn fill(mapping: &Mapping, range: std::ops::Range<usize>) -> Result<(), Errno> {
    loop {
        match mapping.populate(range.clone()) {
            Err(Errno::INTR | Errno::AGAIN) => {}
            // Kernels before 5.14 lack `MADV_POPULATE_WRITE`.
            // SAFETY: our caller guarantees the same.
            Err(Errno::INVAL) => return unsafe { mapping.touch(range) },
            filled => return filled,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_is_named_and_unknown_limits_allow() {
        assert!(check_limits(1 << 30, None, None).is_ok());
        assert!(check_limits(1 << 30, Some(1 << 30), Some(1 << 30)).is_ok());
        assert!(matches!(
            check_limits(1 << 30, Some(1 << 31), Some(1 << 29)),
            Err(MemoryError::LimitExceeded {
                limit: MemoryLimit::ControlGroup,
                allowed_bytes: 0x2000_0000,
                ..
            })
        ));
        assert!(matches!(
            check_limits(1 << 30, Some(1 << 29), None),
            Err(MemoryError::LimitExceeded {
                limit: MemoryLimit::Machine,
                ..
            })
        ));
    }
}
