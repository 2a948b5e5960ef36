//! Partial files: temporary names for files that are being written, with a file lock.
//!
//! The files of a killed process have no lock any more. The next save of that name removes them.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    os::{
        fd::AsFd,
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use kvtile_memory::{FileMemory, MemoryError};

use crate::error::{CopyError, TransferError};

/// Maximum number of names that are tried.
const NAMES_MAX: usize = 1000;

/// Separates the name of the file from process id and number.
const INFIX: &str = ".partial-";

/// A file under a temporary name until it is complete. Dropping it before the rename removes the
/// file.
pub(super) struct PartialFile {
    path: PathBuf,
    /// Holds the file lock.
    _lock: File,
}

impl PartialFile {
    /// Creates a file of `bytes` bytes beside `path`.
    pub(super) fn next_to(
        path: &Path,
        bytes: usize,
    ) -> Result<(PartialFile, FileMemory), TransferError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let Some(name) = path.file_name() else {
            let problem = io::Error::from(io::ErrorKind::InvalidInput);
            return Err(failed("name", path, problem));
        };
        remove_abandoned(path, name);
        let mut taken = None;
        for _ in 0..NAMES_MAX {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let mut name = name.to_owned();
            name.push(format!("{INFIX}{}-{number}", std::process::id()));
            let path = path.with_file_name(name);
            match FileMemory::options().create_new(&path, bytes) {
                Ok(file) => {
                    if let Some(partial) = PartialFile::locked(path, &file) {
                        return Ok((partial, file));
                    }
                }
                Err(error @ MemoryError::AlreadyExists { .. }) => taken = Some(error),
                Err(error) => return Err(error.into()),
            }
        }
        Err(match taken {
            Some(error) => error.into(),
            None => failed("lock", path, io::Error::from(io::ErrorKind::WouldBlock)),
        })
    }

    /// `None` if another process removed the new file as abandoned before it was locked.
    fn locked(path: PathBuf, file: &FileMemory) -> Option<PartialFile> {
        let lock = File::from(file.as_fd().try_clone_to_owned().ok()?);
        let partial = PartialFile { path, _lock: lock };
        if matches!(partial._lock.try_lock(), Err(fs::TryLockError::WouldBlock)) {
            return None;
        }
        // On a filesystem without locks, no other process removes the file either.
        let ours = partial._lock.metadata().ok()?;
        let there = fs::symlink_metadata(&partial.path).ok()?;
        ((ours.dev(), ours.ino()) == (there.dev(), there.ino())).then_some(partial)
    }

    /// Renames the file atomically.
    pub(super) fn rename(self, path: &Path, replace: bool) -> Result<(), TransferError> {
        let folder = File::open(folder_of(path)).map_err(|e| failed("open", folder_of(path), e))?;
        if replace {
            fs::rename(&self.path, path).map_err(|e| failed("rename", path, e))?;
        } else {
            // A hard link, unlike a rename, refuses an existing name.
            fs::hard_link(&self.path, path).map_err(|e| failed("create", path, e))?;
        }
        folder
            .sync_all()
            .map_err(|e| failed("sync", folder_of(path), e))
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        // After a rename the file no longer exists; other errors were reported before.
        let _ = fs::remove_file(&self.path);
    }
}

/// Removes the partial files of `name` that have no live writer. This is best effort: files that
/// cannot be inspected or removed stay.
fn remove_abandoned(path: &Path, name: &OsStr) {
    let Ok(entries) = fs::read_dir(folder_of(path)) else {
        return;
    };
    for entry in entries.flatten() {
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        if !is_file || !is_partial_of(&entry.file_name(), name) {
            continue;
        }
        let abandoned = File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok());
        if abandoned {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Whether `candidate` is a temporary name that [`PartialFile`] makes for `name`.
fn is_partial_of(candidate: &OsStr, name: &OsStr) -> bool {
    let rest = candidate.as_bytes().strip_prefix(name.as_bytes());
    let rest = rest.and_then(|rest| rest.strip_prefix(INFIX.as_bytes()));
    let Some(numbers) = rest.and_then(|rest| std::str::from_utf8(rest).ok()) else {
        return false;
    };
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    numbers
        .split_once('-')
        .is_some_and(|(process, number)| is_number(process) && is_number(number))
}

fn folder_of(path: &Path) -> &Path {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    folder.unwrap_or(Path::new("."))
}

fn failed(operation: &'static str, path: &Path, source: io::Error) -> TransferError {
    TransferError::Copy(CopyError::File {
        operation,
        path: path.to_owned(),
        source: Arc::new(source),
    })
}
