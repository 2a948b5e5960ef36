//! Inspecting a folder without using it: which blocks it holds, and whether they are intact.
//!
//! An inspection writes nothing, keeps no lock, needs no identity, and works on read-only folders:
//! an image, another user's folder, a read-only mount, a network file system. A cache may use the
//! folder concurrently. [`Inspection::read`] verifies the checksum of each block, so a block that
//! changed during the read is never returned. A block that the cache replaced after the scan of the
//! records is [`SlotMiss::Replaced`], which is no damage.

use std::{path::Path, sync::Arc};

use super::{
    capacity, folder,
    folder::{LOCK_FILE, RECORDS_FILE, SLOTS_FILE},
    manifest::{MANIFEST_FILE, Manifest},
    medium::{FolderMedium, LockHolder, Medium, MediumFile},
    record::{DecodedRecord, RecordForm, SlotRecord, are_whole},
    store::{RecordScan, ScanScope, SlotMiss, StoredSlot},
};
use crate::{
    error::{FolderError, SlotError, TierError},
    tier::BlockPieces,
};

/// The contents of a folder. A block's slot is its index in the data file, not a store's slot
/// number.
#[derive(Debug)]
pub struct Inspection {
    medium: Arc<dyn Medium>,
    manifest: Manifest,
    pieces: BlockPieces,
    form: RecordForm,
    records: Option<Box<dyn MediumFile>>,
    slots: Option<Box<dyn MediumFile>>,
    stored: Vec<(u32, SlotRecord)>,
    torn: Vec<u32>,
    unreadable: Vec<u32>,
    files_bytes: u64,
    usage: FolderUsage,
}

/// Whether a cache uses a folder.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum FolderUsage {
    /// No cache uses it.
    Unused,
    /// A cache uses it and may write during the inspection.
    Used(LockHolder),
    /// The lock cannot be examined from here, for instance on a network file system.
    Unknown(TierError),
}

impl Inspection {
    /// Scans the records of a folder, which may be in use.
    ///
    /// # Errors
    /// The folder is no disk tier, its manifest is damaged, or the file system fails.
    pub fn open(path: &Path) -> Result<Inspection, TierError> {
        Inspection::open_on(Arc::new(FolderMedium::new(path)))
    }

    /// As [`open`](Inspection::open), on any medium.
    ///
    /// # Errors
    /// The same.
    pub fn open_on(medium: Arc<dyn Medium>) -> Result<Inspection, TierError> {
        let Some(manifest) = Manifest::read(&*medium)? else {
            let folder = medium.name();
            return Err(TierError::Folder(FolderError::NotAStore { folder }));
        };
        let usage = match medium.holder(LOCK_FILE) {
            Ok(None) => FolderUsage::Unused,
            Ok(Some(holder)) => FolderUsage::Used(holder),
            Err(error) => FolderUsage::Unknown(TierError::file("lock", medium.name(), error)),
        };
        let pieces = manifest.pieces()?;
        let mut inspection = Inspection {
            form: RecordForm::of(&pieces),
            pieces,
            records: None,
            slots: None,
            stored: Vec::new(),
            torn: Vec::new(),
            unreadable: Vec::new(),
            files_bytes: 0,
            usage,
            manifest,
            medium,
        };
        inspection.scan()?;
        Ok(inspection)
    }

