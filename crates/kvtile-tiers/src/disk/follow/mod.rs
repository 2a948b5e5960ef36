//! A tier over a folder that another process writes: it only reads, and follows the writer.
//!
//! ```text
//! process A  DiskTier ──────► records, slots
//!                                │      │
//! process B  DiskFollower ◄──────┴──────┘   no lock, no write
//!               index: which block is where, compared with `records` from time to time
//!               read:  record ─► bytes ─► checksums of that record ─► hit
//! ```
//!
//! The follower trusts neither its index nor the writer. Each read fetches the record of its place
//! again and verifies the bytes with the checksums in it, so an index that is behind costs misses
//! and nothing else. The writer may erase, reuse, resize, clear or recreate the folder at any
//! moment, or be killed.
//!
//! The index does not hold checksums: a block can have 121 of them, and the record that a read
//! fetches has them anyway.

mod folder;
mod index;
mod read;
mod refresh;
mod stats;

use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use kvtile_blocks::{
    BlockKey, Tick,
    events::{EventLog, StoredBlock, TierId, TierKind},
    pool::PinClaim,
};
use kvtile_transfer::completion::Completion;
use parking_lot::Mutex;

pub use self::{folder::FollowCondition, stats::FollowerStats};
use self::{
    folder::{FolderWatch, FollowedGroup},
    stats::FollowerCounters,
};
use super::{
    DiskSettings,
    folder::LOCK_FILE,
    medium::{FolderMedium, Medium},
    pace::{RefreshPace, ask, refresh_if_old},
    tier::{DiskThreads, READERS_MAX, given_up, start},
};
use crate::{
    clock::Clock,
    error::{FolderError, TierError},
    rate::TierRate,
    tier::{
        AnswerTime, BlockRead, BlockWrite, GroupId, NotWritten, OutcomeGather, PromisedHold,
        ReadReport, SyncReport, Tier, TierAbilities, TierAnswer, TierContext, TierHold, TierStats,
        WriteReport, WriteSuccess,
    },
};

/// How often opening tries to read a folder that changes at that moment.
const TRIES: usize = 4;

/// The blocks of a folder that another process writes, as a [`Tier`] that only reads.
///
/// - **Lookups** answer from the index and never wait for the disk. A lookup that finds the index
///   older than [`DiskSettings::refresh_after`] starts a refresh on a thread of the follower; later
///   lookups see its result. Without threads the lookup refreshes itself.
/// - **[`Tier::ask`]** answers after a refresh that began after the call, so it knows all blocks
///   that were synced before. The writer's cache syncs within 64 blocks or 250 ms.
/// - **Reads** verify each block with the record that the folder has at that moment. A block that
///   the writer erased or replaced is [`Absent`](crate::tier::TierMiss::Absent). A block whose
///   bytes do not match its unchanged record is [`Damaged`](crate::tier::TierMiss::Damaged); the
///   follower does not find it again until its record changes, and removes nothing.
/// - **Folders of several groups** are followed whole: the groups of the context must be those of the
///   folder, in the same order.
/// - **Writes** fail with [`FolderError::ReadsOnly`]. Give the cache
///   [`DiskSettings::follower`], so that it does not try.
/// - **A folder that does not exist yet** has no blocks. The follower picks it up when the writer
///   has created it, if its identity fits; [`condition`](DiskFollower::condition) reports that.
///
/// The writer's eviction policy does not learn of hits here. A hold is only a promise. The index
/// takes about 100 bytes a block.
#[derive(Debug)]
pub struct DiskFollower {
    shared: Arc<FollowerShared>,
    readers: DiskThreads,
    refresher: DiskThreads,
}

/// The state that the threads of a follower share.
struct FollowerShared {
    id: TierId,
    medium: Arc<dyn Medium>,
    /// In the order of their numbers.
    groups: Vec<FollowedGroup>,
    events: Arc<EventLog>,
    clock: Arc<dyn Clock>,
    rate: TierRate,
    refresh_after: Duration,
    counters: FollowerCounters,
    /// Whether the follower was opened: changes since then have events.
    is_open: AtomicBool,
    /// Held during a refresh.
    watch: Mutex<FolderWatch>,
    pace: RefreshPace,
}

