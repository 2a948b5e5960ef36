//! The disk as a tier: for each group a slot store, and a block pool that maps keys to its slots.

mod evict;
mod group;
mod lend;
mod read;
mod threads;
mod write;

use std::{any::Any, sync::Arc, time::Duration};

use kvtile_blocks::{
    BlockKey, Tick,
    events::{StoredBlock as Stored, TierId, TierKind},
    pool::{PinClaim, PinReport, PoolStats},
};
use kvtile_transfer::completion::{Completer, Completion};

pub(super) use self::read::set;
use self::{
    group::DiskGroup,
    lend::{DiskLending, FolderTurns},
};
pub(crate) use self::{
    read::{BatchReader, start},
    threads::DiskThreads,
};
use super::{
    DiskSettings, SlotFolder, SlotStoreSettings, SlotStoreStats,
    medium::{FolderMedium, Medium},
};
use crate::{
    clock::Clock,
    error::{RequestError, TierError},
    rate::TierRate,
    tier::{
        AnswerTime, BlockName, BlockRead, BlockWrite, GroupId, ReadReport, Removals, SyncReport,
        Tier, TierAbilities, TierContext, TierHold, TierStats, WriteReport,
    },
};

/// Blocks in a folder, as a [`Tier`]. It has the groups of its context, each with a pool of its own.
///
/// The groups share the capacity. A full group takes room that other groups do not use, and gets its
/// share back from groups that have more than theirs; else it evicts blocks of its own.
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
    folder: SlotFolder,
    /// In the order of the groups.
    groups: Vec<DiskGroup>,
    /// `None` if each group has its share alone.
    lending: Option<DiskLending>,
    removals: Arc<Removals>,
    rate: TierRate,
    clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for DiskTierShared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DiskTierShared")
            .field("id", &self.id)
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

impl DiskTierShared {
    /// A group; `None` if the tier does not have it.
    fn group(&self, group: GroupId) -> Option<&DiskGroup> {
        self.groups.get(usize::try_from(group.0).ok()?)
    }

    fn sync(&self) -> SyncReport {
        let mut report = SyncReport::default();
        for (group, synced) in self.groups.iter().zip(self.folder.sync()) {
            let mut lost = group.store.take_lost();
            lost.extend(synced.lost);
            group.drop_lost(&lost);
            report.lost += lost.len();
            report.failure = report.failure.or(synced.failure);
        }
        report
    }
}

impl DiskTier {
    /// Opens the folder of `settings`, or creates it.
    ///
    /// # Errors
    /// The name is no valid tier name; the folder is in use, has other groups, belongs to another
    /// identity or layout, is on a file system that is not local, or cannot be read or written; the
    /// capacity has no room for two slots of each group; the groups cannot be those of one folder.
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
        let kept = SlotStoreSettings::new(settings.capacity_bytes).lends(true);
        let (folder, recovered) = SlotFolder::create_or_open_on(medium, &kept, &context.groups)?;
        let lends = folder.stores().iter().find(|store| store.lends());
        let turns = lends.map(|store| Arc::new(FolderTurns::new(store.data_bytes())));
        let mut groups = Vec::new();
        for ((store, recovered), number) in folder.stores().iter().zip(&recovered).zip(0..) {
            if recovered.dropped.total() > 0 {
                log::warn!(
                    "slots left out when group {number} of the {id} tier was opened: {:?}",
                    recovered.dropped
                );
            }
            let opened = (id, GroupId(number), settings.policy);
            let group = DiskGroup::open(opened, (store, recovered), (context, turns.clone()))?;
            groups.push(group);
        }
        let disk = Arc::new(DiskTierShared {
            id,
            folder,
            groups,
            lending: turns.map(DiskLending::new),
            removals: Arc::default(),
            rate: TierRate::default(),
            clock: Arc::clone(&context.clock),
        });
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

    /// Counters of the pools of all groups together, and their current fill.
    #[must_use]
    pub fn pool_stats(&self) -> PoolStats {
        self.stats().pool.unwrap_or_default()
    }

    /// Counters of the stores of all groups together, and their current fill.
    #[must_use]
    pub fn store_stats(&self) -> SlotStoreStats {
        let mut sum = SlotStoreStats::default();
        for group in &self.disk.groups {
            sum.add(&group.store.stats());
        }
        sum
    }

