//! A disk that misbehaves, from a seed: for the tests of whatever keeps blocks in files.
//!
//! It keeps what was synced apart from what was not. When the power goes ([`SimulatedDisk::crash`])
//! each sector that was written since the last sync is as it was, or as any write since left it,
//! or torn; names that were made, changed or removed since the last sync of the folder are undone
//! from the last one on. When a process is killed ([`SimulatedDisk::kill`]) nothing is lost but its
//! lock. On the way it fails as it is told to ([`Faults`]).
//!
//! It knows nothing of blocks.

mod file;

pub use kvtile_random::Numbers;

use std::{collections::BTreeMap, io, sync::Arc};

use file::SimulatedFile;
use kvtile_tiers::disk::medium::{
    LockError, LockHolder, Medium, MediumFile, MediumLock, OpenFile, Standing,
};
use parking_lot::{Mutex, MutexGuard};

/// How often operations fail: once in so many times, never where it is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Reads fail.
    pub read: u64,
    /// Writes fail after a part of them was written.
    pub write: u64,
    /// Writes find no room after a part of them was written.
    pub full: u64,
    /// Syncs fail; what was written since the last one may be lost.
    pub sync: u64,
}

/// A folder on a disk that misbehaves. Clones are the same disk.
#[derive(Clone, Debug)]
pub struct SimulatedDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    files: Vec<SimulatedFile>,
    /// Names as readers see them.
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    /// Changes since the last sync of the folder.
    name_changes: Vec<NameChange>,
    numbers: Numbers,
    faults: Faults,
    read_only: bool,
    /// Writes and syncs until the power goes.
    fuse: Option<u64>,
    locked: bool,
    /// What has become of the folder's own name.
    folder: Standing,
    /// Processes that had the disk before have no part in it any more.
    process: u64,
}

#[derive(Clone, Debug)]
enum NameChange {
    Named(String, usize),
    Renamed(String, String),
    Removed(String),
}

impl SimulatedDisk {
    /// An empty folder that works, until told otherwise.
    #[must_use]
    pub fn new(seed: u64) -> SimulatedDisk {
        let state = State {
            files: Vec::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            name_changes: Vec::new(),
            numbers: Numbers::new(seed),
            faults: Faults::default(),
            read_only: false,
            fuse: None,
            locked: false,
            folder: Standing::Same,
            process: 0,
        };
        SimulatedDisk {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// How it fails from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.state().faults = faults;
    }

    /// Whether everything that writes is refused.
    pub fn set_read_only(&self, read_only: bool) {
        self.state().read_only = read_only;
    }

    /// The power goes in the middle of things: after so many more writes and syncs nothing works,
    /// until [`SimulatedDisk::crash`].
    pub fn set_fuse(&self, operations: u64) {
        self.state().fuse = Some(operations);
    }

    /// Whether the power went.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.state().fuse == Some(0)
    }

    /// The power went and is back.
    pub fn crash(&self) {
        let mut state = self.state();
        let State {
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

    /// The process was killed: its lock is gone, and nothing else.
    pub fn kill(&self) {
        self.state().end_process();
    }

    /// Flips a bit of a file, as it ages. Whether there was one to flip.
    pub fn flip(&self, file: &str) -> bool {
        let mut state = self.state();
        let State {
            files,
            names,
            numbers,
            ..
        } = &mut *state;
        let found = names.get(file).and_then(|index| files.get_mut(*index));
        found.is_some_and(|file| file.flip(numbers))
    }

    /// Cuts a file, as somebody else might.
    pub fn cut(&self, file: &str, length: usize) {
        let mut state = self.state();
        if let Ok(file) = state.file(file) {
            file.cut(length);
        }
    }

    /// Removes a file under those who have it open, or moves it away and puts an empty one in its
    /// place. Whether there was such a file.
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

    /// What has become of the folder's own name, from now on.
    pub fn set_folder(&self, standing: Standing) {
        self.state().folder = standing;
    }

    /// Bytes of all files together.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        let state = self.state();
        let files = state.names.values();
        let lengths = files.filter_map(|index| state.files.get(*index));
        lengths.map(|file| file.len() as u64).sum()
    }

    fn state(&self) -> MutexGuard<'_, State> {
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

impl State {
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

    /// The file of that name, which is made where it is missing.
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
            Some(0) => Err(io::Error::other("the power is gone")),
            _ => Ok(()),
        }
    }

    /// One more operation that writes.
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

    /// Writes `bytes`, or a part of them and an error.
    fn write(&mut self, index: usize, offset: usize, bytes: &[u8]) -> io::Result<()> {
        self.alive()?;
        let spent = self.spend();
        let full = self.numbers.once_in(self.faults.full);
        let failed = self.numbers.once_in(self.faults.write);
        let written = match (&spent, full || failed) {
            (Ok(()), false) => bytes.len(),
            // The power may go in the middle of a write.
            (Err(_), _) if !self.read_only => self.numbers.index(bytes.len() + 1),
            (Err(_), _) => 0,
            (Ok(()), true) => self.numbers.index(bytes.len() + 1),
        };
        let file = self.files.get_mut(index);
        let file = file.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        file.write(offset, bytes.get(..written).unwrap_or_default());
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
        let State { files, numbers, .. } = self;
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

    fn standing(&self) -> io::Result<Standing> {
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
        Ok(Box::new(OpenedFile {
            disk: self.clone(),
            name: file.to_owned(),
            index,
            length,
            process,
        }))
    }
}

#[derive(Debug)]
struct OpenedFile {
    disk: SimulatedDisk,
    name: String,
    index: usize,
    /// As long as it was opened.
    length: usize,
    process: u64,
}

impl OpenedFile {
    fn state(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.disk.state();
        match state.process == self.process {
            true => Ok(state),
            false => Err(io::Error::other("the process is gone")),
        }
    }
}

fn offset(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(io::Error::other)
}

impl MediumFile for OpenedFile {
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

    fn sync_data(&self) -> io::Result<()> {
        self.state()?.sync(self.index)
    }

    fn standing(&self) -> io::Result<Standing> {
        let state = self.state()?;
        state.alive()?;
        let length = state.files.get(self.index).map_or(0, SimulatedFile::len);
        Ok(match state.names.get(&self.name) {
            None => Standing::Removed,
            Some(index) if *index != self.index => Standing::Replaced,
            Some(_) if length < self.length => Standing::Cut {
                length_bytes: length as u64,
            },
            Some(_) => Standing::Same,
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
