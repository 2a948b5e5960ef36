//! The disk tier: slots of a folder and the pool that knows which block is in which.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard,
    atomic::{AtomicU32, AtomicU64, Ordering},
};
use std::time::Duration;

use kvtile_blocks::{
    BlockId, BlockKey,
    pool::{BlockPool, Claim, PinnedBlocks},
};

use super::{
    Inner, QueueLabel,
    flights::Flights,
    health::Health,
    rate::Rate,
    spill::{Due, Pauses, Spill},
};
use crate::{
    disk::{LostBlock, Miss, SlotStore},
    error::TierError,
};

/// How long the disk's thread rests where even its clock panics.
const AFTER_PANIC: Duration = Duration::from_millis(50);

/// Blocks on disk. The id of a block in the pool is the number of its slot.
pub(super) struct Stored {
    pub(super) pool: Arc<BlockPool>,
    pub(super) store: SlotStore,
    pub(super) rate: Rate,
    /// Blocks that are being written. A thread with such a flight boards no other.
    pub(super) writes: Flights,
    /// Whether it takes blocks.
    pub(super) health: Health,
    /// Whether it syncs. Where it does not, nothing is written either; where writes fail, what was written
    /// is synced all the same.
    syncs: Health,
    /// What is to be written and synced by the disk's own thread.
    pub(super) spill: Spill,
    /// Read while host blocks are evicted, until these are on disk.
    demotions: RwLock<()>,
    /// Held while host blocks are evicted and written, so that no thread evicts the parent of a block
    /// that another one is about to write.
    turn: Mutex<()>,
    /// Whose block is in which slot.
    tenants: Box<[AtomicU32]>,
    /// Blocks that were removed because they were lost or could not be read.
    damaged: AtomicU64,
}

/// What became of a sync.
pub(super) struct Synced {
    /// Blocks that the disk lost.
    pub(super) lost: usize,
    /// Whether everything else is durable.
    pub(super) durable: bool,
}

impl Stored {
    pub(super) fn new(pool: Arc<BlockPool>, store: SlotStore) -> Stored {
        let slots = store.slots();
        Stored {
            pool,
            store,
            rate: Rate::default(),
            writes: Flights::default(),
            health: Health::new("writes to the disk tier"),
            syncs: Health::new("syncs of the disk tier"),
            spill: Spill::default(),
            demotions: RwLock::new(()),
            turn: Mutex::new(()),
            tenants: (0..slots).map(|_| AtomicU32::new(0)).collect(),
            damaged: AtomicU64::new(0),
        }
    }

