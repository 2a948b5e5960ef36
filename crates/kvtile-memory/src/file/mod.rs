//! Regions that are files: persistent across restarts, or unnamed scratch files.
//!
//! A file is read and written by position, never mapped. No operation truncates a file, and no
//! operation removes a file that it did not create.

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
/// Threads may read and write disjoint byte ranges concurrently. Transfers of overlapping ranges
/// must not run concurrently, or the bytes read or stored are a mixture.
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
    /// The path, or the folder of a scratch file; for error messages.
    path: PathBuf,
    scratch: bool,
    size: usize,
    writable: bool,
    preallocation: Preallocation,
}

/// Whether reads and writes bypass the page cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DirectIo {
    /// Transfers bypass it where file offset, address and length are aligned.
    Active {
        /// Alignment in bytes of offsets, addresses and lengths at which the whole transfer is
        /// direct: at least a page, a power of two.
        align: usize,
    },
    /// It was requested and is not possible; every transfer goes through the page cache.
    Unavailable {
        /// Why not.
        reason: String,
    },
    /// It was not requested.
    NotRequested,
}

/// Which parts of a transfer may bypass the page cache.
#[derive(Debug, Clone, Copy)]
pub enum TransferDivision<'a> {
    /// None: the whole transfer goes through the descriptor of [`AsFd`].
    Buffered,
    /// The middle; head and tail go through the descriptor of [`AsFd`].
    Direct {
        /// The descriptor for the middle.
        fd: BorrowedFd<'a>,
        /// Bytes before the middle.
        head: usize,
        /// Bytes of the middle: a non-zero multiple of `alignment`.
        middle: usize,
        /// The middle may be split at multiples of this many bytes from its start.
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

    /// Size of the region in bytes. The file may be longer; bytes past the region are not touched.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "no region is empty")]
    pub fn len(&self) -> u64 {
        self.size as u64
    }

    /// The path that the file was opened by; `None` for a scratch file.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        (!self.scratch).then_some(self.path.as_path())
    }

    /// Whether direct I/O is used. It can change from active to unavailable once, when the kernel
    /// refuses an aligned transfer.
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

    /// Whether the filesystem reserved the space for all bytes when the file was opened.
    #[must_use]
    pub fn preallocation(&self) -> &Preallocation {
        &self.preallocation
    }

    /// The descriptor that bypasses the page cache, for callers that submit transfers themselves as
    /// [`FileMemory::divide`] splits them.
    #[must_use]
    pub fn direct_fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.direct {
            DirectState::Open(direct) => direct.usable().map(|direct| direct.fd()),
            _ => None,
        }
    }

    /// Waits until all writes so far are durable on the storage device, buffered and direct ones.
    ///
    /// # Errors
    ///
    /// [`MemoryError::Io`] and [`MemoryError::OutOfSpace`]: earlier writes may be lost, and a
    /// second call does not report the error again.
    pub fn sync_data(&self) -> Result<(), MemoryError> {
        rustix::io::retry_on_intr(|| rustix::fs::fdatasync(&self.fd))
            .map_err(|errno| self.error("sync", 0, errno))
    }

    fn error(&self, operation: &'static str, bytes: u64, errno: rustix::io::Errno) -> MemoryError {
        MemoryError::of_path(operation, &self.path, bytes, errno)
    }
}

impl AsFd for FileMemory {
    /// The descriptor that goes through the page cache.
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
