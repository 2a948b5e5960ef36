//! Blocks in the slots of one folder.
//!
//! # What is durable when
//!
//! 1. [`SlotStore::write`] puts the bytes of blocks into erased places of the data file. They can
//!    be read at once; a crash loses them.
//! 2. [`SlotStore::sync`] waits until these bytes are on the disk, then writes their records
//!    together with the erasures of what was erased since, then waits for the records. From then
//!    on the blocks outlive a crash. Many blocks share its two waits.
//! 3. [`SlotStore::erase`] empties slots in memory. Their places are written again only when a
//!    sync has erased their records on the disk; a few places more than there are slots stand by,
//!    so that a write need not wait for that.
//!
//! So no record on the disk ever speaks of bytes that are not there, whatever a crash leaves of
//! the writes between two syncs.
//!
//! It does not know which block is worth keeping, who reads which one, nor how its bytes lie.

mod commit;
mod free;
mod open;
mod read;
mod report;
mod scan;
mod standing;
mod stats;
mod table;
mod write;

pub use report::{
    Dropped, FailedWrite, LostBlock, Miss, Recovered, SlotRead, SlotWrite, StoredBlock, Synced,
    Ticket, Written,
};
pub use stats::SlotStoreStats;
pub use table::SlotState;

pub(super) use scan::{Scan, Scanned, is_end};

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use kvtile_blocks::BlockKey;
use kvtile_memory::{AlignedBuffer, ProcessMark};

use self::{standing::HeldManifest, stats::Counters, table::Table};
use super::{
    capacity::PAGE,
    folder::SLOTS_FILE,
    manifest::{Manifest, file_name},
    medium::{BatchIo, Medium, MediumFile, MediumLock},
    record::RecordForm,
};
use crate::{error::TierError, tier::Pieces};

/// Blocks in the slots of one folder. All methods may be called from any number of threads.
#[derive(Debug)]
pub struct SlotStore {
    medium: Arc<dyn Medium>,
    manifest: Manifest,
    pieces: Pieces,
    record_form: RecordForm,
    held_manifest: HeldManifest,
    slots: Box<dyn MediumFile>,
    records: Box<dyn MediumFile>,
    table: Mutex<Table>,
    /// Held during a sync; there is one at a time.
    commit: Mutex<()>,
    /// Blocks that were lost and that nobody was told of yet.
    unreported: Mutex<Vec<LostBlock>>,
    counters: Counters,
    /// The process that opened it: a child has neither its lock nor its threads.
    process: ProcessMark,
    /// Held while the store lives.
    _lock: Box<dyn MediumLock>,
}

/// How a store is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotStoreSettings {
    /// What all files of the folder may have together, in bytes. Another capacity than before
    /// changes the size of the folder; what no longer fits is dropped.
    pub capacity_bytes: u64,
    /// Whether blocks should pass by the page cache where the file system can.
    pub direct_io: bool,
    /// Whether the disk's room is reserved when the folder is made, so that it cannot run out
    /// later. Otherwise the files grow as they are written.
    pub preallocate: bool,
}

impl SlotStoreSettings {
    /// A capacity, direct I/O, and room that is taken as it is needed.
    #[must_use]
    pub fn new(capacity_bytes: u64) -> SlotStoreSettings {
        SlotStoreSettings {
            capacity_bytes,
            direct_io: true,
            preallocate: false,
        }
    }
}

