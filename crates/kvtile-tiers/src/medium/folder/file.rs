//! A data file of a folder.

use std::{
    fs::File,
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};

use kvtile_layout::broken;
use kvtile_memory::{DirectIo, FileMemory, MemoryError};
use kvtile_transfer::{FileBatch, FileRead, FileWay, FileWrite};
use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{FallocateFlags, fallocate, fstat, fsync, ftruncate},
    io::retry_on_intr,
};

use super::{
    super::{BatchIo, MediumFile, MediumReadLanded, MediumWriteLanded, NameStanding, OpenFile},
    local::check_local,
    plain::{FileAccess, FileNumber, open_plain, stat_name},
};

#[derive(Debug)]
pub(super) struct FolderFile {
    memory: FileMemory,
    batch: FileBatch,
    folder: Arc<File>,
    name: String,
    number: FileNumber,
}

impl FolderFile {
    /// Opens the file `name` of `folder`; messages call it `called`.
    pub(super) fn open(
        folder: Arc<File>,
        (name, called): (&str, &str),
        how: &OpenFile,
        way: FileWay,
    ) -> io::Result<FolderFile> {
        let size = usize::try_from(how.length_bytes).map_err(io::Error::other)?;
        let access = match how.writable {
            true => FileAccess::Write,
            false => FileAccess::Read,
        };
        let fd = open_plain(&folder, name, access)?;
        if how.writable {
            // Another file system may be mounted on the file itself.
            check_local(&fd)?;
            cut(&fd, how.length_bytes)?;
        }
        let number = FileNumber::of(&fstat(&fd)?);
        let memory = FileMemory::options()
            .read_only(!how.writable)
            .extend(how.writable)
            .direct_io(how.direct)
            .preallocate(how.preallocate && how.writable)
            .open_fd(fd, called, size)
            .map_err(into_io)?;
        Ok(FolderFile {
            memory,
            batch: FileBatch::new(way),
            folder,
            name: name.to_owned(),
            number,
        })
    }
}

/// Truncates the file if it is longer.
fn cut(fd: &OwnedFd, length_bytes: u64) -> io::Result<()> {
    if length(&fstat(fd)?) > length_bytes {
        ftruncate(fd, length_bytes)?;
        fsync(fd)?;
    }
    Ok(())
}

/// Returns the disk space of a range of a file to the file system.
pub(super) fn punch(file: impl AsFd, offset: u64, bytes: u64) -> io::Result<()> {
    let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(retry_on_intr(|| fallocate(&file, how, offset, bytes))?)
}

/// Length of a file in bytes.
pub(super) fn length(stat: &rustix::fs::Stat) -> u64 {
    match u64::try_from(stat.st_size) {
        Ok(bytes) => bytes,
        Err(_) => broken(format_args!("a file of {} bytes", stat.st_size)),
    }
}

/// When a file was last written; `None` for a time before 1970 or past the range of the clock.
fn modified(stat: &rustix::fs::Stat) -> Option<SystemTime> {
    let seconds = Duration::from_secs(u64::try_from(stat.st_mtime).ok()?);
    #[expect(
        clippy::useless_conversion,
        reason = "the type differs between architectures"
    )]
    let nanos = Duration::from_nanos(u64::try_from(stat.st_mtime_nsec).ok()?);
    SystemTime::UNIX_EPOCH.checked_add(seconds.checked_add(nanos)?)
}

impl MediumFile for FolderFile {
    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.memory.read_exact_at(offset, buffer).map_err(into_io)
    }

    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.memory.write_all_at(offset, bytes).map_err(into_io)
    }

    fn read_many(&self, reads: &mut [FileRead<'_>], landed: &mut MediumReadLanded<'_>) {
        self.batch.read(&self.memory, reads, &mut |index, outcome| {
            landed(index, outcome.map_err(into_io));
        });
    }

    fn write_many(&self, writes: &[FileWrite<'_>], landed: &mut MediumWriteLanded<'_>) {
        self.batch
            .write(&self.memory, writes, &mut |index, outcome| {
                landed(index, outcome.map_err(into_io));
            });
    }

    fn punch(&self, offset: u64, bytes: u64) -> io::Result<()> {
        punch(&self.memory, offset, bytes)
    }

    fn batch_io(&self) -> BatchIo {
        BatchIo::InFlight(self.batch.io())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.memory.sync_data().map_err(into_io)
    }

    fn standing(&self) -> io::Result<NameStanding> {
        Ok(match stat_name(&self.folder, &self.name)? {
            None => NameStanding::Removed,
            Some(stat) if FileNumber::of(&stat) != self.number => NameStanding::Replaced,
            Some(stat) if length(&stat) < self.memory.len() => NameStanding::Cut {
                length_bytes: length(&stat),
            },
            Some(_) => NameStanding::Same,
        })
    }

    fn modified(&self) -> io::Result<Option<SystemTime>> {
        Ok(modified(&fstat(&self.memory)?))
    }

    fn is_direct(&self) -> bool {
        matches!(self.memory.direct_io(), DirectIo::Active { .. })
    }
}

/// The kernel's own error, if the memory error has one.
fn into_io(error: MemoryError) -> io::Error {
    match error {
        MemoryError::PermissionDenied { source, .. }
        | MemoryError::OutOfSpace { source, .. }
        | MemoryError::Io { source, .. } => source,
        MemoryError::UnexpectedEnd { .. }
        | MemoryError::FileTooSmall { .. }
        | MemoryError::OutOfBounds { .. } => io::Error::new(io::ErrorKind::UnexpectedEof, error),
        MemoryError::NotFound { .. } => io::Error::new(io::ErrorKind::NotFound, error),
        error => io::Error::other(error),
    }
}
