//! What the disk tier asks of a file system: one folder of files.
//!
//! Everything that touches files goes through here, so that tests can put a simulated disk in its
//! place that tears, reorders, fills up and loses power. It knows nothing of blocks.
//!
//! What a medium promises, and what the store builds on:
//!
//! - Before [`MediumFile::sync_data`] returns, bytes written may reach the disk in any order, in
//!   part, or not at all; afterwards they stay.
//! - Names change (created, renamed, removed) in the order of the calls, and stay after
//!   [`Medium::sync_folder`].
//! - A lock ends with its process, however that ends; children do not have it.
//! - What a batch was given belongs to the caller again when the call has returned or panicked: nothing
//!   reads or writes it any more.

mod folder;

pub use folder::{FolderMedium, FoundInstead, NotLocal, NotPlain};
pub use kvtile_transfer::{FileIo, FileRead, FileWay, FileWrite};

use std::{fmt, io};

/// How [`Medium::open`] opens a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFile {
    /// Length in bytes, not zero. What is writable is created where it is missing, cut where it is
    /// longer and lengthened by zeroes where it is shorter; what is read only is at least so long.
    pub length_bytes: u64,
    /// Whether it is written to.
    pub writable: bool,
    /// Whether transfers should pass by the page cache where the file system can.
    pub direct: bool,
    /// Whether the room for all bytes is to be reserved now, where the file system can.
    pub preallocate: bool,
}

/// What has become of a name under which something was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It still stands for what was opened.
    Same,
    /// Nothing has that name any more.
    Removed,
    /// Something else has that name.
    Replaced,
    /// The file is shorter than it was when it was opened.
    Cut {
        /// Its length now, in bytes.
        length_bytes: u64,
    },
}

/// One folder of files.
pub trait Medium: fmt::Debug + Send + Sync {
    /// What the folder is called in messages.
    fn name(&self) -> String;

    /// Makes the folder where it is missing.
    ///
    /// # Errors
    /// What the file system says.
    fn create(&self) -> io::Result<()>;

    /// The names in the folder, in no order. None where there is no folder.
    ///
    /// # Errors
    /// What the file system says.
    fn names(&self) -> io::Result<Vec<String>>;

    /// Length of a file in bytes; `None` where there is none of that name.
    ///
    /// # Errors
    /// What the file system says.
    fn length(&self, file: &str) -> io::Result<Option<u64>>;

    /// All bytes of a small file.
    ///
    /// # Errors
    /// What the file system says; `InvalidData` for a file longer than `bytes_max`.
    fn read(&self, file: &str, bytes_max: u64) -> io::Result<Vec<u8>>;

    /// Puts `bytes` in a small file, which is created or loses what it held, and waits until they
    /// are on the disk. A crash meanwhile leaves any mixture; its name is durable after
    /// [`Medium::sync_folder`].
    ///
    /// # Errors
    /// What the file system says.
    fn write(&self, file: &str, bytes: &[u8]) -> io::Result<()>;

    /// Gives a file another name, in place of whatever had that name, in one step.
    ///
    /// # Errors
    /// What the file system says.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file. One that is missing is no error.
    ///
    /// # Errors
    /// What the file system says.
    fn remove(&self, file: &str) -> io::Result<()>;

    /// Waits until all names are on the disk.
    ///
    /// # Errors
    /// What the file system says.
    fn sync_folder(&self) -> io::Result<()>;

    /// What has become of the folder's own name since its files were opened. Files may lie in it and
    /// be out of reach, because the folder was removed, renamed or replaced.
    ///
    /// # Errors
    /// What the file system says.
    fn standing(&self) -> io::Result<Standing>;

    /// Takes the lock of the folder, to write in it, until the guard is dropped or the process ends;
    /// the process leaves its number in the file `lock`.
    ///
    /// # Errors
    /// Another process, or another part of this one, holds it, or what the file system says;
    /// [`NotLocal`] on a file system whose locks may not reach all that can write there.
    fn lock(&self, file: &str) -> Result<Box<dyn MediumLock>, LockError>;

