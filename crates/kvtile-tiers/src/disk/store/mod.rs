//! Blocks in the slots of a folder: one store for each group, over files of its own.
//!
//! # What is durable when
//!
//! 1. [`SlotStore::write`] writes the bytes of blocks to erased places of the data file. The blocks
//!    can be read at once; a crash loses them.
//! 2. [`SlotStore::sync`] waits until these bytes are durable, then writes their records together
//!    with the erasures of slots since the last sync, then waits for the records. From then on the
//!    blocks survive a crash. All blocks of a sync share its two waits.
//! 3. [`SlotStore::erase`] empties slots in memory. Their places are written again only after a
//!    sync has erased their records on the disk. The data file has a few more places than slots, so
//!    that a write rarely has to wait for such a sync.
//!
//! So a record on the disk never refers to bytes that are not there, regardless of which writes
//! between two syncs survive a crash.
//!
//! A sync of a folder with several groups does this for all of them together: first the bytes of all
//! groups, then the records of all ([`SlotFolder::sync`]).
//!
//! The store knows neither which blocks are worth keeping, nor their readers, nor their layout.

mod commit;
mod found;
mod free;
mod groups;
mod lend;
mod long;
mod open;
mod read;
mod report;
mod scan;
mod slots;
mod standing;
mod stats;
mod table;
mod write;

pub use groups::SlotFolder;
pub use report::{
    DroppedSlots, FailedWrite, LostBlock, RecoveredBlocks, SlotMiss, SlotRead, SlotSyncReport,
    SlotWrite, SlotWriteReport, StoredSlot, WriteTicket,
};
pub use stats::SlotStoreStats;
pub use table::SlotState;

pub(super) use read::{ExpectedBlock, ReadSource, pieces_of, read_expected};
pub(super) use scan::{RecordRun, RecordScan, ScanScope, each_run, is_end};

use std::{io, sync::Arc};

use kvtile_blocks::BlockKey;
use parking_lot::{Mutex, MutexGuard};

pub(crate) use stats::StoreCounter;

use self::{
    standing::{DataFiles, HeldFolder},
    stats::StoreCounters,
    table::SlotTable,
};
use super::{
    manifest::{Manifest, ManifestGroup, file_name},
    medium::BatchIo,
    record::{RecordForm, StoreId},
};
use crate::{
    error::{SlotError, TierError},
    tier::BlockPieces,
};

/// The blocks of one group, in the slots of a folder. All methods are thread-safe.
///
/// Stores of several groups of a folder share its lock, its manifest and its capacity
/// ([`SlotFolder`]).
#[derive(Debug)]
pub struct SlotStore {
    folder: Arc<HeldFolder>,
    /// The group, as the manifest has it.
    group: ManifestGroup,
    /// The number of the group in its folder.
    index: usize,
    files: Arc<DataFiles>,
    /// The number that seals the records of the group.
    id: StoreId,
    pieces: BlockPieces,
    record_form: RecordForm,
    table: Mutex<SlotTable>,
    /// Held during a sync; syncs of a group run one at a time.
    commit: Mutex<()>,
    /// Lost blocks that [`SlotStore::take_lost`] has not yet reported.
    unreported: Mutex<Vec<LostBlock>>,
    counters: StoreCounters,
}

/// Settings of a slot store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SlotStoreSettings {
    /// The most bytes that all files of the folder may take. Opening a folder with another capacity
    /// resizes it; blocks that no longer fit are dropped.
    pub capacity_bytes: u64,
    /// Whether blocks bypass the page cache if the file system supports it.
    pub direct_io: bool,
    /// Whether creating the folder reserves its disk space, so that the disk cannot run full later.
    /// Otherwise the files grow as they are written.
    pub preallocate: bool,
    /// Whether a group may use room that other groups leave ([`DiskTier`](super::DiskTier)). It
    /// needs several groups, a file system that punches holes, and room for the additional records;
    /// files that are preallocated have none. Otherwise each group has its share.
    pub lends: bool,
}

impl SlotStoreSettings {
    /// Settings with a capacity, direct I/O, and files that grow as they are written.
    #[must_use]
    pub fn new(capacity_bytes: u64) -> SlotStoreSettings {
        SlotStoreSettings {
            capacity_bytes,
            direct_io: true,
            preallocate: false,
            lends: false,
        }
    }

    /// Sets [`direct_io`](Self::direct_io).
    #[must_use]
    pub fn direct_io(mut self, direct_io: bool) -> SlotStoreSettings {
        self.direct_io = direct_io;
        self
    }

    /// Sets [`preallocate`](Self::preallocate).
    #[must_use]
    pub fn preallocate(mut self, preallocate: bool) -> SlotStoreSettings {
        self.preallocate = preallocate;
        self
    }

