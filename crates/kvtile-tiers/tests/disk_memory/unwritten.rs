//! A folder that discards the bytes of blocks and keeps everything else.

use std::{io, path::Path};

use kvtile_tiers::disk::medium::{
    FolderMedium, LockError, LockHolder, Medium, MediumFile, MediumLock, NameStanding, OpenFile,
};

/// The folder.
#[derive(Debug)]
pub(crate) struct UnwrittenFolder(FolderMedium);

impl UnwrittenFolder {
    pub(crate) fn new(folder: &Path) -> UnwrittenFolder {
        UnwrittenFolder(FolderMedium::new(folder))
    }
}

/// Its file of slots, which is sparse.
#[derive(Debug)]
struct UnwrittenFile(Box<dyn MediumFile>);

impl Medium for UnwrittenFolder {
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
        let opened = self.0.open(file, how)?;
        Ok(match file {
            "slots" => Box::new(UnwrittenFile(opened)),
            _ => opened,
        })
    }
}

impl MediumFile for UnwrittenFile {
    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(offset, buffer)
    }

    fn write_all_at(&self, _offset: u64, _bytes: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn standing(&self) -> io::Result<NameStanding> {
        self.0.standing()
    }

    fn is_direct(&self) -> bool {
        self.0.is_direct()
    }
}
