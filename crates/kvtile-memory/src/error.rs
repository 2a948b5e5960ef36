//! The one error type of this crate, and how kernel errors become it.

use crate::StorageKind;
use rustix::io::Errno;
use std::io;
use std::path::{Path, PathBuf};

/// Why a region could not be made, opened, received, viewed, read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// A region, view or buffer of zero bytes was asked for.
    #[error("a size of zero bytes was asked for; a region has at least one byte")]
    ZeroSize,
    /// The size cannot be held by any region of this machine or file of this filesystem.
    #[error("{bytes} bytes are more than can be addressed here")]
    TooLarge {
        /// The size asked for, in bytes.
        bytes: u64,
    },
    /// The kernel gave no memory.
    #[error("the kernel gave no {bytes} bytes of memory: {source}")]
    AllocationFailed {
        /// The size asked for, in bytes.
        bytes: usize,
        /// What the kernel said.
        source: io::Error,
    },
    /// Filling that much memory now would end in the out-of-memory killer.
    #[error(
        "{bytes} bytes were to be pre-faulted, but {limit} allows {allowed_bytes}; ask for less, \
         raise the limit, or allocate without pre-faulting"
    )]
    LimitExceeded {
        /// The size asked for, in bytes.
        bytes: usize,
        /// What may be used, in bytes.
        allowed_bytes: u64,
        /// Which limit it is.
        limit: MemoryLimit,
    },
    /// An alignment that is zero or no power of two.
    #[error("alignment {alignment} is not a power of two")]
    InvalidAlignment {
        /// The alignment asked for, in bytes.
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
    /// The storage kind cannot be used for this sort of region.
    #[error("{kind} cannot be borrowed by address; open files as files")]
    UnsupportedKind {
        /// The kind asked for.
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
        /// The path asked for.
        path: PathBuf,
    },
    /// A new file was asked for where one exists. It was not touched.
    #[error("{path} exists already and is left as it is; open it, or choose another path",
            path = path.display())]
    AlreadyExists {
        /// The path asked for.
        path: PathBuf,
    },
    /// The path is a folder, a device, a pipe or a socket.
    #[error("{path} is not a regular file", path = path.display())]
    NotAFile {
        /// The path asked for.
        path: PathBuf,
    },
    /// The process may not do this with the path.
    #[error("no permission to {operation} {path}: {source}", path = path.display())]
    PermissionDenied {
        /// What was tried.
        operation: &'static str,
        /// The path asked for.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// An existing file is shorter than the region that was asked for. It was not touched.
    #[error("{path} has {have} bytes and {need} are needed; open it with extend(true) to let it \
             grow", path = path.display())]
    FileTooSmall {
        /// The path asked for.
        path: PathBuf,
        /// Its length, in bytes.
        have: u64,
        /// The size asked for, in bytes.
        need: u64,
    },
    /// The filesystem, a quota or a file size limit has no room.
    #[error("no room for {bytes} bytes at {path}: {source}", path = path.display())]
    OutOfSpace {
        /// The path asked for.
        path: PathBuf,
        /// How many bytes were to be stored.
        bytes: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// A write, or an option that writes, on a file that was opened read-only.
    #[error("{path} is opened read-only", path = path.display())]
    ReadOnly {
        /// The path asked for.
        path: PathBuf,
    },
    /// The file ended inside a region: somebody made it shorter after it was opened.
    #[error("{path} ended at byte {offset} with {missing} bytes still to read; it was cut while \
             in use", path = path.display())]
    UnexpectedEnd {
        /// The path asked for.
        path: PathBuf,
        /// File offset at which nothing more could be read.
        offset: u64,
        /// Bytes that were still wanted.
        missing: usize,
    },
    /// A received descriptor whose size is not sealed: its sender could cut it under us.
    #[error(
        "the received memory is not sealed against shrinking; its owner could cut it while it \
             is mapped here"
    )]
    NotSealed,
    /// A received descriptor that is not shared memory at all.
    #[error("the received descriptor is not a sealable memfd: {source}")]
    NotSharedMemory {
        /// What the kernel said.
        source: io::Error,
    },
    /// Shared memory that may not be mapped for writing.
    #[error("the received memory may not be written: {source}")]
    SharedNotWritable {
        /// What the kernel said.
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
        /// How many came (a lower bound where more came than were taken).
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
        /// What was tried.
        operation: &'static str,
        /// The path it was tried on; for a scratch file, its folder.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Any other error of an operation that concerns no path.
    #[error("cannot {operation}: {source}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A limit on memory that pre-faulting would break.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemoryLimit {
    /// Memory and swap that the machine has available.
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
    /// The error of `operation` on `path`; `bytes` is how much it was to store, for errors of room.
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
