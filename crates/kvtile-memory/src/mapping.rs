//! Mapped pages: the only owner of addresses in this crate.
//!
//! Maps, advises, populates and unmaps. It does not know what the pages are for.

use crate::MemoryError;
use crate::machine;
use crate::region::check_size;
use rustix::fd::BorrowedFd;
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use std::ffi::c_void;
use std::io;
use std::ops::Range;
use std::ptr;

/// Whole pages of this process, readable and writable, unmapped on drop. Those of
/// [`Mapping::shared_read_only`] are only readable.
///
/// The address is kept as a number whose provenance is exposed, because a region gives its users a
/// number.
#[derive(Debug)]
pub(crate) struct Mapping {
    address: usize,
    len: usize,
}

impl Mapping {
    /// Fresh zeroed pages for `bytes`, starting at a multiple of `alignment` (a power of two).
    pub(crate) fn anonymous(bytes: usize, alignment: usize) -> Result<Self, MemoryError> {
        let page = rustix::param::page_size();
        let len = whole_pages(bytes)?;
        if alignment <= page {
            return Self::map_anonymous(len, bytes);
        }
        let with_slack = len
            .checked_add(alignment - page)
            .ok_or(MemoryError::TooLarge {
                bytes: bytes as u64,
            })?;
        let mut rest = Self::map_anonymous(with_slack, bytes)?;
        let head = rest.address.next_multiple_of(alignment) - rest.address;
        drop(rest.take_front(head));
        Ok(rest.take_front(len))
    }

    /// The first `bytes` of the memory behind `fd`, mapped shared.
    pub(crate) fn shared(fd: BorrowedFd<'_>, bytes: usize) -> Result<Self, Errno> {
        Self::map_shared(fd, bytes, ProtFlags::READ | ProtFlags::WRITE)
    }

    /// As [`Mapping::shared`], without the right to write. Its users must not write: the kernel
    /// ends a process that does.
    pub(crate) fn shared_read_only(fd: BorrowedFd<'_>, bytes: usize) -> Result<Self, Errno> {
        Self::map_shared(fd, bytes, ProtFlags::READ)
    }

    /// Starts at a multiple of a huge page if it can: pages elsewhere are never huge.
    fn map_shared(fd: BorrowedFd<'_>, bytes: usize, rights: ProtFlags) -> Result<Self, Errno> {
        let len = whole_pages(bytes).map_err(|_| Errno::OVERFLOW)?;
        let map = |hint: *mut c_void, flags: MapFlags| {
            // SAFETY: without MAP_FIXED the kernel chooses unused addresses, with MAP_FIXED_NOREPLACE it
            // refuses used ones, so no existing memory changes.
            let start = unsafe { mmap(hint, len, rights, flags, fd, 0) }?;
            Ok(Self {
                address: start.expose_provenance(),
                len,
            })
        };
        if let Some(hint) = aligned_hint(len) {
            // Another thread may have mapped something there since.
            let placed = map(hint, MapFlags::SHARED | MapFlags::FIXED_NOREPLACE);
            if placed.is_ok() {
                return placed;
            }
        }
        map(ptr::null_mut(), MapFlags::SHARED)
    }

    fn map_anonymous(len: usize, bytes: usize) -> Result<Self, MemoryError> {
        let rights = ProtFlags::READ | ProtFlags::WRITE;
        Self::map_unnamed(len, rights, MapFlags::PRIVATE).map_err(|errno| {
            MemoryError::AllocationFailed {
                bytes,
                source: errno.into(),
            }
        })
    }

    fn map_unnamed(len: usize, rights: ProtFlags, flags: MapFlags) -> Result<Self, Errno> {
        // SAFETY: without MAP_FIXED and with a null hint the kernel chooses unused addresses, so no
        // existing memory changes.
        let start = unsafe { mmap_anonymous(ptr::null_mut(), len, rights, flags) }?;
        Ok(Self {
            address: start.expose_provenance(),
            len,
        })
    }

    /// Cuts off the first `len` bytes (whole pages, at most all of them).
    fn take_front(&mut self, len: usize) -> Self {
        let front = Self {
            address: self.address,
            len,
        };
        self.address += len;
        self.len -= len;
        front
    }

    pub(crate) fn address(&self) -> usize {
        self.address
    }

    /// Bytes mapped: whole pages, at least the requested size.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Advises the kernel to use huge pages (`MADV_HUGEPAGE`).
    pub(crate) fn advise_huge_pages(&self) -> Result<(), Errno> {
        // SAFETY: the range is exactly this mapping, and the advice changes which pages back it,
        // not their content.
        unsafe { madvise(self.pointer(0), self.len, Advice::LinuxHugepage) }
    }

    /// Faults in the pages of `range` (inside the mapping, page-aligned), without changing their
    /// content.
    pub(crate) fn populate(&self, range: Range<usize>) -> Result<(), Errno> {
        let len = self.checked_len(&range)?;
        let start = self.pointer(range.start);
        // SAFETY: `checked_len` proved the range to lie inside this mapping, and populating it does
        // not change its content.
        unsafe { madvise(start, len, Advice::LinuxPopulateWrite) }
    }

