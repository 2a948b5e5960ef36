//! The disk as a tier: a slot store, and a block pool that maps keys to its slots.

mod read;
mod threads;
mod write;

use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use kvtile_blocks::{
    BlockId, BlockKey, Tick,
    events::{StoredBlock as Stored, TierId, TierKind},
    policy::PolicySettings,
    pool::{
        BlockPool, EventSink, PinClaim, PinReport, PinnedBlocks, PoolSettings, PoolStats,
        StoredEntry, TenantId,
    },
};
use kvtile_layout::broken;
use kvtile_transfer::completion::{Completer, Completion};
use parking_lot::Mutex;

pub(super) use self::{
    read::{BatchReader, set, start},
    threads::DiskThreads,
};
use super::{
    DiskSettings, LostBlock, SlotStore, SlotStoreSettings, SlotStoreStats,
    medium::{FolderMedium, Medium},
};
use crate::{
    clock::Clock,
    error::{RequestError, TierError},
    rate::TierRate,
    tier::{
        AnswerTime, BlockRead, BlockWrite, GroupId, ReadReport, SyncReport, Tier, TierAbilities,
        TierContext, TierHold, TierStats, WriteReport,
    },
};

/// Blocks in a folder, as a [`Tier`]. It has one group, `GroupId(0)`.
#[derive(Debug)]
pub struct DiskTier {
    disk: Arc<DiskTierShared>,
    readers: DiskThreads,
    writer: DiskThreads,
    /// Has its own thread, so that a sync neither delays writes nor waits for them.
    syncer: DiskThreads,
}

/// The state that the threads of a disk tier share.
struct DiskTierShared {
    id: TierId,
    /// A block's id in the pool is its slot number.
    pool: Arc<BlockPool>,
    store: SlotStore,
    tenants: SlotTenants,
    /// Blocks that were removed because they were lost or could not be read.
    damaged: AtomicU64,
    rate: TierRate,
    clock: Arc<dyn Clock>,
    /// Held while a batch is written, so that concurrent batches do not write the same block twice.
    writing: Mutex<()>,
}

impl std::fmt::Debug for DiskTierShared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DiskTierShared")
            .field("id", &self.id)
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

/// The tenant of the block in each slot.
#[derive(Clone)]
struct SlotTenants(Arc<[AtomicU32]>);

impl SlotTenants {
    fn of(&self, slot: BlockId) -> &AtomicU32 {
        let Some(tenant) = self.0.get(slot.index()) else {
            broken(format_args!("slot {} of {}", slot.0, self.0.len()))
        };
        tenant
    }
}

/// Pinned blocks of the disk's pool. They do not keep the folder open.
struct DiskHold {
    tenants: SlotTenants,
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
        self.tenants.of(slot).load(Ordering::Relaxed)
    }

    fn split_off(&mut self, at: usize) -> Box<dyn TierHold> {
        Box::new(DiskHold {
            tenants: self.tenants.clone(),
            blocks: self.blocks.split_off(at),
        })
    }
}

impl DiskTierShared {
    /// Records the tenant of a slot's block.
    fn describe(&self, slot: BlockId, tenant: u32) {
        self.tenants.of(slot).store(tenant, Ordering::Relaxed);
    }

    fn tick(&self) -> Tick {
        let millis = self.clock.now().as_millis();
        Tick(u64::try_from(millis).unwrap_or(u64::MAX))
    }

    /// Pins the longest prefix of `keys` that is present, without counting as an access for the
    /// policy.
    fn pin(&self, keys: &[BlockKey]) -> PinnedBlocks {
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
    fn erase(&self, slots: &[BlockId]) {
        let slots: Vec<u32> = slots.iter().map(|slot| slot.0).collect();
        if let Err(error) = self.store.erase(&slots) {
            broken(format_args!(
                "slots of the pool are not those of the folder: {error}"
            ))
        }
    }

    /// Removes lost or unreadable blocks from the pool.
    fn remove_damaged(&self, keys: &[BlockKey]) {
        let removed = self.pool.remove(keys).blocks as u64;
        self.damaged.fetch_add(removed, Ordering::Relaxed);
    }

    /// Removes blocks that were written and then lost to a failed sync.
    fn drop_lost(&self, lost: &[LostBlock]) {
        if lost.is_empty() {
            return;
        }
        log::warn!(
            "the {} tier lost {} blocks that were written to it",
            self.id,
            lost.len()
        );
        let keys: Vec<BlockKey> = lost.iter().map(|lost| lost.key).collect();
        self.remove_damaged(&keys);
    }

    fn sync(&self) -> SyncReport {
        let synced = self.store.sync();
        let mut lost = self.store.take_lost();
        lost.extend(synced.lost);
        self.drop_lost(&lost);
        SyncReport {
            lost: lost.len(),
            failure: synced.failure,
        }
    }
}

impl DiskTier {
    /// Opens the folder of `settings`, or creates it.
    ///
    /// # Errors
    /// The name is no valid tier name; the folder is in use, belongs to another identity or layout,
    /// is on a file system that is not local, or cannot be read or written; the capacity has no
    /// room for two blocks.
    pub fn open(settings: &DiskSettings, context: &TierContext) -> Result<DiskTier, TierError> {
        let medium = Arc::new(FolderMedium::new(&settings.folder));
        DiskTier::open_on(medium, settings, context)
    }

