//! Memory whose neighbours are pages that nobody may touch: one byte too far ends the test.

use std::ptr::NonNull;

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

const PAGE_BYTES: usize = 4096;

/// Which end of the bytes meets a forbidden page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Low,
    High,
}

/// Some bytes between two forbidden pages, one of which they touch.
pub(super) struct Guarded {
    mapping: NonNull<u8>,
    mapped: usize,
    bytes: NonNull<u8>,
    length: usize,
}

impl Guarded {
    /// `length` bytes with `byte(place)` in each.
    pub(super) fn new(length: usize, end: End, byte: impl Fn(usize) -> u8) -> Guarded {
        let inner = length.next_multiple_of(PAGE_BYTES).max(PAGE_BYTES);
        let mapped = inner + 2 * PAGE_BYTES;
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let mapping = unsafe { mmap_anonymous(std::ptr::null_mut(), mapped, protection, flags) };
        let mapping = NonNull::new(mapping.unwrap().cast::<u8>()).unwrap();
        let page = |at: usize| mapping.as_ptr().wrapping_add(at);
        for guard in [page(0), page(PAGE_BYTES + inner)] {
            // SAFETY: a page of the mapping that nobody has a reference to.
            unsafe { mprotect(guard.cast(), PAGE_BYTES, MprotectFlags::empty()) }.unwrap();
        }
        let start = match end {
            End::Low => PAGE_BYTES,
            End::High => PAGE_BYTES + inner - length,
        };
        let mut guarded = Guarded {
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
        // copy is under way while the test reads them.
        unsafe { std::slice::from_raw_parts(self.pointer(), self.length) }
    }

    fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and nobody else has a reference.
        unsafe { std::slice::from_raw_parts_mut(self.pointer(), self.length) }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`, and nobody has a reference any more.
        unsafe { munmap(self.mapping.as_ptr().cast(), self.mapped) }.unwrap();
    }
}

#[test]
fn the_bytes_touch_the_guard_they_were_asked_for() {
    let low = Guarded::new(100, End::Low, |at| u8::try_from(at).unwrap());
    assert_eq!(low.pointer().addr() % PAGE_BYTES, 0);
    assert_eq!(low.as_ref()[99], 99);
    let high = Guarded::new(100, End::High, |at| u8::try_from(at).unwrap());
    assert_eq!((high.pointer().addr() + 100) % PAGE_BYTES, 0);
}
