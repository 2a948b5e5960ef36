//! A folder of the file system.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use kvtile_memory::{DirectIo, FileMemory, MemoryError};

use super::{LockError, Medium, MediumFile, MediumLock, OpenFile};

/// Files that only the user may read, as prompts can be told from them.
const FILE_MODE: u32 = 0o600;

/// A folder that only the user may enter.
const FOLDER_MODE: u32 = 0o700;

/// A longer text in a lock is not ours.
const LOCK_BYTES_MAX: u64 = 256;

/// What stands before the number of the process in a lock.
const LOCK_TEXT: &str = "kvtile disk tier, used by process ";

/// A folder of the file system, with direct I/O where it has that.
#[derive(Clone, Debug)]
pub struct FolderMedium {
    path: PathBuf,
}

impl FolderMedium {
    /// The folder at `path`, which need not exist.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> FolderMedium {
        FolderMedium { path: path.into() }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.path.join(file)
    }
}

impl Medium for FolderMedium {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn create(&self) -> io::Result<()> {
        // Its files would be those of the working directory.
        if self.path.as_os_str().is_empty() {
            let problem = "its path is empty; give the path of a folder";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
        }
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(FOLDER_MODE).create(&self.path)
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let name = |entry: io::Result<fs::DirEntry>| {
            entry.map(|entry| entry.file_name().to_string_lossy().into_owned())
        };
        entries.map(name).collect()
    }

    fn length(&self, file: &str) -> io::Result<Option<u64>> {
        match fs::metadata(self.path(file)) {
            Ok(metadata) if metadata.is_file() => Ok(Some(metadata.len())),
            Ok(_) => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a regular file",
            )),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn read(&self, file: &str, bytes_max: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let opened = File::open(self.path(file))?;
        opened
            .take(bytes_max.saturating_add(1))
            .read_to_end(&mut bytes)?;
        if bytes.len() as u64 > bytes_max {
            let problem = format!("longer than {bytes_max} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        }
        Ok(bytes)
    }

    fn write(&self, file: &str, bytes: &[u8]) -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true);
        let mut opened = options.mode(FILE_MODE).open(self.path(file))?;
        opened.write_all(bytes)?;
        opened.sync_all()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))
    }

    fn remove(&self, file: &str) -> io::Result<()> {
        match fs::remove_file(self.path(file)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    fn sync_folder(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    fn lock(&self, file: &str, writable: bool) -> Result<Box<dyn MediumLock>, LockError> {
        let mut options = OpenOptions::new();
        // Not truncated: what the holder wrote must stay readable.
        options.read(true).write(writable).create(writable);
        let mut lock = options.mode(FILE_MODE).open(self.path(file))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(LockError::Held { pid: holder(&lock) });
            }
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        if writable {
            let text = format!("{LOCK_TEXT}{}\n", std::process::id());
            lock.set_len(0)?;
            lock.rewind()?;
            lock.write_all(text.as_bytes())?;
        }
        Ok(Box::new(FolderLock { lock }))
    }

    fn open(&self, file: &str, how: &OpenFile) -> io::Result<Box<dyn MediumFile>> {
        let path = self.path(file);
        let size = usize::try_from(how.length_bytes).map_err(io::Error::other)?;
        if how.writable {
            fit_length(&path, how.length_bytes)?;
        }
        let memory = FileMemory::options()
            .read_only(!how.writable)
            .extend(how.writable)
            .direct_io(how.direct)
            .preallocate(how.preallocate && how.writable)
            .open(&path, size)
            .map_err(into_io)?;
        Ok(Box::new(FolderFile { memory }))
    }
}

/// Creates the file where it is missing, and cuts it where it is longer.
fn fit_length(path: &Path, length_bytes: u64) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false);
    let file = options.mode(FILE_MODE).open(path)?;
    if file.metadata()?.len() > length_bytes {
        file.set_len(length_bytes)?;
        file.sync_all()?;
    }
    Ok(())
}

/// Who holds a lock, where it says so.
fn holder(lock: &File) -> Option<u32> {
    let mut text = String::new();
    lock.take(LOCK_BYTES_MAX).read_to_string(&mut text).ok()?;
    text.strip_prefix(LOCK_TEXT)?.trim_end().parse().ok()
}

#[derive(Debug)]
struct FolderLock {
    /// The kernel gives the lock back with the last descriptor.
    lock: File,
}

impl MediumLock for FolderLock {}

#[derive(Debug)]
struct FolderFile {
    memory: FileMemory,
}

impl MediumFile for FolderFile {
    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.memory.read_exact_at(offset, buffer).map_err(into_io)
    }

    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.memory.write_all_at(offset, bytes).map_err(into_io)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.memory.sync_data().map_err(into_io)
    }

    fn is_direct(&self) -> bool {
        matches!(self.memory.direct_io(), DirectIo::Active { .. })
    }
}

/// The kernel's own error where there is one.
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

impl Drop for FolderLock {
    /// A child that is just being made has the descriptor too, for a moment; nobody should be refused
    /// because of it.
    fn drop(&mut self) {
        if let Err(error) = self.lock.unlock() {
            log::warn!("the lock of a folder ends with its descriptor only: {error}");
        }
    }
}