    /// As [`DiskTier::open`], on `medium` instead of the folder of the settings.
    ///
    /// # Errors
    /// As for [`DiskTier::open`].
    pub fn open_on(
        medium: Arc<dyn Medium>,
        settings: &DiskSettings,
        context: &TierContext,
    ) -> Result<DiskTier, TierError> {
        let id = match &settings.name {
            None => TierId::DISK,
            Some(name) => TierId::new(TierKind::Disk, name)?,
        };
        let kept = SlotStoreSettings::new(settings.capacity_bytes);
        let (store, recovered) = SlotStore::create_or_open_on(medium, &kept, &context.identity)?;
        if recovered.dropped.total() > 0 {
            log::warn!(
                "slots left out when the {id} tier was opened: {:?}",
                recovered.dropped
            );
        }
        let pool = PoolSettings::new().blocks(store.slots() as usize);
        let policy = |blocks| PolicySettings::from(settings.policy).build(blocks);
        let sink = EventSink {
            log: Arc::clone(&context.events),
            tier: id,
            group: GROUP,
        };
        let pool = BlockPool::with_events(pool, policy, sink)?;
        let restored = recovered.entries.iter().map(|entry| StoredEntry {
            block: BlockId(entry.slot),
            key: entry.key,
            parent: entry.parent,
            tenant: TenantId(entry.tenant),
        });
        let superfluous = pool.restore(restored, Tick(0))?.superfluous;
        let disk = Arc::new(DiskTierShared {
            id,
            tenants: SlotTenants((0..store.slots()).map(|_| AtomicU32::new(0)).collect()),
            pool,
            store,
            damaged: AtomicU64::new(0),
            rate: TierRate::default(),
            clock: Arc::clone(&context.clock),
            writing: Mutex::new(()),
        });
        for entry in &recovered.entries {
            disk.describe(BlockId(entry.slot), entry.tenant);
        }
        if !superfluous.is_empty() {
            disk.erase(&superfluous);
        }
        let few = usize::from(context.threads > 0);
        // Twice the parts of loads in flight, so that each part can have two reads at a time.
        let readers = context.threads.saturating_mul(2).min(READERS_MAX);
        Ok(DiskTier {
            disk,
            readers: DiskThreads::new("kvtile-read", readers)?,
            writer: DiskThreads::new("kvtile-write", few)?,
            syncer: DiskThreads::new("kvtile-sync", few)?,
        })
    }

    /// Counters of its pool, and the pool's current fill.
    #[must_use]
    pub fn pool_stats(&self) -> PoolStats {
        self.disk.pool.stats()
    }

    /// Counters of its folder, and the folder's current fill.
    #[must_use]
    pub fn store_stats(&self) -> SlotStoreStats {
        self.disk.store.stats()
    }

    /// The recent read rate in bytes per second; `None` before the first read.
    #[must_use]
    pub fn bytes_per_second(&self) -> Option<f64> {
        self.disk.rate.bytes_per_second()
    }

    fn hold_of(&self, blocks: PinnedBlocks) -> Option<Box<dyn TierHold>> {
        if blocks.is_empty() {
            return None;
        }
        let tenants = self.disk.tenants.clone();
        Some(Box::new(DiskHold { tenants, blocks }))
    }
}

/// The most reader threads.
pub(super) const READERS_MAX: usize = 16;

/// The only group of a disk tier.
pub(super) const GROUP: GroupId = GroupId(0);

impl Tier for DiskTier {
    fn id(&self) -> TierId {
        self.disk.id
    }

    fn abilities(&self) -> TierAbilities {
        TierAbilities {
            is_bounded: true,
            is_durable: true,
            is_shared: false,
            verifies: true,
            reads_pieces: true,
            answers: AnswerTime::AtOnce,
        }
    }

