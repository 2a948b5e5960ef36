//! Memory between inaccessible guard pages: an access of one byte too far ends the test.

use std::ptr::NonNull;

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

const PAGE_BYTES: usize = 4096;

/// The end of the bytes that is adjacent to a guard page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GuardedEnd {
    Low,
    High,
}

/// Bytes between two guard pages, adjacent to one of them.
pub(super) struct GuardedBytes {
    mapping: NonNull<u8>,
    mapped: usize,
    bytes: NonNull<u8>,
    length: usize,
}

impl GuardedBytes {
    /// `length` bytes; the byte at offset `at` is `byte(at)`.
    pub(super) fn new(length: usize, end: GuardedEnd, byte: impl Fn(usize) -> u8) -> GuardedBytes {
        let inner = length.next_multiple_of(PAGE_BYTES).max(PAGE_BYTES);
        let mapped = inner + 2 * PAGE_BYTES;
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let mapping = unsafe { mmap_anonymous(std::ptr::null_mut(), mapped, protection, flags) };
        let mapping = NonNull::new(mapping.unwrap().cast::<u8>()).unwrap();
        let page = |at: usize| mapping.as_ptr().wrapping_add(at);
        for guard in [page(0), page(PAGE_BYTES + inner)] {
            // SAFETY: a page of the mapping to which no reference exists.
            unsafe { mprotect(guard.cast(), PAGE_BYTES, MprotectFlags::empty()) }.unwrap();
        }
        let start = match end {
            GuardedEnd::Low => PAGE_BYTES,
            GuardedEnd::High => PAGE_BYTES + inner - length,
        };
        let mut guarded = GuardedBytes {
            mapping,
            mapped,
            bytes: NonNull::new(page(start)).unwrap(),
            length,
        };
        for (at, value) in guarded.as_mut().iter_mut().enumerate() {
            *value = byte(at);
        }
        guarded
    }

    pub(super) fn pointer(&self) -> *mut u8 {
        self.bytes.as_ptr()
    }

    pub(super) fn as_ref(&self) -> &[u8] {
        // SAFETY: `length` bytes of the mapping between its guards, initialised by the kernel; no
        // copy runs while the test reads them.
        unsafe { std::slice::from_raw_parts(self.pointer(), self.length) }
    }

    fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and no other reference exists.
        unsafe { std::slice::from_raw_parts_mut(self.pointer(), self.length) }
    }
}

impl Drop for GuardedBytes {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`, and no reference exists any more.
        unsafe { munmap(self.mapping.as_ptr().cast(), self.mapped) }.unwrap();
    }
}

#[test]
fn the_bytes_are_adjacent_to_the_requested_guard() {
    let low = GuardedBytes::new(100, GuardedEnd::Low, |at| u8::try_from(at).unwrap());
    assert_eq!(low.pointer().addr() % PAGE_BYTES, 0);
    assert_eq!(low.as_ref()[99], 99);
    let high = GuardedBytes::new(100, GuardedEnd::High, |at| u8::try_from(at).unwrap());
    assert_eq!((high.pointer().addr() + 100) % PAGE_BYTES, 0);
}
