//! A simulated disk with faults, seeded, for tests of code that keeps blocks in files.
//!
//! It separates durable from unsynced state. After a power loss ([`SimulatedDisk::crash`]) each
//! sector written since the last sync has its old content, the content of some write since, or a
//! torn mixture. Of the name changes since the last sync of the folder (create, rename, remove),
//! the last ones are undone. Killing a process ([`SimulatedDisk::kill`]) loses nothing but its
//! lock. Other operations fail at the rates of [`DiskFaults`].
//!
//! The disk knows nothing of blocks.

mod file;

pub use kvtile_random::SplitMix64;

use std::{collections::BTreeMap, io, sync::Arc};

use file::SimulatedFile;
use kvtile_tiers::disk::medium::{
    LockError, LockHolder, Medium, MediumFile, MediumLock, NameStanding, OpenFile,
};
use parking_lot::{Mutex, MutexGuard};

/// The rate of each fault: once in this many operations, never if 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskFaults {
    /// Reads fail.
    pub read: u64,
    /// Writes fail after some of their bytes.
    pub write: u64,
    /// Writes run out of space after some of their bytes.
    pub full: u64,
    /// Syncs fail; bytes written since the last sync may be lost.
    pub sync: u64,
}

/// A folder on a simulated disk. Clones are the same disk.
#[derive(Clone, Debug)]
pub struct SimulatedDisk {
    state: Arc<Mutex<SimulatedDiskState>>,
}

#[derive(Debug)]
struct SimulatedDiskState {
    files: Vec<SimulatedFile>,
    /// Names as readers see them.
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    /// Changes since the last sync of the folder.
    name_changes: Vec<NameChange>,
    numbers: SplitMix64,
    faults: DiskFaults,
    read_only: bool,
    /// Writes and syncs that remain before the power loss.
    fuse: Option<u64>,
    locked: bool,
    /// Whether the folder's own name still refers to it.
    folder: NameStanding,
    /// The number of the current process; files and locks of earlier processes no longer work.
    process: u64,
    /// The most bytes of all files since it was last taken.
    peak_bytes: u64,
}

#[derive(Clone, Debug)]
enum NameChange {
    Named(String, usize),
    Renamed(String, String),
    Removed(String),
}

impl SimulatedDisk {
    /// An empty folder without faults.
    #[must_use]
    pub fn new(seed: u64) -> SimulatedDisk {
        let state = SimulatedDiskState {
            files: Vec::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            name_changes: Vec::new(),
            numbers: SplitMix64::new(seed),
            faults: DiskFaults::default(),
            read_only: false,
            fuse: None,
            locked: false,
            folder: NameStanding::Same,
            process: 0,
            peak_bytes: 0,
        };
        SimulatedDisk {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// Sets the rates of faults.
    pub fn set_faults(&self, faults: DiskFaults) {
        self.state().faults = faults;
    }

    /// Sets whether every write is refused.
    pub fn set_read_only(&self, read_only: bool) {
        self.state().read_only = read_only;
    }

    /// Sets a power loss: after `operations` more writes and syncs, every call fails until
    /// [`SimulatedDisk::crash`].
    pub fn set_fuse(&self, operations: u64) {
        self.state().fuse = Some(operations);
    }

    /// Whether the power is lost.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.state().fuse == Some(0)
    }

    /// A power loss, followed by a restart.
    pub fn crash(&self) {
        let mut state = self.state();
        let SimulatedDiskState {
            files,
            numbers,
            name_changes,
            durable_names,
            ..
        } = &mut *state;
        files.iter_mut().for_each(|file| file.crash(numbers));
        let kept = numbers.index(name_changes.len() + 1);
        for change in name_changes.drain(..).take(kept) {
            change.apply(durable_names);
        }
        state.names = state.durable_names.clone();
        state.end_process();
    }

    /// Kills the process: its lock is released, and nothing else is lost.
    pub fn kill(&self) {
        self.state().end_process();
    }

    /// Flips a bit of a file; returns whether the file has one.
    pub fn flip(&self, file: &str) -> bool {
        let mut state = self.state();
        let SimulatedDiskState {
            files,
            names,
            numbers,
            ..
        } = &mut *state;
        let found = names.get(file).and_then(|index| files.get_mut(*index));
        found.is_some_and(|file| file.flip(numbers))
    }

    /// Truncates a file from outside the store.
    pub fn cut(&self, file: &str, length: usize) {
        let mut state = self.state();
        if let Ok(file) = state.file(file) {
            file.cut(length);
        }
    }

    /// Removes a file that may be open, or replaces it by an empty one; returns whether it existed.
    pub fn lose(&self, file: &str, replace: bool) -> bool {
        let mut state = self.state();
        if state.file(file).is_err() {
            return false;
        }
        state.change_name(NameChange::Removed(file.to_owned()));
        if replace {
            state.files.push(SimulatedFile::default());
            let index = state.files.len() - 1;
            state.change_name(NameChange::Named(file.to_owned(), index));
        }
        true
    }

    /// Sets the outcome of [`Medium::standing`] for the folder's own name.
    pub fn set_folder(&self, standing: NameStanding) {
        self.state().folder = standing;
    }

    /// Bytes of all files together.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.state().total_bytes()
    }