    /// Says that host blocks are about to be evicted, until they are on disk. A thread says it once.
    pub(super) fn demoting(&self) -> RwLockReadGuard<'_, ()> {
        self.demotions
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for all demotions that have begun.
    pub(super) fn wait_for_demotions(&self) {
        drop(
            self.demotions
                .write()
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    /// Whether a block may be written now, of the disk's own accord.
    pub(super) fn takes_blocks(&self, now: Duration) -> bool {
        self.syncs.paused_until().is_none() && self.health.allows(now)
    }

    fn pauses(&self) -> Pauses {
        let syncs = self.syncs.paused_until();
        Pauses {
            writes: self.health.paused_until().max(syncs),
            syncs,
        }
    }

    /// The turn to evict host blocks and write them.
    pub(super) fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A block was written to a slot.
    pub(super) fn wrote(&self, slot: BlockId, tenant: u32, now: Duration) {
        self.describe(slot, tenant);
        self.spill.wrote(now);
    }

    /// Notes whose block is in a slot.
    pub(super) fn describe(&self, slot: BlockId, tenant: u32) {
        if let Some(known) = self.tenants.get(slot.index()) {
            known.store(tenant, Ordering::Relaxed);
        }
    }

    /// Whose block is in a slot.
    pub(super) fn tenant(&self, slot: BlockId) -> u32 {
        let tenant = self.tenants.get(slot.index());
        tenant.map_or(0, |tenant| tenant.load(Ordering::Relaxed))
    }

    /// Whether a block is on disk.
    pub(super) fn has(&self, key: &BlockKey) -> bool {
        self.pool.peek(std::slice::from_ref(key)) == 1
    }

    /// Pins a block on disk; `None` where it is not there. No policy learns of it.
    pub(super) fn hold(&self, key: &BlockKey) -> Option<PinnedBlocks> {
        let pinned = self
            .pool
            .pin(std::slice::from_ref(key), &Claim::default())
            .blocks;
        (!pinned.is_empty()).then_some(pinned)
    }

    /// How many of these blocks are on disk and outlive a crash.
    pub(super) fn durable(&self, keys: &[BlockKey]) -> usize {
        let pinned = self.pool.pin(keys, &Claim::default()).blocks;
        let slots = pinned.ids().iter().map(|slot| slot.0);
        let blocks: Vec<(u32, BlockKey)> = slots.zip(pinned.keys()).collect();
        match self.store.are_durable(&blocks) {
            Ok(durable) => durable.into_iter().filter(|durable| *durable).count(),
            // The sync before has reported why.
            Err(_) => 0,
        }
    }

    /// Empties slots whose blocks the pool has given up, so that others may be written there.
    pub(super) fn forget(&self, slots: &[BlockId], now: Duration) {
        let slots: Vec<u32> = slots.iter().map(|slot| slot.0).collect();
        self.spill.touched(now);
        if let Err(error) = self.store.erase(&slots) {
            log::error!("slots of the pool are not those of the folder: {error}");
        }
    }

    /// A block that could not be read is offered no more.
    pub(super) fn drop_bad(&self, slot: BlockId, key: &BlockKey, miss: &Miss, now: Duration) {
        log::warn!(
            "block {key} in slot {} of the disk tier is lost: {miss}",
            slot.0
        );
        self.remove_damaged(std::slice::from_ref(key));
        self.forget(&[slot], now);
    }

    fn remove_damaged(&self, keys: &[BlockKey]) {
        let removed = self.pool.remove(keys).blocks as u64;
        self.damaged.fetch_add(removed, Ordering::Relaxed);
    }

    /// Blocks that were removed because they were lost or could not be read.
    pub(super) fn damaged(&self) -> u64 {
        self.damaged.load(Ordering::Relaxed)
    }

    pub(super) fn check_integrity(&self) {
        self.pool.check_integrity();
        self.store.check_integrity();
        for entry in self.pool.snapshot() {
            let (slot, key) = (entry.block, entry.key);
            assert_eq!(self.store.key(slot.0), Some(key), "slot {}", slot.0);
        }
    }
}

impl Inner {
    /// Waits until everything written before is durable. What the disk lost is offered no more.
    pub(super) fn sync_disk(&self, disk: &Stored) -> Synced {
        disk.spill.sync_begins();
        let synced = disk.store.sync();
        let now = self.clock.now();
        match &synced.failure {
            Some(error) => {
                disk.syncs.failed(now, error);
                disk.spill.touched(now);
            }
            None => disk.syncs.succeeded(now),
        }
        let mut lost = disk.store.take_lost();
        lost.extend(synced.lost);
        self.drop_lost(disk, &lost);
        Synced {
            lost: lost.len(),
            durable: synced.failure.is_none(),
        }
    }

    /// Serves the disk until it is closed: writes what is to be written, and syncs in time.
    pub(super) fn serve_disk(&self, disk: &Stored) {
        loop {
            let turn = || {
                let due = disk.spill.wait(|| self.clock.now(), disk.pauses());
                self.serve(disk, due);
                due
            };
            match catch_unwind(AssertUnwindSafe(turn)) {
                Ok(Due::Closed) => return,
                Ok(_) => {}
                // Where the clock panics, this is how the thread learns that it is to end.
                Err(_) if disk.spill.is_closed() => return,
                Err(_) => self.disk_panicked(disk),
            }
        }
    }

    /// A turn of the disk's thread panicked: as after a failure, disk and syncs are left alone for a while, and
    /// what was not synced stays to be synced.
    fn disk_panicked(&self, disk: &Stored) {
        let error = TierError::Panicked {
            what: "the thread of the disk tier",
        };
        log::error!("{error}; this is a defect; the cache goes on");
        let noted = catch_unwind(AssertUnwindSafe(|| {
            let now = self.clock.now();
            disk.syncs.failed(now, &error);
            disk.spill.touched(now);
        }));
        if noted.is_err() {
            std::thread::sleep(AFTER_PANIC);
        }
    }

    /// Does what is due at the disk; false where nothing is.
    pub(super) fn step_disk(&self, disk: &Stored) -> bool {
        let due = disk.spill.due(self.clock.now(), disk.pauses());
        self.serve(disk, due);
        matches!(due, Due::Write(_) | Due::Sync)
    }

    fn serve(&self, disk: &Stored, due: Due) {
        match due {
            Due::Write(key) => {
                self.metrics.unqueued(QueueLabel::Spill);
                self.write_key(disk, &key);
            }
            Due::Sync => {
                // After a failure one attempt at a time ends the pause.
                if disk.syncs.allows(self.clock.now()) {
                    self.sync_disk(disk);
                }
            }
            Due::Nothing | Due::Closed => {}
        }
    }

    /// Host blocks are to be written to disk, behind the back of the caller.
    pub(super) fn spill(&self, disk: &Stored, keys: &[BlockKey]) {
        for _ in keys {
            self.metrics.queued(QueueLabel::Spill);
        }
        let is_there = |key: &BlockKey| self.host.pool.peek(std::slice::from_ref(key)) == 1;
        for _ in 0..disk.spill.push(keys, self.spill_keys_max(), is_there) {
            self.metrics.unqueued(QueueLabel::Spill);
        }
    }

    /// Above so many, keys of blocks that have left host memory are dropped from the list of those to
    /// write: no more than half of them can be there.
    pub(super) fn spill_keys_max(&self) -> usize {
        self.host.pool.blocks().saturating_mul(2)
    }

    /// What the disk had taken and lost is offered no more.
    pub(super) fn drop_lost(&self, disk: &Stored, lost: &[LostBlock]) {
        if lost.is_empty() {
            return;
        }
        log::warn!("the disk tier lost {} blocks that it had taken", lost.len());
        let keys: Vec<BlockKey> = lost.iter().map(|lost| lost.key).collect();
        disk.remove_damaged(&keys);
    }
}
