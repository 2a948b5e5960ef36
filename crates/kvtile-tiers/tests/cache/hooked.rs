//! A folder whose data files call a function before each read, write and sync.

use std::{fmt, io, path::Path, sync::Arc};

use kvtile_tiers::disk::medium::{
    FolderMedium, LockError, LockHolder, Medium, MediumFile, MediumLock, NameStanding, OpenFile,
};

/// The operation that follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HookedOperation {
    Read,
    Write,
    Sync,
}

#[derive(Clone)]
struct FolderHook(Arc<dyn Fn(HookedOperation) + Send + Sync>);

impl fmt::Debug for FolderHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FolderHook").finish_non_exhaustive()
    }
}

/// A folder whose files call a hook.
#[derive(Debug)]
pub(crate) struct HookedFolder(FolderMedium, FolderHook);

impl HookedFolder {
    pub(crate) fn new(
        folder: &Path,
        hook: impl Fn(HookedOperation) + Send + Sync + 'static,
    ) -> HookedFolder {
        HookedFolder(FolderMedium::new(folder), FolderHook(Arc::new(hook)))
    }
}

#[derive(Debug)]
struct HookedFile(Box<dyn MediumFile>, FolderHook);

impl Medium for HookedFolder {
    fn name(&self) -> String {
        self.0.name()
    }

    fn create(&self) -> io::Result<()> {
        self.0.create()
    }

    fn names(&self) -> io::Result<Vec<String>> {
        self.0.names()
    }

    fn length(&self, file: &str) -> io::Result<Option<u64>> {
        self.0.length(file)
    }

    fn read(&self, file: &str, bytes_max: u64) -> io::Result<Vec<u8>> {
        self.0.read(file, bytes_max)
    }

    fn write(&self, file: &str, bytes: &[u8]) -> io::Result<()> {
        self.0.write(file, bytes)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
    }

    fn remove(&self, file: &str) -> io::Result<()> {
        self.0.remove(file)
    }

    fn sync_folder(&self) -> io::Result<()> {
        self.0.sync_folder()
    }

    fn standing(&self) -> io::Result<NameStanding> {
        self.0.standing()
    }

    fn lock(&self, file: &str) -> Result<Box<dyn MediumLock>, LockError> {
        self.0.lock(file)
    }

    fn lock_to_read(&self, file: &str) -> Result<Box<dyn MediumLock>, LockError> {
        self.0.lock_to_read(file)
    }

    fn holder(&self, file: &str) -> io::Result<Option<LockHolder>> {
        self.0.holder(file)
    }

    fn open(&self, file: &str, how: &OpenFile) -> io::Result<Box<dyn MediumFile>> {
        let file = self.0.open(file, how)?;
        Ok(Box::new(HookedFile(file, self.1.clone())))
    }
}

impl HookedFile {
    fn before(&self, operation: HookedOperation) {
        (self.1.0)(operation);
    }
}

impl MediumFile for HookedFile {
    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.before(HookedOperation::Read);
        self.0.read_exact_at(offset, buffer)
    }

    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.before(HookedOperation::Write);
        self.0.write_all_at(offset, bytes)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.before(HookedOperation::Sync);
        self.0.sync_data()
    }

    fn standing(&self) -> io::Result<NameStanding> {
        self.0.standing()
    }

    fn is_direct(&self) -> bool {
        self.0.is_direct()
    }
}