    fn scan(&mut self) -> Result<(), TierError> {
        for file in [MANIFEST_FILE, RECORDS_FILE, SLOTS_FILE] {
            self.files_bytes += folder::length(&*self.medium, file)?;
        }
        // The lock file may be missing, and its content does not matter.
        self.files_bytes += folder::length(&*self.medium, LOCK_FILE).unwrap_or(0);
        let records = capacity::records_bytes(self.manifest.slots(), self.form);
        let records = records.min(folder::length(&*self.medium, RECORDS_FILE)?);
        self.records = folder::open_to_read(&*self.medium, RECORDS_FILE, records)?;
        if let Some(file) = &self.records {
            let scanned = ScanScope {
                store: self.manifest.store(),
                places: self.manifest.slots(),
                form: self.form,
                write_back: false,
            };
            let scan = RecordScan::read(&**file, scanned);
            (self.stored, self.torn, self.unreadable) = (scan.stored, scan.torn, scan.unreadable);
        } else {
            self.unreadable = (0..self.manifest.slots()).collect();
        }
        self.read_torn_again();
        let slots = folder::length(&*self.medium, SLOTS_FILE)?;
        let slots = slots.min(self.manifest.data_bytes());
        self.slots = folder::open_to_read(&*self.medium, SLOTS_FILE, slots)?;
        self.stored
            .sort_by_key(|(_, record)| (record.position, record.sequence));
        Ok(())
    }

    /// A cache may have been writing a torn record during the scan; a second read settles it.
    fn read_torn_again(&mut self) {
        for slot in std::mem::take(&mut self.torn) {
            match self.record(slot) {
                Some(DecodedRecord::Stored(record)) => self.stored.push((slot, record)),
                Some(DecodedRecord::Empty) => {}
                Some(DecodedRecord::Torn) | None => self.torn.push(slot),
            }
        }
    }

    /// The current record of a slot; `None` if it cannot be read.
    fn record(&self, slot: u32) -> Option<DecodedRecord> {
        let mut bytes = vec![0; self.form.bytes()];
        let offset = u64::from(slot) * self.form.stride();
        let read = self.records.as_ref()?.read_exact_at(offset, &mut bytes);
        read.ok()?;
        Some(SlotRecord::decode(
            self.form,
            &bytes,
            (self.manifest.store(), slot),
        ))
    }

    /// The manifest of the folder.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The stored blocks, smaller positions first. `slot` is a block's index in the data file.
    pub fn blocks(&self) -> impl ExactSizeIterator<Item = StoredSlot> + '_ {
        self.stored.iter().map(|(slot, record)| StoredSlot {
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

    /// Bytes of all files of the folder.
    #[must_use]
    pub fn files_bytes(&self) -> u64 {
        self.files_bytes
    }

    /// Whether a cache used the folder when it was opened here.
    #[must_use]
    pub fn usage(&self) -> &FolderUsage {
        &self.usage
    }

    /// Reads the `index`-th of [`blocks`](Inspection::blocks) and verifies it.
    ///
    /// # Errors
    /// Why the block cannot be read; [`SlotMiss::Replaced`] if a cache has replaced or erased it since
    /// the folder was opened here. The content of `buffer` must not be used then.
    pub fn read(&self, index: usize, buffer: &mut [u8]) -> Result<(), SlotMiss> {
        let (block_bytes, found_bytes) = (self.manifest.block_bytes(), buffer.len() as u64);
        if found_bytes != block_bytes {
            return Err(SlotMiss::Buffer(TierError::Slot(
                SlotError::WrongBlockBytes {
                    block_bytes,
                    found_bytes,
                },
            )));
        }
        let (slot, record) = self.stored.get(index).ok_or(SlotMiss::Empty)?;
        let read = self.read_verified(*slot, record, buffer);
        // The block is damaged only if its record is still the one that was scanned.
        match (&read, self.record(*slot)) {
            (Err(_), Some(now)) if now != DecodedRecord::Stored(record.clone()) => {
                Err(SlotMiss::Replaced)
            }
            _ => read,
        }
    }

    fn read_verified(
        &self,
        slot: u32,
        record: &SlotRecord,
        buffer: &mut [u8],
    ) -> Result<(), SlotMiss> {
        let offset = u64::from(slot) * self.manifest.slot_bytes();
        folder::read_slot(&*self.medium, self.slots.as_deref(), offset, buffer)?;
        let of = (&record.key, record.position, &*record.sums);
        match are_whole(&self.pieces, 0..self.pieces.count(), of, buffer) {
            true => Ok(()),
            false => Err(SlotMiss::Checksum),
        }
    }
}