    /// The most bytes that all files together had since the last call.
    #[must_use]
    pub fn take_peak_bytes(&self) -> u64 {
        let mut state = self.state();
        let now = state.total_bytes();
        std::mem::replace(&mut state.peak_bytes, now).max(now)
    }

    fn state(&self) -> MutexGuard<'_, SimulatedDiskState> {
        self.state.lock()
    }
}

impl NameChange {
    fn apply(self, names: &mut BTreeMap<String, usize>) {
        match self {
            NameChange::Named(name, index) => {
                names.insert(name, index);
            }
            NameChange::Renamed(from, to) => {
                if let Some(index) = names.remove(&from) {
                    names.insert(to, index);
                }
            }
            NameChange::Removed(name) => {
                names.remove(&name);
            }
        }
    }
}

impl SimulatedDiskState {
    fn total_bytes(&self) -> u64 {
        let files = self.names.values();
        let lengths = files.filter_map(|index| self.files.get(*index));
        lengths.map(|file| file.len() as u64).sum()
    }

    /// Notes the bytes of all files after one of them became longer.
    fn note_peak(&mut self) {
        self.peak_bytes = self.peak_bytes.max(self.total_bytes());
    }

    fn end_process(&mut self) {
        self.process += 1;
        self.locked = false;
        self.fuse = None;
    }

    fn change_name(&mut self, change: NameChange) {
        change.clone().apply(&mut self.names);
        self.name_changes.push(change);
    }

    fn file(&mut self, name: &str) -> io::Result<&mut SimulatedFile> {
        let index = self.names.get(name).copied();
        let file = index.and_then(|index| self.files.get_mut(index));
        file.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }

    /// Returns the file of that name, created if it is missing.
    fn make_file(&mut self, name: &str) -> io::Result<usize> {
        if let Some(index) = self.names.get(name) {
            return Ok(*index);
        }
        self.spend()?;
        self.files.push(SimulatedFile::default());
        let index = self.files.len() - 1;
        self.change_name(NameChange::Named(name.to_owned(), index));
        Ok(index)
    }

    fn alive(&self) -> io::Result<()> {
        match self.fuse {
            Some(0) => Err(io::Error::other("the power is lost")),
            _ => Ok(()),
        }
    }

    /// Counts one more write or sync.
    fn spend(&mut self) -> io::Result<()> {
        self.alive()?;
        if let Some(fuse) = &mut self.fuse {
            *fuse -= 1;
        }
        if self.read_only {
            return Err(io::Error::from(io::ErrorKind::ReadOnlyFilesystem));
        }
        self.alive()
    }

    /// Writes `bytes`, or part of them with an error.
    fn write(&mut self, index: usize, offset: usize, bytes: &[u8]) -> io::Result<()> {
        self.alive()?;
        let spent = self.spend();
        let full = self.numbers.once_in(self.faults.full);
        let failed = self.numbers.once_in(self.faults.write);
        let written = match (&spent, full || failed) {
            (Ok(()), false) => bytes.len(),
            // The power may fail during a write.
            (Err(_), _) if !self.read_only => self.numbers.index(bytes.len() + 1),
            (Err(_), _) => 0,
            (Ok(()), true) => self.numbers.index(bytes.len() + 1),
        };
        let file = self.files.get_mut(index);
        let file = file.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        file.write(offset, bytes.get(..written).unwrap_or_default());
        self.note_peak();
        spent?;
        match (full, failed) {
            (true, _) => Err(io::Error::from(io::ErrorKind::StorageFull)),
            (_, true) => Err(io::Error::other("input/output error")),
            _ => Ok(()),
        }
    }

    fn sync(&mut self, index: usize) -> io::Result<()> {
        self.spend()?;
        let failed = self.numbers.once_in(self.faults.sync);
        let SimulatedDiskState { files, numbers, .. } = self;
        let file = files.get_mut(index);
        let file = file.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        if failed {
            file.fail_sync(numbers);
            return Err(io::Error::other("input/output error"));
        }
        file.sync();
        Ok(())
    }
}

impl Medium for SimulatedDisk {
    fn name(&self) -> String {
        "simulated disk".to_owned()
    }

    fn create(&self) -> io::Result<()> {
        self.state().alive()
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let state = self.state();
        state.alive()?;
        Ok(state.names.keys().cloned().collect())
    }

    fn length(&self, file: &str) -> io::Result<Option<u64>> {
        let mut state = self.state();
        state.alive()?;
        Ok(state.file(file).ok().map(|file| file.len() as u64))
    }

    fn read(&self, file: &str, bytes_max: u64) -> io::Result<Vec<u8>> {
        let mut state = self.state();
        state.alive()?;
        let file = state.file(file)?;
        if file.len() as u64 > bytes_max {
            return Err(io::Error::from(io::ErrorKind::InvalidData));
        }
        Ok(file.bytes().to_vec())
    }

