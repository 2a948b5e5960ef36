//! Folders of version 1. They are only read, in order to convert them.
//!
//! ```text
//! manifest.json   as in version 2, but flat: one group of layers, and no pieces
//! records         64 bytes per slot, with one checksum over the whole block
//! slots           as in version 2
//! ```

mod manifest;
mod record;

pub(super) use manifest::{OLD_VERSION, OldManifest};

use std::sync::Arc;

use self::record::{OLD_RECORD_BYTES, OldDecoded, OldRecord};
use super::{
    capacity::PAGE,
    folder,
    folder::{RECORDS_FILE, SLOTS_FILE},
    medium::{Medium, MediumFile},
    store::{SlotMiss, StoredSlot},
};
use crate::{error::TierError, tier::content_checksum};

/// Records in a page.
const PAGE_RECORDS: u32 = 64;

const _: () = assert!(PAGE_RECORDS as usize * OLD_RECORD_BYTES == PAGE);

/// The contents of a folder of version 1.
#[derive(Debug)]
pub(super) struct OldFolder {
    medium: Arc<dyn Medium>,
    manifest: OldManifest,
    slots: Option<Box<dyn MediumFile>>,
    stored: Vec<(u32, OldRecord)>,
    torn: Vec<u32>,
    unreadable: Vec<u32>,
}

impl OldFolder {
    /// Reads the manifest and all records.
    pub(super) fn open(medium: Arc<dyn Medium>) -> Result<OldFolder, TierError> {
        let manifest = OldManifest::read(&*medium)?;
        let slots = folder::length(&*medium, SLOTS_FILE)?;
        let slots = folder::open_to_read(&*medium, SLOTS_FILE, slots.min(manifest.data_bytes()))?;
        let mut old = OldFolder {
            slots,
            stored: Vec::new(),
            torn: Vec::new(),
            unreadable: Vec::new(),
            manifest,
            medium,
        };
        old.scan()?;
        Ok(old)
    }

    fn scan(&mut self) -> Result<(), TierError> {
        let places = self.manifest.slots();
        let bytes = u64::from(places) * OLD_RECORD_BYTES as u64;
        let length = folder::length(&*self.medium, RECORDS_FILE)?.min(bytes);
        let records = folder::open_to_read(&*self.medium, RECORDS_FILE, length)?;
        let mut page = [0; PAGE];
        let mut first = 0;
        while first < places {
            let count = (places - first).min(PAGE_RECORDS);
            let (here, _) = page.split_at_mut(count as usize * OLD_RECORD_BYTES);
            let offset = u64::from(first) * OLD_RECORD_BYTES as u64;
            let read = records
                .as_ref()
                .map(|file| file.read_exact_at(offset, here));
            match read {
                Some(Ok(())) => self.take(first, here),
                Some(Err(_)) | None => self.unreadable.extend(first..first + count),
            }
            first += count;
        }
        Ok(())
    }

    fn take(&mut self, first: u32, bytes: &[u8]) {
        let (records, _) = bytes.as_chunks::<OLD_RECORD_BYTES>();
        for (slot, record) in (first..).zip(records) {
            match OldRecord::decode(record, self.manifest.store(), slot) {
                OldDecoded::Empty => {}
                OldDecoded::Stored(record) => self.stored.push((slot, record)),
                OldDecoded::Torn => self.torn.push(slot),
            }
        }
    }

    pub(super) fn manifest(&self) -> &OldManifest {
        &self.manifest
    }

    /// The blocks that the records name, in the order of their slots.
    pub(super) fn blocks(&self) -> impl Iterator<Item = StoredSlot> + '_ {
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
    pub(super) fn torn(&self) -> &[u32] {
        &self.torn
    }

    /// Slots whose record cannot be read.
    pub(super) fn unreadable(&self) -> &[u32] {
        &self.unreadable
    }

    /// Reads the `index`-th of [`blocks`](OldFolder::blocks), and verifies it.
    pub(super) fn read(&self, index: usize, buffer: &mut [u8]) -> Result<(), SlotMiss> {
        let (slot, record) = self.stored.get(index).ok_or(SlotMiss::Empty)?;
        let offset = u64::from(*slot) * self.manifest.slot_bytes();
        let slots = (SLOTS_FILE, self.slots.as_deref());
        folder::read_slot(&*self.medium, slots, offset, buffer)?;
        match content_checksum(&record.key, record.position, buffer) == record.content {
            true => Ok(()),
            false => Err(SlotMiss::Checksum),
        }
    }
}