    /// Sets [`lends`](Self::lends).
    #[must_use]
    pub fn lends(mut self, lends: bool) -> SlotStoreSettings {
        self.lends = lends;
        self
    }
}

impl SlotStore {
    /// The number of slots; slots are `0..slots`.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.group.blocks_max()
    }

    /// Bytes of one block.
    #[must_use]
    pub fn block_bytes(&self) -> u64 {
        self.group.block_bytes()
    }

    /// How a block is cut into pieces; each piece can be read and verified alone.
    #[must_use]
    pub fn pieces(&self) -> &BlockPieces {
        &self.pieces
    }

    /// The manifest of the folder.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.folder.manifest
    }

    /// The group in the manifest.
    #[must_use]
    pub fn group(&self) -> &ManifestGroup {
        &self.group
    }

    /// Whether blocks bypass the page cache.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.files.slots.is_direct()
    }

    /// How batches of blocks are executed: by io_uring, by worker threads, or one block after the
    /// other.
    #[must_use]
    pub fn batch_io(&self) -> BatchIo {
        self.files.slots.batch_io()
    }

    /// Empties slots; empty slots stay empty. After a crash, blocks that were durable may be found
    /// again until the next [`sync`](SlotStore::sync).
    ///
    /// # Errors
    /// A slot that the store does not have; no slot is erased then.
    pub fn erase(&self, slots: &[u32]) -> Result<(), TierError> {
        let count = self.slots();
        if let Some(&slot) = slots.iter().find(|slot| **slot >= count) {
            return Err(TierError::Slot(SlotError::SlotOutOfRange {
                slot,
                slots: count,
            }));
        }
        let mut table = self.table();
        let erased = slots.iter().filter(|slot| table.erase(**slot)).count();
        drop(table);
        self.counters.erased.add(erased as u64);
        Ok(())
    }

    /// Whether `slot` holds a block with this key that can be read. The store compares a hash of 32
    /// bits; reads verify the whole key.
    #[must_use]
    pub fn holds(&self, slot: u32, key: &BlockKey) -> bool {
        self.table().find(slot, key).is_ok()
    }

    /// The state of a slot; `Empty` for slots that the store does not have.
    #[must_use]
    pub fn state(&self, slot: u32) -> SlotState {
        let table = self.table();
        table
            .entry(slot)
            .map_or(SlotState::Empty, |entry| entry.state)
    }

    /// Whether everything written up to `ticket` is durable or was reported as lost.
    #[must_use]
    pub fn is_durable(&self, ticket: WriteTicket) -> bool {
        self.table().durable_epoch() >= ticket.0
    }

    /// Which of these blocks, each with its slot, survive a crash from now on. A block does if its
    /// slot still holds it, a sync has made it durable, and the folder still has all of its files.
    /// Blocks that were lost, erased, replaced or not yet synced do not.
    ///
    /// # Errors
    /// None of them is durable, because the folder or one of its files is removed, replaced,
    /// truncated or overwritten
    /// ([`FolderError::FileGone`](crate::FolderError::FileGone)), or cannot be examined.
    pub fn are_durable(&self, blocks: &[(u32, BlockKey)]) -> Result<Vec<bool>, TierError> {
        self.check_process()?;
        let durable = {
            let table = self.table();
            let durable = |(slot, key): &(u32, BlockKey)| {
                let found = table.find(*slot, key);
                found.is_ok_and(|entry| entry.state == SlotState::Durable)
            };
            blocks.iter().map(durable).collect()
        };
        // Checked last, to notice files that were removed during the call.
        self.check_files().map(|()| durable)
    }

    /// Counters since the store was opened, and its current fill.
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

    /// Asserts the invariants between the store's parts; for tests.
    ///
    /// # Panics
    /// An invariant is broken.
    pub fn check_integrity(&self) {
        let table = self.table();
        assert_eq!(table.slots(), self.slots(), "slots of manifest and table");
        table.check_integrity();
    }

    fn check_process(&self) -> Result<(), TierError> {
        self.folder.check_process()
    }

    fn check_files(&self) -> Result<(), TierError> {
        self.folder.check_files()
    }

    fn offset(&self, place: u32) -> u64 {
        u64::from(place) * self.group.slot_bytes()
    }

    fn table(&self) -> MutexGuard<'_, SlotTable> {
        // No code panics while holding the lock; `check_integrity` would show a broken invariant.
        self.table.lock()
    }

    fn failed(&self, operation: &'static str, error: io::Error) -> TierError {
        let file = &self.files.slots_name;
        TierError::file(operation, file_name(&*self.folder.medium, file), error)
    }
}
