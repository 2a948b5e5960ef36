//! Inspecting a folder without using it: which blocks it holds, and whether they are intact.
//!
//! An inspection writes nothing, keeps no lock, needs no identity, and works on read-only folders:
//! an image, another user's folder, a read-only mount, a network file system. A cache may use the
//! folder concurrently. [`InspectedGroup::read`] verifies the checksum of each block, so a block that
//! changed during the read is never returned. A block that the cache replaced after the scan of the
//! records is [`SlotMiss::Replaced`], which is no damage.

use std::{path::Path, sync::Arc};

use kvtile_layout::broken;

use super::{
    capacity, folder,
    folder::LOCK_FILE,
    manifest::{MANIFEST_FILE, Manifest, ManifestGroup},
    medium::{FolderMedium, LockHolder, Medium, MediumFile},
    record::{DecodedRecord, RecordForm, SlotRecord, StoreId, are_whole},
    store::{RecordScan, ScanScope, SlotMiss, StoredSlot},
};
use crate::{
    error::{FolderError, SlotError, TierError},
    tier::BlockPieces,
};

/// The contents of a folder.
#[derive(Debug)]
pub struct Inspection {
    medium: Arc<dyn Medium>,
    manifest: Manifest,
    groups: Vec<InspectedGroup>,
    files_bytes: u64,
    usage: FolderUsage,
}

/// The contents of one group of a folder. A block's slot is its index in the data file of the group,
/// not a store's slot number.
#[derive(Debug)]
pub struct InspectedGroup {
    medium: Arc<dyn Medium>,
    manifest: ManifestGroup,
    /// The number that seals the records of the group.
    store: StoreId,
    pieces: BlockPieces,
    form: RecordForm,
    records: Option<Box<dyn MediumFile>>,
    slots: Option<Box<dyn MediumFile>>,
    slots_name: String,
    stored: Vec<(u32, SlotRecord)>,
    torn: Vec<u32>,
    unreadable: Vec<u32>,
    files_bytes: u64,
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
    /// Scans the records of all groups of a folder, which may be in use.
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
        // The lock file may be missing, and its content does not matter.
        let mut files_bytes = folder::length(&*medium, LOCK_FILE).unwrap_or(0);
        files_bytes += folder::length(&*medium, MANIFEST_FILE)?;
        let mut groups = Vec::new();
        for index in 0..manifest.groups().len() {
            let group = InspectedGroup::open(&medium, &manifest, index)?;
            files_bytes += group.files_bytes;
            groups.push(group);
        }
        Ok(Inspection {
            medium,
            manifest,
            groups,
            files_bytes,
            usage,
        })
    }

    /// The manifest of the folder.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The groups of the folder, at least one, in the order of their numbers.
    #[must_use]
    pub fn groups(&self) -> &[InspectedGroup] {
        &self.groups
    }

    /// The only group of the folder.
    ///
    /// # Errors
    /// The folder has several groups.
    pub fn only(&self) -> Result<&InspectedGroup, TierError> {
        match self.groups.as_slice() {
            [only] => Ok(only),
            _ => Err(TierError::Folder(FolderError::FolderGroups {
                folder: self.medium.name(),
                groups: self.manifest.names(),
            })),
        }
    }

    /// As [`only`](Inspection::only), by value.
    pub(super) fn into_only(mut self) -> Result<InspectedGroup, TierError> {
        self.only()?;
        match self.groups.pop() {
            Some(group) => Ok(group),
            None => broken(format_args!("an inspection without groups")),
        }
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
}

impl InspectedGroup {
    fn open(
        medium: &Arc<dyn Medium>,
        manifest: &Manifest,
        index: usize,
    ) -> Result<InspectedGroup, TierError> {
        let Some(group) = manifest.groups().get(index) else {
            broken(format_args!("group {index} of {}", manifest.groups().len()))
        };
        let pieces = group.pieces()?;
        let mut inspected = InspectedGroup {
            medium: Arc::clone(medium),
            manifest: group.clone(),
            store: manifest.store(index),
            form: RecordForm::of(&pieces),
            pieces,
            records: None,
            slots: None,
            slots_name: folder::slots_file(index),
            stored: Vec::new(),
            torn: Vec::new(),
            unreadable: Vec::new(),
            files_bytes: 0,
        };
        inspected.scan(&folder::records_file(index))?;
        Ok(inspected)
    }

    fn scan(&mut self, records_name: &str) -> Result<(), TierError> {
        let found = folder::length(&*self.medium, records_name)?;
        self.files_bytes += found + folder::length(&*self.medium, &self.slots_name)?;
        let records = capacity::records_bytes(self.manifest.slots(), self.form).min(found);
        self.records = folder::open_to_read(&*self.medium, records_name, records)?;
        if let Some(file) = &self.records {
            let scanned = ScanScope {
                store: &self.store,
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
        let slots = folder::length(&*self.medium, &self.slots_name)?;
        let slots = slots.min(self.manifest.data_bytes());
        self.slots = folder::open_to_read(&*self.medium, &self.slots_name, slots)?;
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
        Some(SlotRecord::decode(self.form, &bytes, (&self.store, slot)))
    }

    /// The group in the manifest of the folder.
    #[must_use]
    pub fn manifest(&self) -> &ManifestGroup {
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

    /// Bytes of the two files of the group.
    #[must_use]
    pub fn files_bytes(&self) -> u64 {
        self.files_bytes
    }

    /// Reads the `index`-th of [`blocks`](InspectedGroup::blocks) and verifies it.
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
        let slots = (self.slots_name.as_str(), self.slots.as_deref());
        folder::read_slot(&*self.medium, slots, offset, buffer)?;
        let of = (&record.key, record.position, &*record.sums);
        match are_whole(&self.pieces, 0..self.pieces.count(), of, buffer) {
            true => Ok(()),
            false => Err(SlotMiss::Checksum),
        }
    }
}
