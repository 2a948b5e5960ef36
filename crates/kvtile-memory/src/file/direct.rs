//! Direct I/O: the second descriptor of a file, and which part of a transfer may use it.
//!
//! ```text
//! file offset   ..|--------|--------|--------|--------|..    | = multiple of the alignment
//! transfer          [ head |      middle     | tail ]
//!                   buffered     direct        buffered
//! ```
//!
//! The alignment is at least a page. So no transfer uses a page of the page cache both directly and
//! buffered, nor do two transfers of disjoint ranges: a transfer accesses a page directly only if
//! it covers the whole page.

use super::{DirectIo, DirectState};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use std::sync::atomic::{AtomicBool, Ordering};

/// The alignment for filesystems that do not report one.
const USUAL_ALIGNMENT: usize = 4096;

/// `f_type` of tmpfs, whose files live in the page cache.
const TMPFS_MAGIC: i64 = 0x0102_1994;

#[derive(Debug)]
pub(super) struct DirectFile {
    fd: OwnedFd,
    alignment: DirectAlignment,
    refused: AtomicBool,
}

/// Both are powers of two, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DirectAlignment {
    offset: usize,
    memory: usize,
}

impl DirectFile {
    /// Opens the file behind `fd` a second time.
    pub(super) fn open(fd: BorrowedFd<'_>, writable: bool) -> DirectState {
        let alignment = match alignment_of(fd) {
            Ok(alignment) => alignment,
            Err(reason) => return DirectState::Unavailable(reason),
        };
        // By descriptor number, not by path: the path may name another file by now, or none.
        let this = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let access = if writable {
            OFlags::RDWR
        } else {
            OFlags::RDONLY
        };
        match rustix::fs::open(
            this,
            access | OFlags::DIRECT | OFlags::CLOEXEC,
            Mode::empty(),
        ) {
            Ok(fd) => DirectState::Open(Self {
                fd,
                alignment,
                refused: AtomicBool::new(false),
            }),
            Err(Errno::INVAL) => {
                DirectState::Unavailable("the filesystem does not support direct I/O".to_owned())
            }
            Err(errno) => {
                DirectState::Unavailable(format!("cannot open it a second time: {errno}"))
            }
        }
    }

    pub(super) fn state(&self) -> DirectIo {
        if self.usable().is_some() {
            return DirectIo::Active {
                align: self.alignment.offset.max(self.alignment.memory),
            };
        }
        DirectIo::Unavailable {
            reason: "the kernel refused an aligned transfer".to_owned(),
        }
    }

    /// `self`, unless the kernel has refused a transfer before.
    pub(super) fn usable(&self) -> Option<&Self> {
        (!self.refused.load(Ordering::Relaxed)).then_some(self)
    }

    pub(super) fn set_refused(&self) {
        self.refused.store(true, Ordering::Relaxed);
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(super) fn alignment(&self) -> DirectAlignment {
        self.alignment
    }
}

impl DirectAlignment {
    /// The alignment of offsets and lengths.
    pub(super) fn of_offsets(self) -> usize {
        self.offset
    }

    /// The bytes before the middle and the bytes of the middle, for `len` bytes at file offset
    /// `offset` and address `address`. A middle of zero means that no part can be direct.
    pub(super) fn split(self, offset: u64, address: usize, len: usize) -> (usize, usize) {
        let past = offset % self.offset as u64;
        let head = match usize::try_from(past) {
            Ok(0) => 0,
            Ok(past) => self.offset - past,
            Err(_) => return (0, 0),
        };
        let Some(rest) = len.checked_sub(head) else {
            return (0, 0);
        };
        let middle = rest - rest % self.offset;
        // Addresses are compared modulo a power of two, so wrapping is harmless.
        if middle == 0 || !address.wrapping_add(head).is_multiple_of(self.memory) {
            return (0, 0);
        }
        (head, middle)
    }
}

/// The alignment that the file requires, or why it does not support direct I/O.
fn alignment_of(fd: BorrowedFd<'_>) -> Result<DirectAlignment, String> {
    let page = rustix::param::page_size();
    let usual = DirectAlignment {
        offset: USUAL_ALIGNMENT.max(page),
        memory: USUAL_ALIGNMENT,
    };
    if rustix::fs::fstatfs(fd).is_ok_and(|stat| stat.f_type == TMPFS_MAGIC) {
        return Err("tmpfs keeps its files in memory".to_owned());
    }
    let Ok(stat) = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) else {
        return Ok(usual);
    };
    if stat.stx_mask & StatxFlags::DIOALIGN.bits() == 0 {
        return Ok(usual);
    }
    let reported = |bytes: u32| usize::try_from(bytes).ok().filter(|n| n.is_power_of_two());
    match (
        reported(stat.stx_dio_offset_align),
        reported(stat.stx_dio_mem_align),
    ) {
        (Some(offset), Some(memory)) => Ok(DirectAlignment {
            offset: offset.max(page),
            memory,
        }),
        _ => Err("the filesystem reports that this file does not support direct I/O".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALIGNMENT: DirectAlignment = DirectAlignment {
        offset: 4096,
        memory: 512,
    };

    #[test]
    fn the_middle_is_all_that_is_aligned_and_nothing_else() {
        assert_eq!(ALIGNMENT.split(0, 0, 8192), (0, 8192));
        assert_eq!(ALIGNMENT.split(0, 512, 8191), (0, 4096));
        assert_eq!(ALIGNMENT.split(4095, 511, 8193), (1, 8192));
        assert_eq!(ALIGNMENT.split(1, 1, 8191), (4095, 4096));
    }

    #[test]
    fn nothing_is_direct_when_no_page_is_covered_or_the_address_does_not_fit() {
        assert_eq!(ALIGNMENT.split(0, 0, 4095), (0, 0));
        assert_eq!(ALIGNMENT.split(1, 1, 8190), (0, 0));
        assert_eq!(ALIGNMENT.split(1, 1, 100), (0, 0));
        assert_eq!(ALIGNMENT.split(0, 8, 8192), (0, 0));
        assert_eq!(ALIGNMENT.split(u64::MAX, 0, 0), (0, 0));
    }
}