impl std::fmt::Debug for FollowerShared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FollowerShared")
            .field("id", &self.id)
            .field("medium", &self.medium)
            .finish_non_exhaustive()
    }
}

impl FollowerShared {
    /// A group; `None` if the tier does not have it.
    fn group(&self, group: GroupId) -> Option<&FollowedGroup> {
        self.groups.get(usize::try_from(group.0).ok()?)
    }

    fn hold(&self, group: GroupId, keys: &[BlockKey]) -> Option<Box<dyn TierHold>> {
        let view = self.group(group)?.view.read();
        let found = keys.iter().map_while(|key| view.index.find(key));
        PromisedHold::of(found.map(|block| (block.parent, block.tenant)))
    }

    /// The error of a write.
    fn reads_only(&self) -> TierError {
        TierError::Folder(FolderError::ReadsOnly {
            folder: self.medium.name(),
            // A lock that cannot be examined names no writer.
            holder: self.medium.holder(LOCK_FILE).ok().flatten(),
        })
    }
}

impl DiskFollower {
    /// Follows the folder of `settings`, which need not exist yet. Only the folder, the name and
    /// [`refresh_after`](DiskSettings::refresh_after) of the settings matter.
    ///
    /// # Errors
    /// The name is no valid tier name; the folder exists and has other groups, belongs to another identity, layout or
    /// block size (the error names the first field that differs), is of another version, or cannot
    /// be read.
    pub fn open(settings: &DiskSettings, context: &TierContext) -> Result<DiskFollower, TierError> {
        let medium = Arc::new(FolderMedium::new(&settings.folder));
        DiskFollower::open_on(medium, settings, context)
    }

    /// As [`DiskFollower::open`], on `medium` instead of the folder of the settings. If the medium
    /// is a [`FolderMedium`], no other part of the process may use it.
    ///
    /// # Errors
    /// As for [`DiskFollower::open`].
    pub fn open_on(
        medium: Arc<dyn Medium>,
        settings: &DiskSettings,
        context: &TierContext,
    ) -> Result<DiskFollower, TierError> {
        let id = match &settings.name {
            None => TierId::DISK,
            Some(name) => TierId::new(TierKind::Disk, name)?,
        };
        let shared = Arc::new(FollowerShared {
            id,
            medium,
            groups: FollowedGroup::all(&context.groups),
            events: Arc::clone(&context.events),
            clock: Arc::clone(&context.clock),
            rate: TierRate::default(),
            refresh_after: settings.refresh_after,
            counters: FollowerCounters::default(),
            is_open: AtomicBool::new(false),
            watch: Mutex::new(FolderWatch::new(context.groups.len())),
            pace: RefreshPace::default(),
        });
        let mut tried = shared.refresh_folder();
        for _ in 1..TRIES {
            if tried.is_ok() {
                break;
            }
            tried = shared.refresh_folder();
        }
        tried?;
        let refusal = shared.watch.lock().refusal(&*shared.medium);
        refusal.map_or(Ok(()), Err)?;
        shared.is_open.store(true, Ordering::Relaxed);
        shared.pace.opened(shared.clock.now());
        let readers = context.threads.saturating_mul(2).min(READERS_MAX);
        let refreshers = usize::from(context.threads > 0);
        Ok(DiskFollower {
            shared,
            readers: DiskThreads::new("kvtile-read", readers)?,
            refresher: DiskThreads::new("kvtile-follow", refreshers)?,
        })
    }

    /// The state of the folder at the last refresh.
    #[must_use]
    pub fn condition(&self) -> FollowCondition {
        self.shared.watch.lock().condition.clone()
    }

