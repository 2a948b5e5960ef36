//! A folder whose manifest does not have its final name yet.
//!
//! The store that fills the folder finds the manifest under its final name. On the disk the file is
//! called `manifest.json.partial` until [`UnfinishedFolder::finish`], so no process takes the folder for
//! a disk tier before.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::super::{
    manifest::{MANIFEST_FILE, MANIFEST_PARTIAL_FILE, file_name},
    medium::{LockError, LockHolder, Medium, MediumFile, MediumLock, NameStanding, OpenFile},
};
use crate::error::TierError;

/// A folder under construction.
#[derive(Debug)]
pub(super) struct UnfinishedFolder {
    folder: Arc<dyn Medium>,
    /// Whether the store has written the manifest.
    has_manifest: AtomicBool,
}

impl UnfinishedFolder {
    pub(super) fn new(folder: Arc<dyn Medium>) -> UnfinishedFolder {
        UnfinishedFolder {
            folder,
            has_manifest: AtomicBool::new(false),
        }
    }

    /// Gives the manifest its final name; the folder is a disk tier when this returns.
    pub(super) fn finish(&self) -> Result<(), TierError> {
        let failed = |error| {
            TierError::file(
                "rename",
                file_name(&*self.folder, MANIFEST_PARTIAL_FILE),
                error,
            )
        };
        self.folder
            .rename(MANIFEST_PARTIAL_FILE, MANIFEST_FILE)
            .map_err(failed)?;
        let synced = self.folder.sync_folder().map_err(failed);
        if synced.is_err() {
            // The rename may or may not be durable; the conversion reports failure, so the name is
            // removed.
            drop(self.folder.remove(MANIFEST_FILE));
        }
        synced
    }

    /// The name of a file on the disk.
    fn on_disk<'f>(&self, file: &'f str) -> &'f str {
        match file == MANIFEST_FILE && self.has_manifest.load(Ordering::Acquire) {
            true => MANIFEST_PARTIAL_FILE,
            false => file,
        }
    }
}

impl Medium for UnfinishedFolder {
    fn name(&self) -> String {
        self.folder.name()
    }

    fn create(&self) -> io::Result<()> {
        self.folder.create()
    }

    fn names(&self) -> io::Result<Vec<String>> {
        self.folder.names()
    }

    fn length(&self, file: &str) -> io::Result<Option<u64>> {
        self.folder.length(self.on_disk(file))
    }

    fn read(&self, file: &str, bytes_max: u64) -> io::Result<Vec<u8>> {
        self.folder.read(self.on_disk(file), bytes_max)
    }

    fn write(&self, file: &str, bytes: &[u8]) -> io::Result<()> {
        self.folder.write(self.on_disk(file), bytes)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        match (from, to) {
            (MANIFEST_PARTIAL_FILE, MANIFEST_FILE) => {
                self.has_manifest.store(true, Ordering::Release);
                Ok(())
            }
            _ => self.folder.rename(from, to),
        }
    }

    fn remove(&self, file: &str) -> io::Result<()> {
        self.folder.remove(self.on_disk(file))
    }

    fn sync_folder(&self) -> io::Result<()> {
        self.folder.sync_folder()
    }

    fn standing(&self) -> io::Result<NameStanding> {
        self.folder.standing()
    }

    fn lock(&self, file: &str) -> Result<Box<dyn MediumLock>, LockError> {
        self.folder.lock(file)
    }

    fn lock_to_read(&self, file: &str) -> Result<Box<dyn MediumLock>, LockError> {
        self.folder.lock_to_read(file)
    }

    fn holder(&self, file: &str) -> io::Result<Option<LockHolder>> {
        self.folder.holder(file)
    }

    fn open(&self, file: &str, how: &OpenFile) -> io::Result<Box<dyn MediumFile>> {
        self.folder.open(self.on_disk(file), how)
    }
}