    fn find(
        &self,
        group: GroupId,
        keys: &[BlockKey],
        claim: &PinClaim,
    ) -> Option<Box<dyn TierHold>> {
        (group == GROUP).then_some(())?;
        self.hold_of(self.disk.pool.match_prefix(keys, claim))
    }

    fn hold(&self, group: GroupId, keys: &[BlockKey]) -> Option<Box<dyn TierHold>> {
        (group == GROUP).then_some(())?;
        self.hold_of(self.disk.pin(keys))
    }

    fn has(&self, group: GroupId, key: &BlockKey) -> bool {
        group == GROUP && self.disk.pool.has(key)
    }

    fn read(&self, blocks: Vec<BlockRead>) -> Completion<ReadReport> {
        read::start(&self.disk, &self.readers, blocks)
    }

    fn write(&self, blocks: Vec<BlockWrite>) -> Completion<WriteReport> {
        write::start(&self.disk, &self.writer, blocks)
    }

    fn forget(&self, group: GroupId, keys: &[BlockKey]) -> usize {
        if group != GROUP {
            return 0;
        }
        let pinned = self.disk.pool.pin(keys, &PinClaim::default()).blocks;
        let slots = pinned.ids().to_vec();
        let removed = self.disk.pool.remove(keys).blocks;
        self.disk.erase(&slots);
        drop(pinned);
        removed
    }

    fn evict(&self, blocks: usize, now: Tick) -> usize {
        let leaving = self.disk.pool.evict(blocks, now);
        self.disk.erase(leaving.ids());
        leaving.len()
    }

    fn clear(&self, now: Tick) -> usize {
        self.evict(usize::MAX, now)
    }

    fn sync(&self) -> Completion<SyncReport> {
        let completer = Completer::new(0, 0);
        let completion = completer.completion();
        let end = EndOfSync(completer);
        let disk = Arc::clone(&self.disk);
        self.syncer.run(move || {
            let report = disk.sync();
            end.0.finish(report);
        });
        completion
    }

    fn durable(&self, group: GroupId, keys: &[BlockKey]) -> Vec<bool> {
        if group != GROUP {
            return vec![false; keys.len()];
        }
        let claim = PinClaim::default();
        let pinned = self.disk.pool.pin(keys, &claim);
        let slots = pinned.blocks.ids().iter().map(|slot| slot.0);
        let blocks: Vec<(u32, BlockKey)> = slots.zip(pinned.blocks.keys()).collect();
        let mut durable = vec![false; keys.len()];
        // If the files cannot be examined, none is durable; the preceding sync has reported why.
        let known = self.disk.store.are_durable(&blocks).unwrap_or_default();
        for (at, known) in pinned.positions.iter().zip(known) {
            if let Some(one) = durable.get_mut(*at) {
                *one = known;
            }
        }
        durable
    }

    fn stats(&self) -> TierStats {
        // Loaded first: a block damaged after this line counts in the next call.
        let damaged = self.disk.damaged.load(Ordering::Relaxed);
        TierStats::of_pool(self.disk.pool.stats(), damaged)
    }

    fn estimate(&self, blocks: usize) -> Option<Duration> {
        let rate = self.disk.rate.bytes_per_second()?;
        let bytes = blocks as f64 * self.disk.store.block_bytes() as f64;
        Duration::try_from_secs_f64(bytes / rate).ok()
    }

    fn list(&self, blocks: &mut Vec<Stored>) {
        self.disk.pool.list_stored(blocks);
    }

    fn overdue(&self, now: Tick) -> Vec<PinReport> {
        self.disk.pool.overdue(now)
    }

    fn maintain(&self) {
        self.disk.pool.maintain();
    }

    fn check_integrity(&self) {
        let disk = &self.disk;
        disk.pool.check_integrity();
        disk.store.check_integrity();
        for entry in disk.pool.snapshot() {
            let (slot, key) = (entry.block, entry.key);
            assert_eq!(disk.store.key(slot.0), Some(key), "slot {}", slot.0);
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Completes a sync when it is dropped. An earlier completion takes precedence.
struct EndOfSync(Completer<SyncReport>);

impl Drop for EndOfSync {
    fn drop(&mut self) {
        self.0.finish(SyncReport {
            lost: 0,
            failure: Some(given_up("a sync of the disk tier")),
        });
    }
}

/// The error of a job without an outcome: it panicked, or it had not begun when the tier was
/// closed.
pub(super) fn given_up(what: &'static str) -> TierError {
    match std::thread::panicking() {
        true => TierError::Request(RequestError::Panicked { what }),
        false => TierError::Request(RequestError::Closed),
    }
}