    fn write(&self, file: &str, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        let index = state.make_file(file)?;
        if let Some(file) = state.files.get_mut(index) {
            file.cut(0);
        }
        state.write(index, 0, bytes)?;
        state.sync(index)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        state.spend()?;
        state.file(from)?;
        state.change_name(NameChange::Renamed(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, file: &str) -> io::Result<()> {
        let mut state = self.state();
        state.alive()?;
        if state.file(file).is_ok() {
            state.spend()?;
            state.change_name(NameChange::Removed(file.to_owned()));
        }
        Ok(())
    }

    fn sync_folder(&self) -> io::Result<()> {
        let mut state = self.state();
        state.spend()?;
        state.name_changes.clear();
        state.durable_names = state.names.clone();
        Ok(())
    }

    fn standing(&self) -> io::Result<NameStanding> {
        let state = self.state();
        state.alive()?;
        Ok(state.folder)
    }

    fn lock(&self, file: &str) -> Result<Box<dyn MediumLock>, LockError> {
        self.state().make_file(file)?;
        self.lock_to_read(file)
    }

    fn lock_to_read(&self, _file: &str) -> Result<Box<dyn MediumLock>, LockError> {
        let mut state = self.state();
        state.alive()?;
        if state.locked {
            return Err(LockError::Held(LockHolder::default()));
        }
        state.locked = true;
        Ok(Box::new(SimulatedLock {
            disk: self.clone(),
            process: state.process,
        }))
    }

    fn holder(&self, _file: &str) -> io::Result<Option<LockHolder>> {
        let state = self.state();
        state.alive()?;
        Ok(state.locked.then(LockHolder::default))
    }

    fn punches(&self, _file: &str) -> bool {
        true
    }

    fn open(&self, file: &str, how: &OpenFile) -> io::Result<Box<dyn MediumFile>> {
        let length = usize::try_from(how.length_bytes).map_err(io::Error::other)?;
        let mut state = self.state();
        state.alive()?;
        let index = match how.writable {
            true => state.make_file(file)?,
            false => state.names.get(file).copied().unwrap_or(usize::MAX),
        };
        if how.writable && state.read_only {
            return Err(io::Error::from(io::ErrorKind::ReadOnlyFilesystem));
        }
        let process = state.process;
        let opened = state.files.get_mut(index);
        let opened = opened.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        if how.writable && opened.len() > length {
            opened.cut(length);
        } else if how.writable {
            opened.lengthen(length);
        } else if opened.len() < length {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        state.note_peak();
        Ok(Box::new(SimulatedOpenFile {
            disk: self.clone(),
            name: file.to_owned(),
            index,
            length,
            process,
        }))
    }
}

#[derive(Debug)]
struct SimulatedOpenFile {
    disk: SimulatedDisk,
    name: String,
    index: usize,
    /// Its length when it was opened.
    length: usize,
    process: u64,
}

impl SimulatedOpenFile {
    fn state(&self) -> io::Result<MutexGuard<'_, SimulatedDiskState>> {
        let state = self.disk.state();
        match state.process == self.process {
            true => Ok(state),
            false => Err(io::Error::other("the process has ended")),
        }
    }
}

fn offset(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(io::Error::other)
}

impl MediumFile for SimulatedOpenFile {
    fn read_exact_at(&self, from: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut state = self.state()?;
        state.alive()?;
        let faults = state.faults;
        if state.numbers.once_in(faults.read) {
            return Err(io::Error::other("input/output error"));
        }
        let file = state.files.get(self.index);
        match file.is_some_and(|file| offset(from).is_ok_and(|from| file.read(from, buffer))) {
            true => Ok(()),
            false => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
        }
    }

    fn write_all_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.state()?.write(self.index, offset(at)?, bytes)
    }

    /// Writes zeroes, with the faults of a write.
    fn punch(&self, from: u64, bytes: u64) -> io::Result<()> {
        let zeroes = vec![0; offset(bytes)?];
        self.write_all_at(from, &zeroes)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.state()?.sync(self.index)
    }

    fn standing(&self) -> io::Result<NameStanding> {
        let state = self.state()?;
        state.alive()?;
        let length = state.files.get(self.index).map_or(0, SimulatedFile::len);
        Ok(match state.names.get(&self.name) {
            None => NameStanding::Removed,
            Some(index) if *index != self.index => NameStanding::Replaced,
            Some(_) if length < self.length => NameStanding::Cut {
                length_bytes: length as u64,
            },
            Some(_) => NameStanding::Same,
        })
    }

    fn is_direct(&self) -> bool {
        false
    }
}

#[derive(Debug)]
struct SimulatedLock {
    disk: SimulatedDisk,
    process: u64,
}

impl MediumLock for SimulatedLock {}

impl Drop for SimulatedLock {
    fn drop(&mut self) {
        let mut state = self.disk.state();
        if state.process == self.process {
            state.locked = false;
        }
    }
}