    /// The counters and contents of one group; `None` if the tier does not have it.
    #[must_use]
    pub fn group_stats(&self, group: GroupId) -> Option<TierStats> {
        Some(self.disk.group(group)?.stats())
    }

    /// Returns the disk space of erased places.
    ///
    /// # Errors
    /// The file system has no such operation, or fails.
    pub(crate) fn release(&self) -> Result<(), TierError> {
        let mut stores = self.disk.folder.stores().iter();
        stores.try_for_each(|store| store.release())
    }

    /// The recent read rate in bytes per second; `None` before the first read.
    #[must_use]
    pub fn bytes_per_second(&self) -> Option<f64> {
        self.disk.rate.bytes_per_second()
    }
}

/// The most reader threads.
pub(crate) const READERS_MAX: usize = 16;

/// The only group of a disk tier.
pub(crate) const GROUP: GroupId = GroupId(0);

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
        let group = self.disk.group(group)?;
        group.hold_of(group.pool.match_prefix(keys, claim))
    }

    fn hold(&self, group: GroupId, keys: &[BlockKey]) -> Option<Box<dyn TierHold>> {
        let group = self.disk.group(group)?;
        group.hold_of(group.pin(keys))
    }

    fn has(&self, group: GroupId, key: &BlockKey) -> bool {
        let group = self.disk.group(group);
        group.is_some_and(|group| group.pool.has(key))
    }

    fn read(&self, blocks: Vec<BlockRead>) -> Completion<ReadReport> {
        read::start(&self.disk, &self.readers, blocks)
    }

    fn write(&self, blocks: Vec<BlockWrite>) -> Completion<WriteReport> {
        write::start(&self.disk, &self.writer, blocks)
    }

    fn forget(&self, group: GroupId, keys: &[BlockKey]) -> usize {
        self.disk
            .removals
            .remove(keys.iter().map(|&key| BlockName { group, key }));
        let group = self.disk.group(group);
        group.map_or(0, |group| group.forget(keys))
    }

    /// Each group loses a part of `blocks` in proportion to the blocks that it has.
    fn evict(&self, blocks: usize, now: Tick) -> usize {
        evict::evict(&self.disk.groups, blocks, now)
    }

    fn clear(&self, now: Tick) -> usize {
        self.disk.removals.remove_all();
        let groups = self.disk.groups.iter();
        groups.map(|group| group.evict(usize::MAX, now)).sum()
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
        match self.disk.group(group) {
            Some(group) => group.durable(keys),
            None => vec![false; keys.len()],
        }
    }

    fn stats(&self) -> TierStats {
        TierStats::sum(self.disk.groups.iter().map(DiskGroup::stats))
    }

    fn stats_of(&self, group: GroupId) -> TierStats {
        self.group_stats(group).unwrap_or_default()
    }

    fn evict_of(&self, group: GroupId, blocks: usize, now: Tick) -> usize {
        let group = self.disk.group(group);
        group.map_or(0, |group| group.evict(blocks, now))
    }

    fn estimate(&self, group: GroupId, blocks: usize) -> Option<Duration> {
        let rate = self.disk.rate.bytes_per_second()?;
        let block_bytes = self.disk.group(group)?.store.block_bytes();
        let bytes = blocks as f64 * block_bytes as f64;
        Duration::try_from_secs_f64(bytes / rate).ok()
    }

    fn list(&self, blocks: &mut Vec<Stored>) {
        for group in &self.disk.groups {
            group.pool.list_stored(blocks);
        }
    }

    fn overdue(&self, now: Tick) -> Vec<PinReport> {
        let groups = self.disk.groups.iter();
        groups.flat_map(|group| group.pool.overdue(now)).collect()
    }

    fn maintain(&self) {
        for group in &self.disk.groups {
            group.pool.maintain();
        }
    }

    fn check_integrity(&self) {
        self.disk.folder.check_integrity();
        for group in &self.disk.groups {
            group.check_integrity();
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
pub(crate) fn given_up(what: &'static str) -> TierError {
    match std::thread::panicking() {
        true => TierError::Request(RequestError::Panicked { what }),
        false => TierError::Request(RequestError::Closed),
    }
}
