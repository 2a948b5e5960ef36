//! One group of a disk tier: a block pool over the slots of a store.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use kvtile_blocks::{
    BlockId, BlockKey, Tick,
    events::TierId,
    policy::{PolicyKind, PolicySettings},
    pool::{BlockPool, EventSink, PinClaim, PinnedBlocks, PoolSettings, StoredEntry, TenantId},
};
use kvtile_layout::broken;
use parking_lot::Mutex;

use super::{
    super::{LostBlock, RecoveredBlocks, SlotStore},
    lend::{FolderTurns, SlotNumbers},
};
use crate::{
    clock::Clock,
    error::TierError,
    tier::{GroupId, TierContext, TierHold, TierStats},
};

/// One group of a disk tier: its store, and the pool that maps keys to slots of the store.
pub(super) struct DiskGroup {
    pub(super) tier: TierId,
    pub(super) id: GroupId,
    /// A block's id in the pool is its slot number.
    pub(super) pool: Arc<BlockPool>,
    pub(super) store: Arc<SlotStore>,
    tenants: SlotNumbers,
    /// The turn of the last use of each slot's block, where groups lend room to each other.
    pub(super) uses: SlotNumbers,
    turns: Option<Arc<FolderTurns>>,
    /// Blocks that were evicted to make room for blocks of this group or of another one.
    pub(super) made_room: AtomicU64,
    /// Blocks that were removed because they were lost or could not be read.
    damaged: AtomicU64,
    /// Of those, the ones that a failed sync lost.
    lost: AtomicU64,
    clock: Arc<dyn Clock>,
    /// Held while a batch is written, so that concurrent batches do not write the same block twice.
    pub(super) writing: Mutex<()>,
}

impl std::fmt::Debug for DiskGroup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DiskGroup")
            .field("tier", &self.tier)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// Pinned blocks of the disk's pool. They do not keep the folder open.
struct DiskHold {
    tenants: SlotNumbers,
    blocks: PinnedBlocks,
}

impl std::fmt::Debug for DiskHold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("DiskHold").field(&self.blocks.len()).finish()
    }
}

impl TierHold for DiskHold {
    fn blocks(&self) -> usize {
        self.blocks.len()
    }

    fn parent(&self, index: usize) -> Option<BlockKey> {
        self.blocks.parent(index)
    }

    fn tenant(&self, index: usize) -> u32 {
        let Some(&slot) = self.blocks.ids().get(index) else {
            broken(format_args!("block {index} of {}", self.blocks.len()))
        };
        self.tenants.get(slot)
    }

    fn split_off(&mut self, at: usize) -> Box<dyn TierHold> {
        Box::new(DiskHold {
            tenants: self.tenants.clone(),
            blocks: self.blocks.split_off(at),
        })
    }
}

impl DiskGroup {
    /// The group of a store that was just opened, with the blocks that it recovered.
    pub(super) fn open(
        (tier, id, policy): (TierId, GroupId, PolicyKind),
        (store, recovered): (&Arc<SlotStore>, &RecoveredBlocks),
        (context, turns): (&TierContext, Option<Arc<FolderTurns>>),
    ) -> Result<DiskGroup, TierError> {
        let pool = PoolSettings::new().blocks(store.slots() as usize);
        let policy = |blocks| PolicySettings::from(policy).build(blocks);
        let sink = EventSink {
            log: Arc::clone(&context.events),
            tier,
            group: id,
        };
        let pool = BlockPool::with_events(pool, policy, sink)?;
        let restored = recovered.entries.iter().map(|entry| StoredEntry {
            block: BlockId(entry.slot),
            key: entry.key,
            parent: entry.parent,
            tenant: TenantId(entry.tenant),
        });
        let superfluous = pool.restore(restored, Tick(0))?.superfluous;
        let group = DiskGroup {
            tier,
            id,
            pool,
            tenants: SlotNumbers::new(store.slots()),
            uses: SlotNumbers::new(store.slots()),
            turns,
            made_room: AtomicU64::new(0),
            store: Arc::clone(store),
            damaged: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            clock: Arc::clone(&context.clock),
            writing: Mutex::new(()),
        };
        for entry in &recovered.entries {
            group.describe(BlockId(entry.slot), entry.tenant);
        }
        if !superfluous.is_empty() {
            group.erase(&superfluous);
        }
        Ok(group)
    }

    /// Records the tenant of a slot's block, which was just written or recovered.
    pub(super) fn describe(&self, slot: BlockId, tenant: u32) {
        self.tenants.set(slot, tenant);
        self.use_slots(&[slot]);
    }

    /// Records the use of slots' blocks.
    fn use_slots(&self, slots: &[BlockId]) {
        if let Some(turns) = &self.turns {
            let now = turns.now();
            slots.iter().for_each(|slot| self.uses.set(*slot, now));
        }
    }

