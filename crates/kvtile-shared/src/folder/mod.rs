//! A store in a folder, on any file system: a local one for the processes of a machine, or a
//! network one for many machines.
//!
//! ```text
//! folder/kvt1/…/ab/abcd….16     a value, in a directory of its first two digits
//! folder/.kvtile-new/…          values that are being written
//! ```
//!
//! A value is written under a unique temporary name, synced if the settings say so, and linked to
//! its own name. A link never replaces a file, so the first writer wins. Where the file system has
//! no links, the value is renamed. No lock is taken: locks are local on some network file systems.

mod list;
mod write;

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::{Mode, OFlags, Timespec, Timestamps},
    io::Errno,
};

use crate::store::{
    Deadline, ListPage, SharedStore, SharedStoreAbilities, SharedStoreError, SinkState,
    StoreErrorKind, StoreOperation, ValueName, ValueSink, ValueWritten,
};

/// The directory of values that are being written. No name of a value begins with a dot.
const NEW: &str = ".kvtile-new";

/// The file system sets the time of the last change, by its own clock, and no other.
const MODIFIED_NOW: Timestamps = Timestamps {
    last_access: Timespec {
        tv_sec: 0,
        tv_nsec: rustix::fs::UTIME_OMIT,
    },
    last_modification: Timespec {
        tv_sec: 0,
        tv_nsec: rustix::fs::UTIME_NOW,
    },
};

/// Settings of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FolderStoreSettings {
    /// Whether a write waits until the value and its name are on the device (default: yes).
    /// Otherwise a crash of the machine may lose or tear recent values; a torn one is a miss.
    pub syncs: bool,
    /// The most calls at a time (default: 16).
    pub in_flight_max: usize,
}

impl Default for FolderStoreSettings {
    fn default() -> FolderStoreSettings {
        FolderStoreSettings {
            syncs: true,
            in_flight_max: 16,
        }
    }
}

impl FolderStoreSettings {
    /// The defaults.
    #[must_use]
    pub fn new() -> FolderStoreSettings {
        FolderStoreSettings::default()
    }

    /// Sets [`syncs`](Self::syncs).
    #[must_use]
    pub fn syncs(mut self, syncs: bool) -> FolderStoreSettings {
        self.syncs = syncs;
        self
    }

    /// Sets [`in_flight_max`](Self::in_flight_max).
    #[must_use]
    pub fn in_flight_max(mut self, calls: usize) -> FolderStoreSettings {
        self.in_flight_max = calls;
        self
    }
}

/// A store in a folder. Any number of processes and machines may use the same folder at once.
#[derive(Debug)]
pub struct FolderStore {
    folder: PathBuf,
    name: String,
    settings: FolderStoreSettings,
}

impl FolderStore {
    /// Opens a folder, and creates it if it does not exist.
    ///
    /// # Errors
    /// A folder that cannot be created or written.
    pub fn open(
        folder: impl Into<PathBuf>,
        settings: FolderStoreSettings,
    ) -> Result<FolderStore, SharedStoreError> {
        let folder = folder.into();
        let store = FolderStore {
            name: folder.display().to_string(),
            folder,
            settings,
        };
        let open = |result: io::Result<()>| {
            result.map_err(|error| {
                let what = format!(
                    "the folder {} cannot be created or written: {error}",
                    store.name
                );
                SharedStoreError::configuration(StoreOperation::Open, what).caused_by(error)
            })
        };
        open(std::fs::create_dir_all(store.folder.join(NEW)))?;
        let (path, file) = store.new_file().map_err(|error| {
            let what = format!("the folder {} cannot be written: {error}", store.name);
            SharedStoreError::configuration(StoreOperation::Open, what).caused_by(error)
        })?;
        drop(file);
        open(std::fs::remove_file(path))?;
        Ok(store)
    }

    /// Whether a folder is one of these stores: it has values of kvtile, or a store was opened there.
    #[must_use]
    pub fn is_at(folder: &Path) -> bool {
        let marks = [NEW, crate::bundle::ROOT];
        marks.iter().any(|mark| folder.join(mark).is_dir())
    }

    fn path(&self, name: &ValueName) -> PathBuf {
        self.folder.join(name.as_str())
    }

    fn error(&self, operation: StoreOperation, path: &Path, error: io::Error) -> SharedStoreError {
        use io::ErrorKind::{
            FileTooLarge, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull,
        };
        let kind = match error.kind() {
            StorageFull | QuotaExceeded | FileTooLarge => StoreErrorKind::Refused,
            PermissionDenied | ReadOnlyFilesystem => StoreErrorKind::Configuration,
            _ => StoreErrorKind::Transient,
        };
        let what = format!("{}: {error}", path.display());
        SharedStoreError::new(kind, operation, what).caused_by(error)
    }

