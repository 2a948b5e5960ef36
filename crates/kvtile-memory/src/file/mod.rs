//! Regions that are files: kept across restarts, or scratch files that nobody else sees.
//!
//! A file is read and written by position, never mapped. Nothing here makes a file shorter, and
//! nothing removes a file that the same call did not create.

mod direct;
mod length;
mod open;
mod transfer;

pub use length::Preallocation;
pub(crate) use length::check_limit as check_file_limit;
pub use open::FileOptions;

use crate::MemoryError;
use crate::region::{MemoryRegion, RegionView, StorageKind};
use direct::DirectFile;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::any::Any;
use std::path::{Path, PathBuf};

/// A region of `size` bytes from the start of a file.
///
/// Reads and writes of disjoint byte ranges may run at the same time from any number of threads;
/// of ranges that meet, one at a time, or the bytes that arrive are a mixture.
///
/// ```
/// use kvtile_memory::{FileMemory, MemoryError};
///
/// # let folder = tempfile::tempdir().unwrap();
/// let path = folder.path().join("cache");
/// let file = FileMemory::options().direct_io(true).create_new(&path, 1 << 20)?;
/// file.write_all_at(1234, b"kept")?;
/// file.sync_data()?;
/// drop(file);
///
/// let again = FileMemory::options().read_only(true).open_whole(&path)?;
/// let mut bytes = [0; 4];
/// again.read_exact_at(1234, &mut bytes)?;
/// assert_eq!(&bytes, b"kept");
/// # Ok::<(), MemoryError>(())
/// ```
#[derive(Debug)]
pub struct FileMemory {
    fd: OwnedFd,
    direct: DirectState,
    /// The path, or the folder of a scratch file; for messages.
    path: PathBuf,
    scratch: bool,
    size: usize,
    writable: bool,
    preallocation: Preallocation,
}

/// Whether reads and writes pass by the page cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DirectIo {
    /// They do where file offset, address and length allow.
    Active {
        /// Alignment of offsets, addresses and lengths at which all of a transfer is direct, in
        /// bytes: at least a page, a power of two.
        align: usize,
    },
    /// It was asked for and cannot be had; everything goes through the page cache.
    Unavailable {
        /// Why not.
        reason: String,
    },
    /// It was not asked for.
    NotRequested,
}

/// Which parts of a transfer may pass by the page cache.
#[derive(Debug, Clone, Copy)]
pub enum Division<'a> {
    /// None: all of it goes through the descriptor of [`AsFd`].
    Buffered,
    /// Those in the middle; what lies before and behind goes through the descriptor of [`AsFd`].
    Direct {
        /// The descriptor for the middle.
        fd: BorrowedFd<'a>,
        /// Bytes before the middle.
        head: usize,
        /// Bytes of the middle: a multiple of `alignment`, and not zero.
        middle: usize,
        /// Where the middle may be cut: at multiples of so many bytes from its start.
        alignment: usize,
    },
}

#[derive(Debug)]
enum DirectState {
    Open(DirectFile),
    Unavailable(String),
    NotRequested,
}

impl FileMemory {
    /// Options: direct I/O, pre-allocation, read-only, extend; all off.
    #[must_use]
    pub fn options() -> FileOptions {
        FileOptions::default()
    }

    /// Size of the region in bytes. The file may be longer; the rest is not touched.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "no region is empty")]
    pub fn len(&self) -> u64 {
        self.size as u64
    }

    /// The path it was opened by; `None` for a scratch file.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        (!self.scratch).then_some(self.path.as_path())
    }

    /// Whether direct I/O is used. It can change from active to unavailable once, when the kernel
    /// refuses a transfer that it had promised to take.
    #[must_use]
    pub fn direct_io(&self) -> DirectIo {
        match &self.direct {
            DirectState::NotRequested => DirectIo::NotRequested,
            DirectState::Unavailable(reason) => DirectIo::Unavailable {
                reason: reason.clone(),
            },
            DirectState::Open(direct) => direct.state(),
        }
    }

    /// Whether the room for all bytes was reserved when the file was opened.
    #[must_use]
    pub fn preallocation(&self) -> &Preallocation {
        &self.preallocation
    }

    /// The descriptor whose transfers pass by the page cache, for those who submit transfers
    /// themselves as [`FileMemory::divide`] says.
    #[must_use]
    pub fn direct_fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.direct {
            DirectState::Open(direct) => direct.usable().map(|direct| direct.fd()),
            _ => None,
        }
    }

    /// Waits until everything written so far has reached the storage device, whichever way it
    /// went.
    ///
    /// # Errors
    ///
    /// [`MemoryError::Io`] and [`MemoryError::OutOfSpace`]: earlier writes may be lost, and a
    /// second call does not tell again.
    pub fn sync_data(&self) -> Result<(), MemoryError> {
        rustix::io::retry_on_intr(|| rustix::fs::fdatasync(&self.fd))
            .map_err(|errno| self.error("sync", 0, errno))
    }

    fn error(&self, operation: &'static str, bytes: u64, errno: rustix::io::Errno) -> MemoryError {
        MemoryError::of_path(operation, &self.path, bytes, errno)
    }
}

impl AsFd for FileMemory {
    /// The descriptor whose transfers go through the page cache.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

// SAFETY: a disk region has no memory to guarantee. It starts at offset 0, its size was checked to
// be neither zero nor past the end of the address space, `fd` stays open as long as `self` lives,
// and `as_any` is the `FileMemory`.
unsafe impl MemoryRegion for FileMemory {
    fn addr(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        self.size
    }

    fn storage_kind(&self) -> StorageKind {
        StorageKind::Disk(u64::from(self.fd.as_raw_fd().unsigned_abs()))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn is_writable(&self) -> bool {
        self.writable
    }
}

/// The file behind a region and the file offset at which the region starts; `None` if the region
/// is neither a file nor a view of one.
#[must_use]
pub fn file_of(region: &dyn MemoryRegion) -> Option<(&FileMemory, u64)> {
    let any = region.as_any();
    let file = match any.downcast_ref::<RegionView>() {
        Some(view) => view.parent().as_any().downcast_ref(),
        None => any.downcast_ref(),
    }?;
    Some((file, region.addr() as u64))
}