impl SlotStore {
    /// How many slots there are, `0..slots`.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.manifest.blocks_max()
    }

    /// Bytes of one block.
    #[must_use]
    pub fn block_bytes(&self) -> u64 {
        self.manifest.block_bytes()
    }

    /// How a block is cut: what can be read and verified alone.
    #[must_use]
    pub fn pieces(&self) -> &Pieces {
        &self.pieces
    }

    /// What the folder says of itself.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Whether blocks pass by the page cache.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.slots.is_direct()
    }

    /// What batches of blocks go through: an io_uring, threads, or one block after the other.
    #[must_use]
    pub fn batch_io(&self) -> BatchIo {
        self.slots.batch_io()
    }

    /// Empties slots. Those that are empty already stay so. Blocks that were durable may be offered
    /// again after a crash, until the next [`sync`](SlotStore::sync).
    ///
    /// # Errors
    /// A slot that the store does not have; no slot was erased then.
    pub fn erase(&self, slots: &[u32]) -> Result<(), TierError> {
        let count = self.slots();
        if let Some(&slot) = slots.iter().find(|slot| **slot >= count) {
            return Err(TierError::SlotOutOfRange { slot, slots: count });
        }
        let mut table = self.table();
        let erased = slots.iter().filter(|slot| table.erase(**slot)).count();
        drop(table);
        self.counters.erased.add(erased as u64);
        Ok(())
    }

    /// Reads every slot that holds a block and verifies it: the slot, and why it is bad where it
    /// is. Slots that are emptied meanwhile are left out.
    ///
    /// # Errors
    /// No memory for one block.
    pub fn verify(
        &self,
    ) -> Result<impl Iterator<Item = (u32, Result<(), Miss>)> + '_, kvtile_memory::MemoryError>
    {
        let bytes = usize::try_from(self.block_bytes()).unwrap_or(usize::MAX);
        let mut buffer = AlignedBuffer::new(bytes, PAGE)?;
        Ok((0..self.slots()).filter_map(move |slot| {
            let key = self.key(slot)?;
            match self.read(slot, &key, &mut buffer) {
                Err(Miss::Empty | Miss::WrongKey | Miss::Replaced) => None,
                read => Some((slot, read)),
            }
        }))
    }

    /// The key of the block that can be read from `slot`.
    #[must_use]
    pub fn key(&self, slot: u32) -> Option<BlockKey> {
        let entry = *self.table().entry(slot)?;
        matches!(entry.state, SlotState::Written | SlotState::Durable).then_some(entry.key)
    }

    /// How far the block of a slot has come; `Empty` for slots that the store does not have.
    #[must_use]
    pub fn state(&self, slot: u32) -> SlotState {
        let table = self.table();
        table
            .entry(slot)
            .map_or(SlotState::Empty, |entry| entry.state)
    }

    /// Whether everything written up to `ticket` is durable, or was reported as lost.
    #[must_use]
    pub fn is_durable(&self, ticket: Ticket) -> bool {
        self.table().durable_epoch() >= ticket.0
    }

    /// Which of these blocks, each with the slot that it was written to, outlive a crash now: the slot
    /// holds the block, a sync has brought it to the disk, and the folder with all of its files is
    /// still there. Blocks that were lost, erased or replaced, or that no sync has reached, are not.
    ///
    /// # Errors
    /// None of them is durable, because the folder or one of its files is gone
    /// ([`TierError::FileGone`]), or cannot be looked at.
    pub fn are_durable(&self, blocks: &[(u32, BlockKey)]) -> Result<Vec<bool>, TierError> {
        self.check_process()?;
        let durable = {
            let table = self.table();
            let durable = |(slot, key): &(u32, BlockKey)| {
                table
                    .entry(*slot)
                    .is_some_and(|entry| entry.state == SlotState::Durable && entry.key == *key)
            };
            blocks.iter().map(durable).collect()
        };
        // Last, so that files that went meanwhile are seen.
        self.check_files().map(|()| durable)
    }

    /// What happened since the store was opened, and what it holds.
    #[must_use]
    pub fn stats(&self) -> SlotStoreStats {
        let counted = self.counters.snapshot();
        let table = self.table();
        SlotStoreStats {
            used: u64::from(table.used()),
            slots: u64::from(table.slots()),
            erased_places: table.free_places() as u64,
            ..counted
        }
    }

    /// Asserts what must hold between its parts; for tests.
    ///
    /// # Panics
    /// Where something does not hold.
    pub fn check_integrity(&self) {
        let table = self.table();
        assert_eq!(table.slots(), self.slots(), "slots of manifest and table");
        table.check_integrity();
    }

    /// Fails in a child of the process that opened the store: its lock stayed behind, and another
    /// process may have the folder by now.
    fn check_process(&self) -> Result<(), TierError> {
        match self.process.is_current() {
            true => Ok(()),
            false => Err(TierError::Forked {
                opened_by: self.process.id(),
            }),
        }
    }

    fn offset(&self, place: u32) -> u64 {
        u64::from(place) * self.manifest.slot_bytes()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing panics while it is held; a broken invariant would show in `check_integrity`.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, operation: &'static str, error: io::Error) -> TierError {
        TierError::file(operation, file_name(&*self.medium, SLOTS_FILE), error)
    }
}
