//! Writes of values: whole or not at all, and the first writer wins.

use std::{
    collections::hash_map::RandomState,
    fs::{self, File},
    hash::{BuildHasher, Hasher},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

use rustix::{
    fs::{CWD, RenameFlags},
    io::Errno,
};

use super::{FolderStore, NEW};
use crate::store::{Deadline, ValueName, ValueWritten};

/// Bytes that are written before the deadline is checked again.
const STEP_BYTES: usize = 1 << 20;

/// How often a temporary name is drawn, and directories are made again that a sweep has removed.
const TRIES: usize = 8;

impl FolderStore {
    /// A new, empty file under a unique name.
    pub(super) fn new_file(&self) -> io::Result<(PathBuf, File)> {
        let mut tries = 0;
        loop {
            let path = self.folder.join(NEW).join(unique_name());
            match File::create_new(&path) {
                Ok(file) => return Ok((path, file)),
                Err(error) if tries >= TRIES => return Err(error),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    fs::create_dir_all(self.folder.join(NEW))?;
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
            tries += 1;
        }
    }

    /// The time of the file system, by which it dates its files. On a network that is another machine's.
    pub(super) fn now(&self) -> SystemTime {
        let time = self.new_file().and_then(|(path, file)| {
            let time = file.metadata().and_then(|metadata| metadata.modified());
            fs::remove_file(path)?;
            time
        });
        // A full file system takes no file, and a sweep is what it needs.
        time.unwrap_or_else(|_| SystemTime::now())
    }

    pub(super) fn write_value(
        &self,
        name: &ValueName,
        parts: &[&[u8]],
        by: Deadline,
    ) -> io::Result<ValueWritten> {
        let to = self.path(name);
        let (from, mut file) = self.new_file()?;
        let written = self.fill(&mut file, parts, by);
        drop(file);
        let linked = written.and_then(|()| self.publish(&from, &to));
        match fs::remove_file(&from) {
            Ok(()) => {}
            // It was renamed, or a sweep removed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => log::debug!("{} stays: {error}", from.display()),
        }
        linked
    }

    fn fill(&self, file: &mut File, parts: &[&[u8]], by: Deadline) -> io::Result<()> {
        for part in parts {
            for step in part.chunks(STEP_BYTES) {
                if by.is_over() {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                file.write_all(step)?;
            }
        }
        match self.settings.syncs {
            true => file.sync_data(),
            false => Ok(()),
        }
    }

    /// Gives a file its name, unless a file has the name.
    fn publish(&self, from: &Path, to: &Path) -> io::Result<ValueWritten> {
        let Some(directory) = to.parent() else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let mut tries = 0;
        let written = loop {
            match link(from, to) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && tries < TRIES => {
                    self.make_directory(directory)?;
                    tries += 1;
                }
                other => break other?,
            }
        };
        if self.settings.syncs && written == ValueWritten::New {
            File::open(directory)?.sync_all()?;
        }
        Ok(written)
    }

    /// Makes a directory with its parents, and syncs the entries that are new.
    fn make_directory(&self, directory: &Path) -> io::Result<()> {
        let is_there = directory.is_dir();
        fs::create_dir_all(directory)?;
        if is_there || !self.settings.syncs {
            return Ok(());
        }
        for parent in directory.ancestors().skip(1) {
            File::open(parent)?.sync_all()?;
            if parent == self.folder {
                break;
            }
        }
        Ok(())
    }

    /// Removes files that are being written for longer than `older_than`.
    pub(super) fn remove_old_files(&self, older_than: Duration, by: Deadline) -> io::Result<usize> {
        let entries = match fs::read_dir(self.folder.join(NEW)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            Err(error) => return Err(error),
        };
        let now = self.now();
        let mut removed = 0;
        for entry in entries {
            if by.is_over() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let entry = entry?;
            // The writer may have finished in the meantime.
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            let age = now.duration_since(metadata.modified()?);
            let is_old = metadata.is_file() && age.is_ok_and(|age| age >= older_than);
            if is_old && fs::remove_file(entry.path()).is_ok() {
                removed += 1;
            }
        }
        Ok(removed)
    }
}

/// Gives a file a second name. Where the file system has no links, renames it.
fn link(from: &Path, to: &Path) -> io::Result<ValueWritten> {
    let renamed = match rustix::fs::link(from, to) {
        Ok(()) => return Ok(ValueWritten::New),
        Err(Errno::EXIST) => return Ok(ValueWritten::Present),
        Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::MLINK | Errno::XDEV) => {
            rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)
        }
        Err(error) => return Err(error.into()),
    };
    match renamed {
        Ok(()) => Ok(ValueWritten::New),
        Err(Errno::EXIST) => Ok(ValueWritten::Present),
        // The file system cannot refuse to replace. Equal names have equal content.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            if fs::symlink_metadata(to).is_ok_and(|metadata| metadata.is_file()) {
                return Ok(ValueWritten::Present);
            }
            fs::rename(from, to).map(|()| ValueWritten::New)
        }
        Err(error) => Err(error.into()),
    }
}

/// A name that no other writer draws, on this machine or another one.
fn unique_name() -> String {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    // The keys of a `RandomState` are random for each process.
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u64(number);
    hasher.write_u32(std::process::id());
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let since = since.unwrap_or_default().as_nanos();
    let random = hasher.finish();
    format!(
        "{:x}-{since:x}-{number:x}-{random:016x}",
        std::process::id()
    )
}