    pub(super) fn tick(&self) -> Tick {
        let millis = self.clock.now().as_millis();
        Tick(u64::try_from(millis).unwrap_or(u64::MAX))
    }

    /// Pins the longest prefix of `keys` that is present, without counting as an access for the
    /// policy.
    pub(super) fn pin(&self, keys: &[BlockKey]) -> PinnedBlocks {
        let (there, _) = keys.split_at(self.pool.peek(keys));
        let claim = PinClaim {
            now: self.tick(),
            ..PinClaim::default()
        };
        let mut pinned = self.pool.pin(there, &claim);
        let leading = pinned.positions.iter().zip(0..);
        let leading = leading.take_while(|(at, place)| *at == place).count();
        drop(pinned.blocks.split_off(leading));
        pinned.blocks
    }

    /// Empties slots whose blocks the pool has evicted or removed, so that they can be rewritten.
    pub(super) fn erase(&self, slots: &[BlockId]) {
        if self.turns.is_some() {
            slots.iter().for_each(|slot| self.uses.set(*slot, 0));
        }
        let slots: Vec<u32> = slots.iter().map(|slot| slot.0).collect();
        if let Err(error) = self.store.erase(&slots) {
            broken(format_args!(
                "slots of the pool are not those of the folder: {error}"
            ))
        }
    }

    /// Removes lost or unreadable blocks from the pool, and returns how many.
    pub(super) fn remove_damaged(&self, keys: &[BlockKey]) -> u64 {
        let removed = self.pool.remove(keys).blocks as u64;
        self.damaged.fetch_add(removed, Ordering::Relaxed);
        removed
    }

    /// Removes blocks that were written and then lost to a failed sync.
    pub(super) fn drop_lost(&self, lost: &[LostBlock]) {
        if lost.is_empty() {
            return;
        }
        log::warn!(
            "the {} tier lost {} blocks of group {} that were written to it",
            self.tier,
            lost.len(),
            self.id.0
        );
        let keys: Vec<BlockKey> = lost.iter().map(|lost| lost.key).collect();
        let lost_blocks = self.remove_damaged(&keys);
        self.lost.fetch_add(lost_blocks, Ordering::Relaxed);
    }

    pub(super) fn hold_of(&self, blocks: PinnedBlocks) -> Option<Box<dyn TierHold>> {
        if blocks.is_empty() {
            return None;
        }
        self.use_slots(blocks.ids());
        let tenants = self.tenants.clone();
        Some(Box::new(DiskHold { tenants, blocks }))
    }

    pub(super) fn forget(&self, keys: &[BlockKey]) -> usize {
        let pinned = self.pool.pin(keys, &PinClaim::default()).blocks;
        let slots = pinned.ids().to_vec();
        let removed = self.pool.remove(keys).blocks;
        self.erase(&slots);
        drop(pinned);
        removed
    }

    pub(super) fn evict(&self, blocks: usize, now: Tick) -> usize {
        let leaving = self.pool.evict(blocks, now);
        self.erase(leaving.ids());
        leaving.len()
    }

    pub(super) fn durable(&self, keys: &[BlockKey]) -> Vec<bool> {
        let claim = PinClaim::default();
        let pinned = self.pool.pin(keys, &claim);
        let slots = pinned.blocks.ids().iter().map(|slot| slot.0);
        let blocks: Vec<(u32, BlockKey)> = slots.zip(pinned.blocks.keys()).collect();
        let mut durable = vec![false; keys.len()];
        // If the files cannot be examined, none is durable; the preceding sync has reported why.
        let known = self.store.are_durable(&blocks).unwrap_or_default();
        for (at, known) in pinned.positions.iter().zip(known) {
            if let Some(one) = durable.get_mut(*at) {
                *one = known;
            }
        }
        durable
    }

    pub(super) fn stats(&self) -> TierStats {
        // Loaded first: a block damaged after this line counts in the next call.
        let damaged = self.damaged.load(Ordering::Relaxed);
        let lost = self.lost.load(Ordering::Relaxed);
        let mut pool = self.pool.stats();
        if self.turns.is_some() {
            // The pool has a block for each place that the group may own.
            let made_room = self.made_room.load(Ordering::Relaxed);
            pool.evicted_on_request = pool.evicted_on_request.saturating_sub(made_room);
            pool.evicted_for_room += made_room;
            let others = pool.blocks - pool.free;
            pool.blocks = (self.store.capacity() as usize).max(others);
            pool.free = pool.blocks - others;
        }
        TierStats {
            lost,
            ..TierStats::of_pool(pool, damaged)
        }
    }

    pub(super) fn check_integrity(&self) {
        self.pool.check_integrity();
        for entry in self.pool.snapshot() {
            let (slot, key) = (entry.block, entry.key);
            let holds = self.store.holds(slot.0, &key);
            assert!(holds, "group {}, slot {}, key {key}", self.id.0, slot.0);
        }
    }
}
