//! The disk tier's interface to a file system: one folder of files.
//!
//! All file access goes through this module, so that tests can substitute a simulated disk that
//! tears, reorders, runs full and loses power. It knows nothing of blocks.
//!
//! The guarantees of a medium, which the store relies on:
//!
//! - Before [`MediumFile::sync_data`] returns, written bytes may reach the disk in any order, in
//!   part, or not at all; afterwards they are durable.
//! - Changes of names (create, rename, remove) take effect in the order of the calls, and are
//!   durable after [`Medium::sync_folder`].
//! - A lock ends with its process, even if the process is killed; forked children do not hold it.
//! - Once a batch call has returned or panicked, nothing reads or writes its buffers any more.

mod folder;

pub use folder::{FolderMedium, FoundInstead, NotLocal, NotPlain};
pub use kvtile_transfer::{FileIo, FileRead, FileWay, FileWrite};

use std::{fmt, io, time::SystemTime};

/// How [`Medium::open`] opens a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFile {
    /// Length in bytes, not zero. A writable file is created if it is missing, truncated if it is
    /// longer, and extended with zeroes if it is shorter. A read-only file must have at least this
    /// length.
    pub length_bytes: u64,
    /// Whether the file is opened for writing.
    pub writable: bool,
    /// Whether transfers should bypass the page cache if the file system supports it.
    pub direct: bool,
    /// Whether to reserve the disk space of all bytes now, if the file system supports it.
    pub preallocate: bool,
}

/// Whether a name still refers to the file or folder that was opened under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameStanding {
    /// The name still refers to it.
    Same,
    /// The name no longer exists.
    Removed,
    /// The name refers to something else.
    Replaced,
    /// The file is shorter than when it was opened.
    Cut {
        /// Its current length in bytes.
        length_bytes: u64,
    },
}

/// One folder of files.
pub trait Medium: fmt::Debug + Send + Sync {
    /// The folder's name in messages.
    fn name(&self) -> String;

    /// Creates the folder if it is missing.
    ///
    /// # Errors
    /// The file system fails.
    fn create(&self) -> io::Result<()>;

    /// The names in the folder, in no particular order; empty if there is no folder.
    ///
    /// # Errors
    /// The file system fails.
    fn names(&self) -> io::Result<Vec<String>>;

    /// Length of a file in bytes; `None` if it is missing.
    ///
    /// # Errors
    /// The file system fails.
    fn length(&self, file: &str) -> io::Result<Option<u64>>;

    /// Reads a small file.
    ///
    /// # Errors
    /// The file system fails; `InvalidData` for a file longer than `bytes_max`.
    fn read(&self, file: &str, bytes_max: u64) -> io::Result<Vec<u8>>;

    /// Creates a small file, or replaces its content, and waits until the bytes are durable. A
    /// crash during the call can leave any mixture. The name is durable after
    /// [`Medium::sync_folder`].
    ///
    /// # Errors
    /// The file system fails.
    fn write(&self, file: &str, bytes: &[u8]) -> io::Result<()>;

    /// Renames a file atomically, replacing any file of the new name.
    ///
    /// # Errors
    /// The file system fails.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file. A missing file is no error.
    ///
    /// # Errors
    /// The file system fails.
    fn remove(&self, file: &str) -> io::Result<()>;

    /// Waits until all changes of names are durable.
    ///
    /// # Errors
    /// The file system fails.
    fn sync_folder(&self) -> io::Result<()>;

    /// Whether the folder's own name still refers to the opened folder. Its files can be intact and
    /// unreachable because the folder was removed, renamed or replaced.
    ///
    /// # Errors
    /// The file system fails.
    fn standing(&self) -> io::Result<NameStanding>;

    /// Closes the opened folder: the next use looks its name up again, and finds a folder that was
    /// created or replaced since. A medium without names of folders does nothing.
    fn reopen(&self) {}

    /// Takes the lock of the folder for writing, until the guard is dropped or the process ends.
    /// The process writes its number to the file `file`.
    ///
    /// # Errors
    /// Another process, or another part of this one, holds the lock; the file system fails;
    /// [`NotLocal`] on a file system whose locks may not bind every machine that can write there.
    fn lock(&self, file: &str) -> Result<Box<dyn MediumLock>, LockError>;

    /// As [`lock`](Medium::lock), but writes nothing: it keeps writers out while the folder is
    /// read.
    ///
    /// # Errors
    /// The same.
    fn lock_to_read(&self, file: &str) -> Result<Box<dyn MediumLock>, LockError>;

