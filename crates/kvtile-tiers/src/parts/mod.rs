//! A tier over the folders of other ranks: it assembles blocks from the parts that they wrote.
//!
//! ```text
//! cache/layers-0-32.heads-0-4   DiskFollower ─► staging ─┐ copy plan
//! cache/layers-0-32.heads-4-8   DiskFollower ─► staging ─┴──────────► host block (heads 2..6)
//!
//! index: key ─► which parts have it ─► do they cover the own layers and heads?
//! ```
//!
//! A model's folder has a folder for each part: a rectangle of layers and heads that one rank
//! writes ([`PartFolderName`]). The folder itself is the part of a rank that has the whole model. Keys do
//! not depend on the part. The tier follows all parts but the own one, and has a block if the parts
//! that have it cover the own rectangle. So any number of ranks reads what any other number wrote.
//!
//! The tier writes no blocks. It evicts those of parts that no rank writes any more (`old`). A [`DiskTier`](crate::disk::DiskTier) for the own part is another tier of
//! the same cache. Each part of a block is verified with the checksums of its own record before any
//! byte of it is copied; if one part fails, the block is a miss. The tier does not know engines.

mod cover;
mod index;
mod old;
mod part;
mod read;
mod refresh;
mod slice;
mod staging;

use std::{
    any::Any,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use kvtile_blocks::{
    BlockKey, Tick,
    events::{EventKind, EventSubscriber, StoredBlock, TierId, TierKind},
    pool::PinClaim,
};
use kvtile_layout::{Shape, Shard, StridedLayout, Word};
use kvtile_transfer::{TransferManager, completion::Completion};
use parking_lot::{Mutex, RwLock};

use self::{
    cover::PartRectangle,
    index::PartsIndex,
    part::{FollowedPart, PartChange},
    read::PartsCounters,
    refresh::PartsWatch,
};
pub use self::{read::PartsStats, refresh::PartStatus};
use crate::{
    disk::{DiskThreads, GROUP, READERS_MAX, RefreshPace, ask, refresh_if_old, start},
    error::{FolderError, SettingsError, TierError},
    opening::ALIGNMENT,
    rate::TierRate,
    tier::{
        AnswerTime, BlockRead, BlockWrite, GroupId, NotWritten, PromisedHold, ReadReport,
        SyncReport, Tier, TierAbilities, TierAnswer, TierContext, TierGroup, TierHold, TierStats,
        WriteReport,
    },
};

pub use crate::disk::PartFolderName;

/// The name of the tier in its cache.
const NAME: &str = "parts";

/// Which parts a [`PartsTier`] follows, and into which blocks it assembles them.
#[derive(Clone, Debug)]
pub struct PartsSettings {
    /// The folder of the model, which has the folders of the parts.
    pub folder: PathBuf,
    /// The shape of the cache's stored blocks. The tier leaves out the part that is its shard, which
    /// the cache writes itself.
    pub shape: Shape,
    /// The order of all stored blocks.
    pub word: Word,
    /// The age of the index at which a lookup starts a refresh.
    pub refresh_after: Duration,
    /// The limit of the own part and of the parts that no rank writes any more, as far as these have
    /// the own layers and heads. Blocks of such parts are evicted within about a second of a lookup;
    /// 0 never evicts any.
    pub capacity_bytes: u64,
}

impl PartsSettings {
    /// The folder that a cache with the part `own` writes: `folder` itself if the part is the whole
    /// model, and else the folder of the part in it.
    #[must_use]
    pub fn own_folder(folder: &std::path::Path, shard: &Shard) -> PathBuf {
        match is_whole(shard) {
            true => folder.to_owned(),
            false => folder.join(PartFolderName::of(shard).to_string()),
        }
    }

    /// Whether `folder` has folders of parts.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn has_parts(folder: &std::path::Path) -> Result<bool, TierError> {
        let names = refresh::folders(folder)?;
        Ok(names
            .iter()
            .any(|name| PartFolderName::parse(name).is_some()))
    }
}

/// Whether a shard is the whole model, and the first copy of it.
fn is_whole(shard: &Shard) -> bool {
    *shard == Shard::whole(shard.total_layers, shard.total_heads)
}

/// The blocks that the parts of other ranks cover, as a [`Tier`] that only reads.
///
/// - **Lookups** answer from an index and never wait for the disk. One that finds the index older
///   than [`PartsSettings::refresh_after`] starts a refresh, which also finds new parts.
/// - **Reads** verify every part of a block. A part that is absent, damaged or cannot be read makes
///   the block a miss, after one more try with other parts.
/// - **Folders of parts with another identity, page size or order** are refused:
///   [`parts`](PartsTier::parts) and the log state the first field that differs.
/// - **Planes of opaque bytes** have no heads, so parts with other heads are refused.
/// - **Planes without heads** are the same on all ranks: each part has all of them.
/// - **Writes** fail with [`FolderError::ReadsOnly`].
/// - **Old parts**, which no process has open for writing, become smaller as the own part grows
///   ([`PartsSettings::capacity_bytes`]).
///
/// A hold is only a promise, and the writers' policies do not learn of hits here.
#[derive(Debug)]
pub struct PartsTier {
    shared: Arc<PartsShared>,
    readers: DiskThreads,
    refresher: DiskThreads,
}