    /// As [`lock`](Medium::lock), and nothing is written: keeps others from writing while the folder is
    /// read.
    ///
    /// # Errors
    /// The same.
    fn lock_to_read(&self, file: &str) -> Result<Box<dyn MediumLock>, LockError>;

    /// Who holds the lock, if it is held. It takes and writes nothing.
    ///
    /// # Errors
    /// It cannot be told.
    fn holder(&self, file: &str) -> io::Result<Option<LockHolder>>;

    /// Opens a data file.
    ///
    /// # Errors
    /// What the file system says.
    fn open(&self, file: &str, how: &OpenFile) -> io::Result<Box<dyn MediumFile>>;
}

/// Gets the index of each block of a batch of reads once, with its bytes or why there are none.
pub type ReadLanded<'l> = dyn FnMut(usize, io::Result<&[u8]>) + 'l;

/// Gets the index of each block of a batch of writes once, with its outcome.
pub type WriteLanded<'l> = dyn FnMut(usize, io::Result<()>) + 'l;

/// What batches of a file go through.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BatchIo {
    /// One operation after the other.
    OneByOne,
    /// Many in flight.
    InFlight(FileIo),
}

/// A data file, read and written by position from any number of threads.
pub trait MediumFile: fmt::Debug + Send + Sync {
    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// What the file system says; `UnexpectedEof` where the file is too short. What `buffer` holds
    /// then is unspecified.
    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// What the file system says. Any part may be written then.
    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Does all of `reads`, each as [`MediumFile::read_exact_at`] would, in any order and several at a
    /// time. `landed` gets each as soon as it has ended, while others may be under way.
    fn read_many(&self, reads: &mut [FileRead<'_>], landed: &mut ReadLanded<'_>) {
        for (index, read) in reads.iter_mut().enumerate() {
            let outcome = self.read_exact_at(read.offset, read.bytes);
            landed(index, outcome.map(|()| &*read.bytes));
        }
    }

    /// Does all of `writes`, which do not meet, each as [`MediumFile::write_all_at`] would, in any order
    /// and several at a time. `landed` gets each as soon as it has ended, while others may be under way.
    fn write_many(&self, writes: &[FileWrite<'_>], landed: &mut WriteLanded<'_>) {
        for (index, write) in writes.iter().enumerate() {
            landed(index, self.write_all_at(write.offset, write.bytes));
        }
    }

    /// What [`MediumFile::read_many`] and [`MediumFile::write_many`] go through now.
    fn batch_io(&self) -> BatchIo {
        BatchIo::OneByOne
    }

    /// Waits until everything written before is on the disk.
    ///
    /// # Errors
    /// What the file system says. What was written since the last sync that succeeded may be lost
    /// then, and a second call does not tell again.
    fn sync_data(&self) -> io::Result<()>;

    /// What has become of the name in the folder that the file was opened by. Reads and writes of a
    /// file without a name go on and fail nowhere; what they wrote is gone with the process.
    ///
    /// # Errors
    /// What the file system says.
    fn standing(&self) -> io::Result<Standing>;

    /// Whether transfers pass by the page cache.
    fn is_direct(&self) -> bool;
}

/// A lock that is held while this lives.
pub trait MediumLock: fmt::Debug + Send + Sync {}

/// Which process holds a lock, as far as can be seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LockHolder {
    /// A process that has the lock now. Other users' processes and those of other containers cannot be
    /// seen.
    pub pid: Option<u32>,
    /// What that process runs.
    pub program: Option<String>,
    /// The process that took the lock, as it wrote down. It may have ended, and left the lock to a
    /// child.
    pub opened_by: Option<u32>,
}

/// Why a lock was not taken.
#[derive(Debug)]
pub enum LockError {
    /// Another process, or another part of this one, holds it.
    Held(LockHolder),
    /// The file system refused.
    Io(io::Error),
}

impl From<io::Error> for LockError {
    fn from(error: io::Error) -> LockError {
        LockError::Io(error)
    }
}