    /// The holder of the lock, if it is held. The call writes nothing, and holds the lock at most
    /// for a moment.
    ///
    /// # Errors
    /// The lock cannot be examined.
    fn holder(&self, file: &str) -> io::Result<Option<LockHolder>>;

    /// Whether [`MediumFile::punch`] works in this folder, tried on its file `file`, which it may
    /// create.
    fn punches(&self, _file: &str) -> bool {
        false
    }

    /// Opens a data file.
    ///
    /// # Errors
    /// The file system fails.
    fn open(&self, file: &str, how: &OpenFile) -> io::Result<Box<dyn MediumFile>>;
}

/// Called once for each read of a batch, with its index and its bytes or error.
pub type MediumReadLanded<'l> = dyn FnMut(usize, io::Result<&[u8]>) + 'l;

/// Called once for each write of a batch, with its index and its outcome.
pub type MediumWriteLanded<'l> = dyn FnMut(usize, io::Result<()>) + 'l;

/// How batches on a file are executed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BatchIo {
    /// One operation after the other.
    OneByOne,
    /// Many operations in flight.
    InFlight(FileIo),
}

/// A data file, read and written at offsets. All methods are thread-safe.
pub trait MediumFile: fmt::Debug + Send + Sync {
    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// The file system fails; `UnexpectedEof` if the file is too short. The content of `buffer` is
    /// unspecified then.
    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// The file system fails. Any part of `bytes` may be written then.
    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Executes all `reads`, each as [`MediumFile::read_exact_at`], in any order and several at a
    /// time. It calls `landed` as soon as a read completes, while others may be in flight.
    fn read_many(&self, reads: &mut [FileRead<'_>], landed: &mut MediumReadLanded<'_>) {
        for (index, read) in reads.iter_mut().enumerate() {
            let outcome = self.read_exact_at(read.offset, read.bytes);
            landed(index, outcome.map(|()| &*read.bytes));
        }
    }

    /// Executes all `writes`, which must not overlap, each as [`MediumFile::write_all_at`], in any
    /// order and several at a time. It calls `landed` as soon as a write completes, while others
    /// may be in flight.
    fn write_many(&self, writes: &[FileWrite<'_>], landed: &mut MediumWriteLanded<'_>) {
        for (index, write) in writes.iter().enumerate() {
            landed(index, self.write_all_at(write.offset, write.bytes));
        }
    }

    /// How [`MediumFile::read_many`] and [`MediumFile::write_many`] are executed now.
    fn batch_io(&self) -> BatchIo {
        BatchIo::OneByOne
    }

    /// Returns the disk space of a range to the file system. The length of the file stays, and the
    /// range reads as zeroes until it is written again.
    ///
    /// # Errors
    /// The file system fails, or has no such operation. The content of the range is unspecified
    /// then.
    fn punch(&self, _offset: u64, _bytes: u64) -> io::Result<()> {
        Err(io::Error::from(io::ErrorKind::Unsupported))
    }

    /// Waits until everything written before is durable.
    ///
    /// # Errors
    /// The file system fails. Bytes written since the last successful sync may be lost then, and a
    /// second call does not report the failure again.
    fn sync_data(&self) -> io::Result<()>;

    /// Whether the name that the file was opened under still refers to it. Reads and writes of a
    /// file whose name was removed keep succeeding; their bytes disappear with the process.
    ///
    /// # Errors
    /// The file system fails.
    fn standing(&self) -> io::Result<NameStanding>;

    /// When the file was last written, by the clock of the file system, which may be coarse; `None`
    /// if the medium does not record it.
    ///
    /// # Errors
    /// The file system fails.
    fn modified(&self) -> io::Result<Option<SystemTime>> {
        Ok(None)
    }

    /// Whether transfers bypass the page cache.
    fn is_direct(&self) -> bool;
}

/// The guard of a lock, which is held until it is dropped.
pub trait MediumLock: fmt::Debug + Send + Sync {}

/// The process that holds a lock, as far as it is visible.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LockHolder {
    /// The process that has the lock now. Processes of other users and of other containers are not
    /// visible.
    pub pid: Option<u32>,
    /// The program of that process.
    pub program: Option<String>,
    /// The process that took the lock, according to the lock file. It may have ended and left the
    /// lock to a child.
    pub opened_by: Option<u32>,
}

/// Why a lock was not taken.
#[derive(Debug)]
pub enum LockError {
    /// Another process, or another part of this one, holds it.
    Held(LockHolder),
    /// The file system returned an error.
    Io(io::Error),
}

impl From<io::Error> for LockError {
    fn from(error: io::Error) -> LockError {
        LockError::Io(error)
    }
}