/// The state that the threads of the tier share.
struct PartsShared {
    id: TierId,
    settings: PartsSettings,
    group: TierGroup,
    /// The layout of one own block.
    layout: Arc<StridedLayout>,
    manager: Arc<TransferManager>,
    context: TierContext,
    rate: TierRate,
    counters: PartsCounters,
    /// Whether the tier was opened: changes since then have events.
    is_open: AtomicBool,
    state: RwLock<PartsState>,
    /// Held during a refresh.
    watch: Mutex<PartsWatch>,
    pace: RefreshPace,
}

impl std::fmt::Debug for PartsShared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PartsShared")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// The parts, and which blocks they cover.
struct PartsState {
    /// Parts are added and never removed; one whose folder disappears has no blocks.
    parts: Vec<Arc<FollowedPart>>,
    /// One for each part.
    subscribers: Vec<EventSubscriber>,
    index: PartsIndex,
}

impl PartsState {
    fn has_news(&self) -> bool {
        let mut each = self.parts.iter().zip(&self.subscribers);
        each.any(|(part, subscriber)| part.events.next_sequence() != subscriber.next_sequence())
    }

    /// Applies the changes of all parts. Returns the changes of the tier.
    fn absorb(&mut self) -> Vec<EventKind> {
        let mut changes = Vec::new();
        let each = self.parts.iter().zip(&mut self.subscribers);
        for (at, (part, subscriber)) in each.enumerate() {
            apply(&mut self.index, at, part.news(subscriber), &mut changes);
        }
        changes
    }

    /// Adds a part with its blocks. Returns the changes of the tier.
    fn add(&mut self, part: Arc<FollowedPart>) -> Vec<EventKind> {
        let mut changes = Vec::new();
        let (subscriber, all) = part.begin();
        self.index.add_part(part.rectangle);
        apply(&mut self.index, self.parts.len(), all, &mut changes);
        self.parts.push(part);
        self.subscribers.push(subscriber);
        changes
    }
}

fn apply(index: &mut PartsIndex, part: usize, news: Vec<PartChange>, changes: &mut Vec<EventKind>) {
    for change in news {
        match change {
            PartChange::Stored(key, facts) => changes.extend(index.stored(part, key, facts)),
            PartChange::Removed(key) => changes.extend(index.removed(part, &key)),
            PartChange::Cleared => changes.extend(index.cleared(part)),
        }
    }
}

impl PartsShared {
    /// Applies the changes of all parts to the index.
    fn absorb(&self) {
        if self.state.read().has_news() {
            self.change(PartsState::absorb);
        }
    }

    /// Changes the state, and appends the changes of the tier under the same lock. Returns how many.
    fn change(&self, change: impl FnOnce(&mut PartsState) -> Vec<EventKind>) -> usize {
        let mut state = self.state.write();
        let changes = change(&mut state);
        let count = changes.len();
        // Blocks that are there when the tier is opened have no events.
        if self.is_open.load(Ordering::Relaxed) {
            self.context.events.append(self.id, GROUP, changes);
        }
        count
    }

    fn hold(&self, keys: &[BlockKey]) -> Option<Box<dyn TierHold>> {
        let state = self.state.read();
        PromisedHold::of(keys.iter().map_while(|key| state.index.find(key)))
    }

    /// The error of a write.
    fn reads_only(&self) -> TierError {
        TierError::Folder(FolderError::ReadsOnly {
            folder: self.settings.folder.display().to_string(),
            holder: None,
        })
    }
}