    /// Opens a value; `None` without it. Only plain files are values: a pipe would block, a link
    /// would lead elsewhere.
    fn open_value(&self, name: &ValueName, flags: OFlags) -> io::Result<Option<File>> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = match rustix::fs::open(self.path(name), flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(error) => {
                let error = io::Error::from(error);
                return match is_absent(&error) {
                    true => Ok(None),
                    false => Err(error),
                };
            }
        };
        let is_plain = file.metadata()?.is_file();
        Ok(is_plain.then_some(file))
    }

    fn read_value(
        &self,
        name: &ValueName,
        range: Range<u64>,
        sink: &mut dyn ValueSink,
        by: Deadline,
    ) -> io::Result<bool> {
        let Some(mut file) = self.open_value(name, OFlags::RDONLY)? else {
            return Ok(false);
        };
        // Larger read-ahead; a file system that has none refuses, which does not matter.
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Sequential);
        if range.start > 0 {
            file.seek(SeekFrom::Start(range.start))?;
        }
        let mut left = range.end.saturating_sub(range.start);
        loop {
            let space = sink.space();
            let bytes = usize::try_from(left).map_or(space.len(), |left| left.min(space.len()));
            let (space, _) = space.split_at_mut(bytes);
            if space.is_empty() {
                return Ok(true);
            }
            let bytes = match file.read(space) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if bytes == 0 || sink.filled(bytes) == SinkState::Full {
                return Ok(true);
            }
            left = left.saturating_sub(bytes as u64);
            if by.is_over() {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }
}

/// Whether an error means that there is no such file. A file that was removed on another machine
/// is stale here, and a symbolic link is no value.
fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::IsADirectory
            | io::ErrorKind::StaleNetworkFileHandle
    ) || error.raw_os_error() == Some(Errno::LOOP.raw_os_error())
}

impl SharedStore for FolderStore {
    fn name(&self) -> &str {
        &self.name
    }

    fn abilities(&self) -> SharedStoreAbilities {
        SharedStoreAbilities {
            is_durable: self.settings.syncs,
            keeps_first: true,
            reads_ranges: true,
            in_flight_max: self.settings.in_flight_max.max(1),
            latency: Duration::from_micros(500),
            bytes_per_second: 500_000_000,
            ..SharedStoreAbilities::default()
        }
    }

    fn has(&self, names: &[ValueName], by: Deadline) -> Result<Vec<bool>, SharedStoreError> {
        let mut present = Vec::with_capacity(names.len());
        for name in names {
            if by.is_over() {
                return Err(SharedStoreError::late(StoreOperation::Has));
            }
            let path = self.path(name);
            match std::fs::symlink_metadata(&path) {
                Ok(metadata) => present.push(metadata.is_file()),
                Err(error) if is_absent(&error) => present.push(false),
                Err(error) => return Err(self.error(StoreOperation::Has, &path, error)),
            }
        }
        Ok(present)
    }

    fn read(
        &self,
        name: &ValueName,
        sink: &mut dyn ValueSink,
        by: Deadline,
    ) -> Result<bool, SharedStoreError> {
        self.read_range(name, 0..u64::MAX, sink, by)
    }

    fn read_range(
        &self,
        name: &ValueName,
        range: Range<u64>,
        sink: &mut dyn ValueSink,
        by: Deadline,
    ) -> Result<bool, SharedStoreError> {
        let read = self.read_value(name, range, sink, by);
        read.map_err(|error| self.error(StoreOperation::Read, &self.path(name), error))
    }

    fn write(
        &self,
        name: &ValueName,
        parts: &[&[u8]],
        _lifetime: Option<Duration>,
        by: Deadline,
    ) -> Result<ValueWritten, SharedStoreError> {
        let written = self.write_value(name, parts, by);
        written.map_err(|error| self.error(StoreOperation::Write, &self.path(name), error))
    }

    fn remove(&self, names: &[ValueName], by: Deadline) -> Result<usize, SharedStoreError> {
        let mut removed = 0;
        for name in names {
            if by.is_over() {
                return Err(SharedStoreError::late(StoreOperation::Remove));
            }
            let path = self.path(name);
            match std::fs::remove_file(&path) {
                Ok(()) => removed += 1,
                Err(error) if is_absent(&error) => {}
                Err(error) => return Err(self.error(StoreOperation::Remove, &path, error)),
            }
        }
        Ok(removed)
    }

    fn touch(
        &self,
        names: &[ValueName],
        _lifetime: Option<Duration>,
        by: Deadline,
    ) -> Result<(), SharedStoreError> {
        for name in names {
            if by.is_over() {
                return Err(SharedStoreError::late(StoreOperation::Touch));
            }
            let touch = || match self.open_value(name, OFlags::RDONLY)? {
                Some(file) => Ok(rustix::fs::futimens(&file, &MODIFIED_NOW)?),
                None => Ok(()),
            };
            touch().map_err(|error| self.error(StoreOperation::Touch, &self.path(name), error))?;
        }
        Ok(())
    }

    fn list(
        &self,
        under: &str,
        after: Option<&str>,
        by: Deadline,
    ) -> Result<ListPage, SharedStoreError> {
        if by.is_over() {
            return Err(SharedStoreError::late(StoreOperation::List));
        }
        let page = self.list_page(under, after);
        page.map_err(|error| self.error(StoreOperation::List, &self.folder, error))
    }

    fn remove_leftovers(
        &self,
        older_than: Duration,
        by: Deadline,
    ) -> Result<usize, SharedStoreError> {
        let removed = self.remove_old_files(older_than, by);
        removed.map_err(|error| self.error(StoreOperation::Remove, &self.folder.join(NEW), error))
    }
}
