//! A tier over the parts that other ranks wrote: it assembles blocks from them.
//!
//! ```text
//! layers-0-32.heads-0-4   tier of the part ─► staging ─┐ copy plan
//! layers-0-32.heads-4-8   tier of the part ─► staging ─┴──────────► host block (heads 2..6)
//!
//! index: key ─► which parts have it ─► do they cover the own layers and heads?
//! ```
//!
//! A part is a rectangle of layers and heads that one rank writes ([`PartFolderName`]). Keys do not depend on the part. The
//! tier reads all parts but the own one, and has a block if the parts that have it cover the own rectangle. So any number of
//! ranks reads what any other number wrote. A [`PartSource`] names the parts and opens a tier for each: [`FolderParts`]
//! those of a model's folder, in which each part has a folder, and the folder itself is the part of a rank with the whole
//! model; `kvtile-shared` has those of a shared store.
//!
//! The tier writes no blocks; in a folder it evicts those of parts that no rank writes any more (`old`). A
//! [`DiskTier`](crate::disk::DiskTier) or a shared tier for the own part is another tier of the same cache. The tier of a
//! part verifies each block of it before any byte is copied; if one part fails, the block is a miss. The tier does not know
//! engines.

mod cover;
mod index;
mod old;
mod part;
mod read;
mod refresh;
mod slice;
mod source;
mod staging;

use std::{
    any::Any,
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use kvtile_blocks::{
    BlockKey, Tick,
    events::{EventKind, EventSubscriber, StoredBlock, TierId},
    pool::PinClaim,
};
use kvtile_layout::{Shape, StridedLayout, Word};
use kvtile_transfer::{TransferManager, completion::Completion};
use parking_lot::{Mutex, RwLock};

use self::{
    cover::PartRectangle,
    index::PartsIndex,
    part::{FollowedPart, PartChange},
    read::PartsCounters,
    refresh::PartsWatch,
};
pub use self::{
    read::PartsStats,
    refresh::PartStatus,
    source::{FolderParts, PartSource},
};
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

/// Which parts a [`PartsTier`] reads, and into which blocks it assembles them.
#[derive(Clone, Debug)]
pub struct PartsSettings {
    /// The place of the parts.
    pub source: Arc<dyn PartSource>,
    /// The shape of the cache's stored blocks. The tier leaves out the part that is its shard, which
    /// the cache writes itself.
    pub shape: Shape,
    /// The order of all stored blocks.
    pub word: Word,
    /// The most bytes of memory for the blocks of parts of one size, on their way into own blocks. There is room for at
    /// least one block, and for at most 64.
    pub staging_bytes: u64,
}

impl PartsSettings {
    /// Reads the parts of `source`, with 64 MiB of memory for parts of each size.
    #[must_use]
    pub fn new(source: Arc<dyn PartSource>, shape: Shape, word: Word) -> PartsSettings {
        PartsSettings {
            source,
            shape,
            word,
            staging_bytes: 64 << 20,
        }
    }

    /// Sets [`staging_bytes`](Self::staging_bytes).
    #[must_use]
    pub fn staging_bytes(mut self, bytes: u64) -> PartsSettings {
        self.staging_bytes = bytes;
        self
    }
}

/// The blocks that the parts of other ranks cover, as a [`Tier`] that only reads.
///
/// - **Lookups** answer from an index and never wait for a disk or a network. One that finds the index older
///   than [`PartSource::refresh_after`] starts a refresh, which also finds new parts.
/// - **Reads** verify every part of a block, and start all parts of a batch before they wait for the first one, as far as
///   there is memory for them. A part that is absent, damaged or cannot be read makes
///   the block a miss, after one more try with other parts.
/// - **Parts with another identity, page size or order** are refused:
///   [`parts`](PartsTier::parts) and the log state the first field that differs.
/// - **Planes of opaque bytes** have no heads, so parts with other heads are refused.
/// - **Planes without heads** are the same on all ranks: each part has all of them.
/// - **Writes** fail with [`FolderError::ReadsOnly`].
/// - **Old parts**, which no process has open for writing, become smaller as the own part grows
///   ([`FolderParts::limit`]).
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

    /// The leading blocks of `keys` that parts cover. A part whose store is left alone after failures ends them.
    fn hold(&self, keys: &[BlockKey]) -> Option<Box<dyn TierHold>> {
        let state = self.state.read();
        let mut readable: Vec<Option<bool>> = vec![None; state.parts.len()];
        PromisedHold::of(keys.iter().map_while(|key| {
            let found = state.index.find(key)?;
            let cover = state.index.cover_of(key)?;
            let mut is_readable = |part: &usize| {
                let (part, known) = (state.parts.get(*part)?, readable.get_mut(*part)?);
                Some(*known.get_or_insert_with(|| part.tier.has(GROUP, key)))
            };
            cover
                .iter()
                .all(|part| is_readable(part) == Some(true))
                .then_some(found)
        }))
    }

    /// The error of a write.
    fn reads_only(&self) -> TierError {
        TierError::Folder(FolderError::ReadsOnly {
            folder: self.settings.source.place(),
            holder: None,
        })
    }
}

impl PartsTier {
    /// Reads the parts of `settings`. None of them need exist yet, and a part that cannot be used is left out.
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
            id: settings.source.tier()?,
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
        if let Err(error) = shared.refresh_parts(&[]) {
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

    /// Blocks of parts that are in staging memory now; 0 while nothing is read.
    #[must_use]
    pub fn staged_blocks(&self) -> usize {
        let parts = self.shared.state.read().parts.clone();
        // Parts of one size have one memory.
        let memories: BTreeMap<_, _> = parts
            .iter()
            .map(|part| (Arc::as_ptr(&part.staging), &part.staging))
            .collect();
        memories.values().map(|staging| staging.in_use()).sum()
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