    /// Replaces the pages of `range` (inside the mapping, page-aligned, populated) by huge ones, without changing
    /// their content. The kernel does so also for shared memory to which it gives no huge pages by itself. It fails
    /// where the kernel is older than 6.1 or has no free huge page.
    pub(crate) fn collapse(&self, range: Range<usize>) -> io::Result<()> {
        let len = self.checked_len(&range)?;
        let start = self.pointer(range.start);
        // SAFETY: `checked_len` proved the range to lie inside this mapping, and collapsing it does
        // not change its content.
        match unsafe { libc::madvise(start, len, libc::MADV_COLLAPSE) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// As [`Mapping::populate`], by writing a zero to every page, for kernels without
    /// `MADV_POPULATE_WRITE`.
    ///
    /// # Safety
    ///
    /// The mapping is fresh: all zeroes, and no other code has its address or its memory.
    pub(crate) unsafe fn touch(&self, range: Range<usize>) -> Result<(), Errno> {
        self.checked_len(&range)?;
        for offset in range.step_by(rustix::param::page_size()) {
            let byte = self.pointer(offset).cast::<u8>();
            // SAFETY: `checked_len` proved `offset` to lie inside this writable mapping; the byte
            // is zero and, as the caller guarantees, no other code reads or writes it now.
            unsafe { byte.write_volatile(0) };
        }
        Ok(())
    }

    fn checked_len(&self, range: &Range<usize>) -> Result<usize, Errno> {
        if range.end > self.len {
            return Err(Errno::FAULT);
        }
        range.end.checked_sub(range.start).ok_or(Errno::INVAL)
    }

    /// The first `len` bytes; fewer if the mapping is shorter.
    ///
    /// # Safety
    ///
    /// No code writes these bytes while the slice lives.
    pub(crate) unsafe fn as_slice(&self, len: usize) -> &[u8] {
        // SAFETY: the pages are mapped readable and initialised (zeroed by the kernel) as long as
        // `self` lives, at most `isize::MAX` bytes (`whole_pages`), and the caller guarantees that
        // no code writes them.
        unsafe { std::slice::from_raw_parts(self.pointer(0).cast(), len.min(self.len)) }
    }

    /// The first `len` bytes; fewer if the mapping is shorter.
    ///
    /// # Safety
    ///
    /// No other code reads or writes these bytes while the slice lives.
    pub(crate) unsafe fn as_mut_slice(&mut self, len: usize) -> &mut [u8] {
        // SAFETY: as in `as_slice`; besides, they are mapped writable, and the caller guarantees
        // that no other code reads or writes them.
        unsafe { std::slice::from_raw_parts_mut(self.pointer(0).cast(), len.min(self.len)) }
    }

    fn pointer(&self, offset: usize) -> *mut c_void {
        ptr::with_exposed_provenance_mut(self.address + offset)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.len == 0 {
            return;
        }
        // SAFETY: the range is exactly this mapping, which is no longer in use: slices borrow it,
        // and users of the address hold its region.
        let unmapped = unsafe { munmap(self.pointer(0), self.len) };
        // `munmap` fails only when the kernel has no memory to split a mapping. The pages then stay
        // mapped, which is only a leak.
        debug_assert!(unmapped.is_ok(), "munmap failed: {unmapped:?}");
    }
}

/// An unused address for `len` bytes that is a multiple of a huge page; `None` for less than one.
fn aligned_hint(len: usize) -> Option<*mut c_void> {
    let huge = machine::huge_page_size().filter(|huge| len >= *huge)?;
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    let len = len.checked_add(huge)?;
    let reserved = Mapping::map_unnamed(len, ProtFlags::empty(), flags).ok()?;
    let address = reserved.address.next_multiple_of(huge);
    Some(ptr::with_exposed_provenance_mut(address))
}

/// `bytes` rounded up to whole pages.
fn whole_pages(bytes: usize) -> Result<usize, MemoryError> {
    check_size(bytes)?;
    let len = bytes.next_multiple_of(rustix::param::page_size());
    check_size(len)?;
    Ok(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alignments_past_the_page_are_met_and_the_slack_is_unmapped() {
        for alignment in [1 << 12, 1 << 16, 1 << 21, 1 << 25] {
            let mapping = Mapping::anonymous(10_000, alignment).unwrap();
            assert_eq!(mapping.address() % alignment, 0);
            assert_eq!(mapping.len(), 12_288);
        }
    }

    #[test]
    fn touching_and_populating_leave_zeroes() {
        let mut mapping = Mapping::anonymous(100_000, 1).unwrap();
        // SAFETY: fresh, and no other code has it.
        unsafe { mapping.touch(0..50_000) }.unwrap();
        if let Err(errno) = mapping.populate(0..mapping.len()) {
            eprintln!("MADV_POPULATE_WRITE is not tested: {errno}");
        }
        // SAFETY: no other code has it.
        let bytes = unsafe { mapping.as_mut_slice(100_000) };
        assert!(bytes.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn ranges_outside_the_mapping_are_refused() {
        let mapping = Mapping::anonymous(4096, 1).unwrap();
        assert_eq!(mapping.populate(0..mapping.len() + 1), Err(Errno::FAULT));
        // SAFETY: fresh, and no other code has it.
        let touched = unsafe { mapping.touch(4096..1 << 30) };
        assert_eq!(touched, Err(Errno::FAULT));
    }
}