impl PartsTier {
    /// Follows the parts in the folder of `settings`. The folder and the parts need not exist yet,
    /// and a part that cannot be used is left out.
    ///
    /// # Errors
    /// Several groups; a shape and an order that are not those of the group's blocks; threads that
    /// the system refuses.
    pub fn open(settings: PartsSettings, context: &TierContext) -> Result<PartsTier, TierError> {
        let [group] = context.groups.as_slice() else {
            return Err(TierError::Settings(SettingsError::PartsGroups {
                groups: context.groups.len(),
            }));
        };
        let shape = settings.shape.with_num_blocks(1)?;
        let layout = StridedLayout::resolve(&settings.word, &shape, ALIGNMENT)?;
        let shared = Arc::new(PartsShared {
            id: TierId::new(TierKind::Disk, NAME)?,
            group: group.clone(),
            layout: Arc::new(layout),
            manager: Arc::new(TransferManager::new()),
            context: context.clone(),
            rate: TierRate::default(),
            counters: PartsCounters::default(),
            is_open: AtomicBool::new(false),
            state: RwLock::new(PartsState {
                parts: Vec::new(),
                subscribers: Vec::new(),
                index: PartsIndex::new(PartRectangle::of(&shape.shard())),
            }),
            watch: Mutex::default(),
            pace: RefreshPace::default(),
            settings,
        });
        if let Err(error) = shared.refresh_parts() {
            log::warn!("the {} tier cannot follow all parts: {error}", shared.id);
        }
        shared.is_open.store(true, Ordering::Relaxed);
        shared.pace.opened(shared.context.clock.now());
        let readers = context.threads.saturating_mul(2).min(READERS_MAX);
        let refreshers = usize::from(context.threads > 0);
        Ok(PartsTier {
            shared,
            readers: DiskThreads::new("kvtile-parts", readers)?,
            refresher: DiskThreads::new("kvtile-follow", refreshers)?,
        })
    }

    /// The parts that the tier follows or has refused.
    #[must_use]
    pub fn parts(&self) -> Vec<PartStatus> {
        self.shared.status()
    }

    /// Counters since it was opened.
    #[must_use]
    pub fn parts_stats(&self) -> PartsStats {
        self.shared.counters.snapshot()
    }

    /// The recent read rate in bytes per second; `None` before the first read.
    #[must_use]
    pub fn bytes_per_second(&self) -> Option<f64> {
        self.shared.rate.bytes_per_second()
    }
}

impl Tier for PartsTier {
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
        (group == GROUP).then_some(())?;
        refresh_if_old(&self.shared, &self.refresher);
        self.shared.hold(keys)
    }

    fn hold(&self, group: GroupId, keys: &[BlockKey]) -> Option<Box<dyn TierHold>> {
        (group == GROUP).then_some(())?;
        self.shared.hold(keys)
    }

    fn has(&self, group: GroupId, key: &BlockKey) -> bool {
        group == GROUP && self.shared.state.read().index.find(key).is_some()
    }

    fn ask(&self, group: GroupId, keys: &[BlockKey]) -> Completion<TierAnswer> {
        if group != GROUP {
            return Completion::ended(0, TierAnswer::of(0));
        }
        ask(&self.shared, &self.refresher, (group, keys))
    }

    fn read(&self, blocks: Vec<BlockRead>) -> Completion<ReadReport> {
        start(&self.shared, &self.readers, blocks)
    }

    fn write(&self, blocks: Vec<BlockWrite>) -> Completion<WriteReport> {
        let refused = NotWritten::Failed(self.shared.reads_only());
        let outcomes = blocks.iter().map(|_| Err(refused.clone())).collect();
        drop(blocks);
        Completion::ended(
            0,
            WriteReport {
                blocks: outcomes,
                elapsed: Duration::ZERO,
            },
        )
    }

    /// Removes blocks for this cache: the parts keep them.
    fn forget(&self, group: GroupId, keys: &[BlockKey]) -> usize {
        if group != GROUP {
            return 0;
        }
        self.shared.change(|state| {
            let removed = keys.iter().filter_map(|key| state.index.forget(key));
            removed.collect()
        })
    }

    fn evict(&self, _blocks: usize, _now: Tick) -> usize {
        0
    }

    /// Removes all blocks for this cache: the parts keep them.
    fn clear(&self, _now: Tick) -> usize {
        self.shared.change(|state| state.index.forget_all())
    }

    fn sync(&self) -> Completion<SyncReport> {
        Completion::ended(0, SyncReport::default())
    }

    fn durable(&self, _group: GroupId, keys: &[BlockKey]) -> Vec<bool> {
        vec![false; keys.len()]
    }

    fn stats(&self) -> TierStats {
        TierStats {
            present: self.shared.state.read().index.len() as u64,
            damaged: self.shared.counters.snapshot().damaged,
            ..TierStats::default()
        }
    }

    fn estimate(&self, group: GroupId, blocks: usize) -> Option<Duration> {
        (group == GROUP).then_some(())?;
        let rate = self.shared.rate.bytes_per_second()?;
        let bytes = blocks as f64 * self.shared.group.identity.block_bytes() as f64;
        Duration::try_from_secs_f64(bytes / rate).ok()
    }

    fn list(&self, blocks: &mut Vec<StoredBlock>) {
        let state = self.shared.state.read();
        state.index.list((self.shared.id, GROUP), blocks);
    }

    fn maintain(&self) {
        refresh_if_old(&self.shared, &self.refresher);
    }

    fn check_integrity(&self) {
        self.shared.state.read().index.check_integrity();
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
