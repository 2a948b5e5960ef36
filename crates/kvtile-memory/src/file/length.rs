//! The length of a file: checked, extended and preallocated, never truncated.

use rustix::fd::BorrowedFd;
use rustix::fs::FallocateFlags;
use rustix::io::{Errno, ReadWriteFlags, retry_on_intr};
use rustix::process::{Resource, getrlimit};
use std::io::IoSlice;

/// Whether the filesystem has reserved the space for all bytes of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Preallocation {
    /// Reserved: no write can fail for lack of space.
    Done,
    /// It was requested, and the filesystem cannot do it.
    Unavailable {
        /// Why not.
        reason: String,
    },
    /// It was not requested.
    NotRequested,
}

/// Refuses sizes past the file size limit of the process: the kernel would kill the process
/// (`SIGXFSZ`) instead of failing the call.
pub(crate) fn check_limit(size: usize) -> Result<(), Errno> {
    match getrlimit(Resource::Fsize).current {
        Some(limit) if size as u64 > limit => Err(Errno::FBIG),
        _ => Ok(()),
    }
}

/// Extends the file to at least `size` bytes. It never truncates, even if other processes extend
/// the file concurrently, and it changes no existing byte; `ftruncate` could do both.
pub(super) fn grow(fd: BorrowedFd<'_>, size: usize) -> Result<(), Errno> {
    let last = (size as u64).saturating_sub(1);
    let allocate = || rustix::fs::fallocate(fd, FallocateFlags::empty(), last, 1);
    match retry_on_intr(allocate) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => append_zeroes(fd, size),
        grown => grown,
    }
}

/// As [`grow`], for filesystems without `fallocate`.
fn append_zeroes(fd: BorrowedFd<'_>, size: usize) -> Result<(), Errno> {
    static ZEROES: [u8; 1 << 16] = [0; 1 << 16];
    loop {
        let have = u64::try_from(rustix::fs::fstat(fd)?.st_size).unwrap_or(0);
        let missing = (size as u64).saturating_sub(have);
        let chunk = usize::try_from(missing).map_or(ZEROES.len(), |n| n.min(ZEROES.len()));
        let Some(zeroes) = ZEROES.get(..chunk).filter(|zeroes| !zeroes.is_empty()) else {
            // The file is long enough.
            return Ok(());
        };
        match rustix::io::pwritev2(fd, &[IoSlice::new(zeroes)], 0, ReadWriteFlags::APPEND) {
            Ok(0) => return Err(Errno::IO),
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Reserves the space for the first `size` bytes, if the filesystem can.
pub(super) fn preallocate(fd: BorrowedFd<'_>, size: usize) -> Result<Preallocation, Errno> {
    let allocate = || rustix::fs::fallocate(fd, FallocateFlags::KEEP_SIZE, 0, size as u64);
    match retry_on_intr(allocate) {
        Ok(()) => Ok(Preallocation::Done),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(Preallocation::Unavailable {
            reason: "the filesystem cannot reserve space".to_owned(),
        }),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fd::{AsFd, OwnedFd};
    use std::fs;

    /// Pitfall 10: an existing file keeps its bytes.
    #[test]
    fn growing_never_cuts_a_file_that_others_have_extended() {
        for grow in [grow, append_zeroes] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("file");
            fs::write(&path, b"content").unwrap();
            let file = fs::OpenOptions::new().write(true).open(&path);
            let fd: OwnedFd = file.unwrap().into();
            grow(fd.as_fd(), 3).unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"content");
            grow(fd.as_fd(), 200_000).unwrap();
            let bytes = fs::read(&path).unwrap();
            assert_eq!(bytes.len(), 200_000);
            assert_eq!(&bytes[..7], b"content");
            assert!(bytes[7..].iter().all(|byte| *byte == 0));
        }
    }
}
