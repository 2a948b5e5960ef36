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
mod open;
mod report;
mod scan;
mod standing;
mod stats;
mod table;

pub use report::{
    Dropped, FailedWrite, LostBlock, Miss, Recovered, SlotWrite, StoredBlock, Synced, Ticket,
    Written,
};
pub use stats::SlotStoreStats;
pub use table::SlotState;

pub(super) use scan::{Scan, Scanned, is_end};

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use kvtile_blocks::BlockKey;
use kvtile_memory::{AlignedBuffer, ProcessMark};

use self::{
    report::Miss::{Buffer, Checksum, Io, Replaced, Truncated},
    standing::HeldManifest,
    stats::Counters,
    table::{Begin, Entry, Pending, Placed, Table},
};
use super::{
    capacity::PAGE,
    folder::SLOTS_FILE,
    manifest::{Manifest, file_name},
    medium::{Medium, MediumFile, MediumLock},
    record::{Record, content_checksum},
};
use crate::error::TierError;

/// Blocks in the slots of one folder. All methods may be called from any number of threads.
#[derive(Debug)]
pub struct SlotStore {
    medium: Arc<dyn Medium>,
    manifest: Manifest,
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

    /// Writes blocks to empty slots. They can be read when this returns, and are durable after
    /// the next [`sync`](SlotStore::sync). Blocks whose address is a multiple of 4096 pass by the
    /// page cache where the file system has direct I/O.
    ///
    /// It waits for a sync only where more places were erased since the last one than are kept in
    /// reserve. Nothing is written where the folder or one of its files was removed, replaced or cut
    /// since the store was opened ([`TierError::FileGone`]); what was written before can still be
    /// read.
    pub fn write(&self, batch: &[SlotWrite<'_>]) -> Written {
        let mut failed = Vec::new();
        if let Err(error) = self.check_process() {
            // The table is not asked: a thread that the child does not have may hold it.
            let fail = |write: &SlotWrite<'_>| FailedWrite {
                slot: write.slot,
                error: error.clone(),
            };
            return Written {
                ticket: Ticket(u64::MAX),
                failed: batch.iter().map(fail).collect(),
            };
        }
        let files = match batch.is_empty() {
            true => Ok(()),
            false => self.check_files(),
        };
        for write in batch {
            self.counters.writes.add(1);
            match files.clone().and_then(|()| self.write_one(write)) {
                Ok(()) => self.counters.written_bytes.add(write.bytes.len() as u64),
                Err(error) => {
                    self.counters.write_failures.add(1);
                    let slot = write.slot;
                    failed.push(FailedWrite { slot, error });
                }
            }
        }
        Written {
            ticket: Ticket(self.table().epoch()),
            failed,
        }
    }

    fn write_one(&self, write: &SlotWrite<'_>) -> Result<(), TierError> {
        let (block_bytes, found_bytes) = (self.block_bytes(), write.bytes.len() as u64);
        if found_bytes != block_bytes {
            return Err(TierError::WrongBlockBytes {
                block_bytes,
                found_bytes,
            });
        }
        let placed = self.begin(write)?;
        let (slot, place) = (write.slot, placed.place);
        let offset = self.offset(place);
        // The slot is taken: a medium that panics must not leave it so.
        let written = catch_unwind(AssertUnwindSafe(|| {
            self.slots.write_all_at(offset, write.bytes)
        }));
        let Ok(written) = written else {
            self.table().failed(slot, place, placed.write);
            return Err(TierError::Panicked {
                what: "a write to the disk tier",
            });
        };
        if let Err(error) = written {
            self.table().failed(slot, place, placed.write);
            return Err(self.failed("write", error));
        }
        let record = Record {
            key: write.key,
            parent: write.parent,
            position: write.position,
            tenant: write.tenant,
            sequence: 0,
            content: content_checksum(&write.key, write.position, write.bytes),
        };
        let pending = Pending {
            slot,
            place,
            write: placed.write,
            record,
        };
        match self.table().written(pending, placed.failed_syncs) {
            true => Ok(()),
            false => Err(TierError::SyncFailedMeanwhile { slot }),
        }
    }

    /// A place for the write, after a sync where no erased one is left.
    fn begin(&self, write: &SlotWrite<'_>) -> Result<Placed, TierError> {
        let mut waits = 0;
        loop {
            let begun = self.table().begin(write.slot, write.key, write.position);
            match begun {
                Begin::Place(placed) => return Ok(placed),
                Begin::Refused(error) => return Err(error),
                Begin::NoPlace => {}
            }
            waits += 1;
            self.counters.erasure_waits.add(u64::from(waits == 1));
            // Other threads may take what was freed; there are places for all slots, so it is
            // given up only where the disk frees none.
            if !self.sync_erasures() {
                let failures = self.counters.sync_failures.get();
                return Err(TierError::NoErasedSlot { failures });
            }
        }
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

    /// Reads the block of `slot`, which must be `key`, and verifies it. Buffers whose address is a
    /// multiple of 4096 are read past the page cache where the file system has direct I/O.
    ///
    /// # Errors
    /// Why there is no such block. What `buffer` holds then must not be used.
    pub fn read(&self, slot: u32, key: &BlockKey, buffer: &mut [u8]) -> Result<(), Miss> {
        self.counters.reads.add(1);
        let read = self.read_verified(slot, key, buffer);
        match &read {
            Ok(()) => self.counters.read_bytes.add(buffer.len() as u64),
            Err(miss) => self.counters.count_miss(miss),
        }
        read
    }

    fn read_verified(&self, slot: u32, key: &BlockKey, buffer: &mut [u8]) -> Result<(), Miss> {
        let (block_bytes, found_bytes) = (self.block_bytes(), buffer.len() as u64);
        if found_bytes != block_bytes {
            return Err(Buffer(TierError::WrongBlockBytes {
                block_bytes,
                found_bytes,
            }));
        }
        let entry = self.table().find(slot, key)?;
        let read = self.read_entry(&entry, buffer);
        // A place that was given to another block meanwhile is no sign of damage.
        if read.is_err() && !self.table().holds(slot, entry.write) {
            return Err(Replaced);
        }
        read
    }

    fn read_entry(&self, entry: &Entry, buffer: &mut [u8]) -> Result<(), Miss> {
        let read = self.slots.read_exact_at(self.offset(entry.place), buffer);
        read.map_err(|error| match is_end(&error) {
            true => Truncated,
            false => Io(self.failed("read", error)),
        })?;
        match content_checksum(&entry.key, entry.position, buffer) == entry.content {
            true => Ok(()),
            false => Err(Checksum),
        }
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
