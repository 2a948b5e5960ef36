//! Looking into a folder without using it: what it holds, and whether that is whole.
//!
//! It writes nothing, needs no identity and works in folders that may only be read.

use std::{io, path::Path};

use super::{
    capacity,
    folder::{self, LOCK_FILE, RECORDS_FILE, SLOTS_FILE},
    manifest::{MANIFEST_FILE, Manifest, file_name},
    medium::{FolderMedium, LockError, Medium, MediumFile, MediumLock, OpenFile},
    record::{Record, content_checksum},
    store::{Miss, Scan, Scanned, StoredBlock, is_end},
};
use crate::error::TierError;

/// What a folder holds. Its blocks are numbered by where they lie, not by a store's slots.
#[derive(Debug)]
pub struct Inspection {
    medium: FolderMedium,
    manifest: Manifest,
    slots: Option<Box<dyn MediumFile>>,
    stored: Vec<(u32, Record)>,
    torn: Vec<u32>,
    unreadable: Vec<u32>,
    files_bytes: u64,
    used_by: Option<Option<u32>>,
    /// Held where the folder was taken.
    _lock: Option<Box<dyn MediumLock>>,
}

impl Inspection {
    /// Looks into a folder that may be in use; what is being written meanwhile may look torn.
    ///
    /// # Errors
    /// No disk tier there, a damaged manifest, or what the file system says.
    pub fn open(path: &Path) -> Result<Inspection, TierError> {
        Inspection::new(FolderMedium::new(path), false)
    }

    /// Looks into a folder and keeps others from using it meanwhile.
    ///
    /// # Errors
    /// As [`open`](Inspection::open); the folder is in use.
    pub fn open_alone(path: &Path) -> Result<Inspection, TierError> {
        Inspection::new(FolderMedium::new(path), true)
    }

    fn new(medium: FolderMedium, alone: bool) -> Result<Inspection, TierError> {
        let Some(before) = Manifest::read(&medium)? else {
            let folder = medium.name();
            return Err(TierError::NotAStore { folder });
        };
        let (lock, used_by) = match medium.lock(LOCK_FILE, false) {
            Ok(lock) => (Some(lock), None),
            Err(LockError::Held { pid }) if !alone => (None, Some(pid)),
            // A copy of a folder need not have its lock.
            Err(LockError::Io(error)) if error.kind() == io::ErrorKind::NotFound => (None, None),
            Err(error) => return Err(folder::lock_error(&medium, error)),
        };
        // It may have been given another size before it was taken.
        let manifest = match &lock {
            Some(_) => Manifest::read(&medium)?.unwrap_or(before),
            None => before,
        };
        let mut inspection = Inspection {
            slots: None,
            stored: Vec::new(),
            torn: Vec::new(),
            unreadable: Vec::new(),
            files_bytes: 0,
            used_by,
            _lock: lock.filter(|_| alone),
            manifest,
            medium,
        };
        inspection.scan()?;
        Ok(inspection)
    }

    fn scan(&mut self) -> Result<(), TierError> {
        for file in [MANIFEST_FILE, LOCK_FILE, RECORDS_FILE, SLOTS_FILE] {
            self.files_bytes += self.length(file)?;
        }
        let records = capacity::records_bytes(self.manifest.slots());
        let records = records.min(self.length(RECORDS_FILE)?);
        if let Some(file) = self.file(RECORDS_FILE, records)? {
            let scanned = Scanned {
                store: self.manifest.store(),
                places: self.manifest.slots(),
                write_back: false,
            };
            let scan = Scan::read(&*file, scanned);
            (self.stored, self.torn, self.unreadable) = (scan.stored, scan.torn, scan.unreadable);
        } else {
            self.unreadable = (0..self.manifest.slots()).collect();
        }
        let slots = self.manifest.data_bytes().min(self.length(SLOTS_FILE)?);
        self.slots = self.file(SLOTS_FILE, slots)?;
        self.stored
            .sort_by_key(|(_, record)| (record.position, record.sequence));
        Ok(())
    }

    fn length(&self, file: &str) -> Result<u64, TierError> {
        let failed = |error| TierError::file("look at", file_name(&self.medium, file), error);
        Ok(self.medium.length(file).map_err(failed)?.unwrap_or(0))
    }

    /// A file of so many bytes; `None` where it has none.
    fn file(
        &self,
        file: &str,
        length_bytes: u64,
    ) -> Result<Option<Box<dyn MediumFile>>, TierError> {
        if length_bytes == 0 {
            return Ok(None);
        }
        let how = OpenFile {
            length_bytes,
            writable: false,
            direct: false,
            preallocate: false,
        };
        let failed = |error| TierError::file("open", file_name(&self.medium, file), error);
        self.medium.open(file, &how).map(Some).map_err(failed)
    }

    /// What the folder says of itself.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The blocks that it offers, those with smaller positions first. `slot` is where each lies in
    /// the data file.
    pub fn blocks(&self) -> impl ExactSizeIterator<Item = StoredBlock> + '_ {
        self.stored.iter().map(|(slot, record)| StoredBlock {
            slot: *slot,
            key: record.key,
            parent: record.parent,
            position: record.position,
            tenant: record.tenant,
            sequence: record.sequence,
        })
    }

    /// Slots whose record is neither whole nor erased.
    #[must_use]
    pub fn torn(&self) -> &[u32] {
        &self.torn
    }

    /// Slots whose record cannot be read.
    #[must_use]
    pub fn unreadable(&self) -> &[u32] {
        &self.unreadable
    }

    /// Bytes of all files.
    #[must_use]
    pub fn files_bytes(&self) -> u64 {
        self.files_bytes
    }

    /// Whether somebody uses the folder, and which process if it says so.
    #[must_use]
    pub fn used_by(&self) -> Option<Option<u32>> {
        self.used_by
    }

    /// Reads the `index`-th of [`blocks`](Inspection::blocks) and verifies it.
    ///
    /// # Errors
    /// Why there is no such block. What `buffer` holds then must not be used.
    pub fn read(&self, index: usize, buffer: &mut [u8]) -> Result<(), Miss> {
        let (block_bytes, found_bytes) = (self.manifest.block_bytes(), buffer.len() as u64);
        if found_bytes != block_bytes {
            return Err(Miss::Buffer(TierError::WrongBlockBytes {
                block_bytes,
                found_bytes,
            }));
        }
        let (slot, record) = self.stored.get(index).ok_or(Miss::Empty)?;
        let slots = self.slots.as_ref().ok_or(Miss::Truncated)?;
        let offset = u64::from(*slot) * self.manifest.slot_bytes();
        slots
            .read_exact_at(offset, buffer)
            .map_err(|error| match is_end(&error) {
                true => Miss::Truncated,
                false => Miss::Io(TierError::file(
                    "read",
                    file_name(&self.medium, SLOTS_FILE),
                    error,
                )),
            })?;
        match content_checksum(&record.key, record.position, buffer) == record.content {
            true => Ok(()),
            false => Err(Miss::Checksum),
        }
    }
}
