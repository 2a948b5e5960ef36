//! The disk tier: slots of a folder and the pool that knows which block is in which.

use std::sync::{
    Arc, PoisonError, RwLock, RwLockReadGuard,
    atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
};

use kvtile_blocks::{BlockId, BlockKey, pool::BlockPool};

use super::{Inner, flights::Flights, rate::Rate};
use crate::disk::{LostBlock, Miss, SlotStore};

/// Fewer written blocks than this wait for the next idle moment to be synced.
pub(super) const BLOCKS_PER_SYNC: usize = 64;

/// Blocks on disk. The id of a block in the pool is the number of its slot.
pub(super) struct Stored {
    pub(super) pool: Arc<BlockPool>,
    pub(super) store: SlotStore,
    pub(super) rate: Rate,
    /// Blocks that are being written. Whoever has such a flight boards no other.
    pub(super) writes: Flights,
    /// Read by those who evict host blocks, until these are on disk.
    demotions: RwLock<()>,
    /// Whether something was written or erased since the last sync.
    dirty: AtomicBool,
    /// Blocks written since the last sync.
    written: AtomicUsize,
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
            demotions: RwLock::new(()),
            dirty: AtomicBool::new(false),
            written: AtomicUsize::new(0),
            tenants: (0..slots).map(|_| AtomicU32::new(0)).collect(),
            damaged: AtomicU64::new(0),
        }
    }

    /// Says that host blocks are about to be evicted, until they are on disk. Whoever has said so
    /// says it no second time.
    pub(super) fn demoting(&self) -> RwLockReadGuard<'_, ()> {
        self.demotions
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for those who have said so.
    pub(super) fn wait_for_demotions(&self) {
        drop(
            self.demotions
                .write()
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    /// A block was written to a slot.
    pub(super) fn wrote(&self, slot: BlockId, tenant: u32) {
        self.describe(slot, tenant);
        self.written.fetch_add(1, Ordering::Relaxed);
        self.touched();
    }

    /// Blocks written since the last sync.
    pub(super) fn written(&self) -> usize {
        self.written.load(Ordering::Relaxed)
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

    pub(super) fn is_dirty(&self) -> bool {
        self.dirty.load(Ordering::Acquire)
    }

    pub(super) fn touched(&self) {
        self.dirty.store(true, Ordering::Release);
    }

    /// Whether a block is on disk.
    pub(super) fn has(&self, key: &BlockKey) -> bool {
        self.pool.peek(std::slice::from_ref(key)) == 1
    }

    /// Empties slots whose blocks the pool has given up, so that others may be written there.
    pub(super) fn forget(&self, slots: &[BlockId]) {
        let slots: Vec<u32> = slots.iter().map(|slot| slot.0).collect();
        self.touched();
        if let Err(error) = self.store.erase(&slots) {
            log::error!("slots of the pool are not those of the folder: {error}");
        }
    }

    /// A block that could not be read is offered no more.
    pub(super) fn drop_bad(&self, slot: BlockId, key: &BlockKey, miss: &Miss) {
        log::warn!(
            "block {key} in slot {} of the disk tier is lost: {miss}",
            slot.0
        );
        self.remove_damaged(std::slice::from_ref(key));
        self.forget(&[slot]);
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
        disk.dirty.store(false, Ordering::Release);
        disk.written.store(0, Ordering::Relaxed);
        let synced = disk.store.sync();
        if let Some(error) = &synced.failure {
            log::warn!("the disk tier could not be synced: {error}");
            disk.touched();
        }
        let mut lost = disk.store.take_lost();
        lost.extend(synced.lost);
        self.drop_lost(disk, &lost);
        Synced {
            lost: lost.len(),
            durable: synced.failure.is_none(),
        }
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
