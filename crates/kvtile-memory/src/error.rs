//! The one error type of this crate, and how kernel errors become it.

use crate::StorageKind;
use rustix::io::Errno;
use std::io;
use std::path::{Path, PathBuf};

/// Why a region could not be made, opened, received, viewed, read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The requested region, view or buffer has zero bytes.
    #[error("a size of zero bytes was requested; a region has at least one byte")]
    ZeroSize,
    /// The size exceeds what the address space or the filesystem can hold.
    #[error("{bytes} bytes are more than can be addressed here")]
    TooLarge {
        /// The requested size, in bytes.
        bytes: u64,
    },
    /// The kernel refused the memory.
    #[error("the kernel refused {bytes} bytes of memory: {source}")]
    AllocationFailed {
        /// The requested size, in bytes.
        bytes: usize,
        /// The kernel's error.
        source: io::Error,
    },
    /// Pre-faulting that much memory would invoke the out-of-memory killer.
    #[error(
        "{bytes} bytes were to be pre-faulted, but {limit} allows {allowed_bytes}; request less, \
         raise the limit, or allocate without pre-faulting"
    )]
    LimitExceeded {
        /// The requested size, in bytes.
        bytes: usize,
        /// The bytes that the limit still allows.
        allowed_bytes: u64,
        /// Which limit it is.
        limit: MemoryLimit,
    },
    /// An alignment that is zero or no power of two.
    #[error("alignment {alignment} is not a power of two")]
    InvalidAlignment {
        /// The requested alignment, in bytes.
        alignment: usize,
    },
    /// A borrowed region that would reach past the end of the address space.
    #[error("address {addr:#x} plus {size} bytes passes the end of the address space")]
    AddressWrap {
        /// Start of the region.
        addr: usize,
        /// Size of the region, in bytes.
        size: usize,
    },
    /// A borrowed region cannot have this storage kind.
    #[error("{kind} cannot be borrowed by address; open files as files")]
    UnsupportedKind {
        /// The requested kind.
        kind: StorageKind,
    },
    /// A range that does not lie inside the region.
    #[error("bytes {offset}..{offset}+{len} are outside the region of {size} bytes")]
    OutOfBounds {
        /// Start of the range inside the region, in bytes.
        offset: u64,
        /// Length of the range, in bytes.
        len: usize,
        /// Size of the region, in bytes.
        size: usize,
    },
    /// The path does not exist.
    #[error("{path} does not exist", path = path.display())]
    NotFound {
        /// The path.
        path: PathBuf,
    },
    /// The file to create exists already. It is unchanged.
    #[error("{path} exists already and is left as it is; open it, or choose another path",
            path = path.display())]
    AlreadyExists {
        /// The path.
        path: PathBuf,
    },
    /// The path is a folder, a device, a pipe or a socket.
    #[error("{path} is not a regular file", path = path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The process lacks the permission for this operation on the path.
    #[error("no permission to {operation} {path}: {source}", path = path.display())]
    PermissionDenied {
        /// The failed operation.
        operation: &'static str,
        /// The path.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// An existing file is shorter than the requested region. It is unchanged.
    #[error("{path} has {have} bytes and {need} are needed; open it with extend(true) to let it \
             grow", path = path.display())]
    FileTooSmall {
        /// The path.
        path: PathBuf,
        /// Its length, in bytes.
        have: u64,
        /// The requested size, in bytes.
        need: u64,
    },
    /// The filesystem, a quota or a file size limit has no room.
    #[error("no room for {bytes} bytes at {path}: {source}", path = path.display())]
    OutOfSpace {
        /// The path.
        path: PathBuf,
        /// How many bytes were to be stored.
        bytes: u64,
        /// The kernel's error.
        source: io::Error,
    },
    /// A write, or an option that writes, on a file that was opened read-only.
    #[error("{path} is opened read-only", path = path.display())]
    ReadOnly {
        /// The path.
        path: PathBuf,
    },
    /// The file ended inside the region: it was truncated after it was opened.
    #[error("{path} ended at byte {offset} with {missing} bytes still to read; it was truncated while \
             in use", path = path.display())]
    UnexpectedEnd {
        /// The path.
        path: PathBuf,
        /// File offset of the end of the file.
        offset: u64,
        /// Bytes of the read that lie past the end.
        missing: usize,
    },
    /// A received descriptor whose size is not sealed: its owner could truncate it while mapped.
    #[error(
        "the received memory is not sealed against shrinking; its owner could truncate it while \
             it is mapped here"
    )]
    NotSealed,
    /// A received descriptor that is not shared memory.
    #[error("the received descriptor is not a sealable memfd: {source}")]
    NotSharedMemory {
        /// The kernel's error.
        source: io::Error,
    },
    /// Shared memory that may not be mapped for writing.
    #[error("the received memory may not be written: {source}")]
    SharedNotWritable {
        /// The kernel's error.
        source: io::Error,
    },
    /// The size that the sender claims is not the size of the memory that came with it.
    #[error("the sender claims {claimed} bytes, the memory has {actual}")]
    SharedSizeMismatch {
        /// Size in the message, in bytes.
        claimed: u64,
        /// Size of the memory, in bytes.
        actual: u64,
    },
    /// A hand-over brings exactly one descriptor.
    #[error("a hand-over brings exactly one descriptor, this one brought {count}")]
    HandoverDescriptors {
        /// How many came; a lower bound where more came than were received.
        count: usize,
    },
    /// The bytes received are not a hand-over of this version.
    #[error("the bytes received are not a shared-memory hand-over of this version")]
    HandoverMessage,
    /// The peer closed the socket inside a hand-over.
    #[error("the peer closed the socket after {received} of {expected} bytes")]
    HandoverIncomplete {
        /// Bytes received.
        received: usize,
        /// Bytes of a whole message.
        expected: usize,
    },
    /// Any other error of a file operation.
    #[error("cannot {operation} {path}: {source}", path = path.display())]
    Io {
        /// The failed operation.
        operation: &'static str,
        /// The path; for a scratch file, its folder.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// Any other error of an operation without a path.
    #[error("cannot {operation}: {source}")]
    System {
        /// The failed operation.
        operation: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
}

/// The memory limit that pre-faulting would exceed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemoryLimit {
    /// The available memory and swap of the machine.
    Machine,
    /// The limit of the control group that the process runs in.
    ControlGroup,
}

impl std::fmt::Display for MemoryLimit {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Machine => "the memory available on this machine",
            Self::ControlGroup => "the memory limit of the control group",
        })
    }
}

impl MemoryError {
    /// The error of `operation` on `path`; out-of-space errors report `bytes`, the size to store.
    pub(crate) fn of_path(operation: &'static str, path: &Path, bytes: u64, errno: Errno) -> Self {
        let path = path.to_path_buf();
        let source = io::Error::from(errno);
        match errno {
            Errno::NOENT | Errno::NOTDIR => Self::NotFound { path },
            Errno::EXIST => Self::AlreadyExists { path },
            Errno::ISDIR | Errno::NXIO => Self::NotAFile { path },
            Errno::ACCESS | Errno::PERM | Errno::ROFS => Self::PermissionDenied {
                operation,
                path,
                source,
            },
            Errno::NOSPC | Errno::DQUOT | Errno::FBIG => Self::OutOfSpace {
                path,
                bytes,
                source,
            },
            _ => Self::Io {
                operation,
                path,
                source,
            },
        }
    }

    pub(crate) fn system(operation: &'static str, errno: Errno) -> Self {
        Self::System {
            operation,
            source: io::Error::from(errno),
        }
    }
}