    /// Counters since it was opened.
    #[must_use]
    pub fn follower_stats(&self) -> FollowerStats {
        self.shared.counters.snapshot()
    }
}

impl Tier for DiskFollower {
    fn id(&self) -> TierId {
        self.shared.id
    }

    fn abilities(&self) -> TierAbilities {
        TierAbilities {
            is_bounded: false,
            is_durable: false,
            is_shared: true,
            verifies: true,
            reads_pieces: true,
            answers: AnswerTime::Later,
        }
    }

    fn find(
        &self,
        group: GroupId,
        keys: &[BlockKey],
        _claim: &PinClaim,
    ) -> Option<Box<dyn TierHold>> {
        self.shared.group(group)?;
        refresh_if_old(&self.shared, &self.refresher);
        self.shared.hold(group, keys)
    }

    fn hold(&self, group: GroupId, keys: &[BlockKey]) -> Option<Box<dyn TierHold>> {
        self.shared.hold(group, keys)
    }

    fn has(&self, group: GroupId, key: &BlockKey) -> bool {
        let group = self.shared.group(group);
        group.is_some_and(|group| group.view.read().index.has(key))
    }

    fn ask(&self, group: GroupId, keys: &[BlockKey]) -> Completion<TierAnswer> {
        if self.shared.group(group).is_none() {
            return Completion::ended(0, TierAnswer::of(0));
        }
        ask(&self.shared, &self.refresher, (group, keys))
    }

    fn read(&self, blocks: Vec<BlockRead>) -> Completion<ReadReport> {
        start(&self.shared, &self.readers, blocks)
    }

    fn write(&self, blocks: Vec<BlockWrite>) -> Completion<WriteReport> {
        let lost = || Err(NotWritten::Failed(given_up("a write to a followed folder")));
        let report = |blocks: Vec<Result<WriteSuccess, NotWritten>>, elapsed| WriteReport {
            blocks: blocks.into(),
            elapsed,
        };
        let count = blocks.len();
        let (completion, part) = OutcomeGather::begin(count, lost, report);
        drop(blocks);
        if count > 0 {
            let shared = Arc::clone(&self.shared);
            // The look for the writer reads files.
            self.refresher.run(move || {
                let refused = NotWritten::Failed(shared.reads_only());
                part.end(vec![Err(refused); count], Duration::ZERO);
            });
        }
        completion
    }

    fn forget(&self, _group: GroupId, _keys: &[BlockKey]) -> usize {
        0
    }

    fn evict(&self, _blocks: usize, _now: Tick) -> usize {
        0
    }

    fn clear(&self, _now: Tick) -> usize {
        0
    }

    fn sync(&self) -> Completion<SyncReport> {
        Completion::ended(0, SyncReport::default())
    }

    fn durable(&self, _group: GroupId, keys: &[BlockKey]) -> Vec<bool> {
        vec![false; keys.len()]
    }

    fn stats(&self) -> TierStats {
        TierStats::sum(self.shared.groups.iter().map(FollowedGroup::stats))
    }

    fn stats_of(&self, group: GroupId) -> TierStats {
        let group = self.shared.group(group);
        group.map(FollowedGroup::stats).unwrap_or_default()
    }

    fn estimate(&self, group: GroupId, blocks: usize) -> Option<Duration> {
        let group = self.shared.group(group)?;
        let rate = self.shared.rate.bytes_per_second()?;
        let bytes = blocks as f64 * group.of.identity.block_bytes() as f64;
        Duration::try_from_secs_f64(bytes / rate).ok()
    }

    fn list(&self, blocks: &mut Vec<StoredBlock>) {
        for group in &self.shared.groups {
            let view = group.view.read();
            view.index.list((self.shared.id, group.id), blocks);
        }
    }

    fn maintain(&self) {
        refresh_if_old(&self.shared, &self.refresher);
    }

    fn check_integrity(&self) {
        for group in &self.shared.groups {
            group.view.read().index.check_integrity();
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
