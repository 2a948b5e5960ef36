//! The tier over a shared store: everything that stores need, once for all of them.
//!
//! | module | contents |
//! | --- | --- |
//! | `settings`, `error`, `counts` | settings, errors, counters |
//! | `parts` | the state that calls and threads share |
//! | `known` | the blocks that lookups find |
//! | `ask` | queries: which bundles the store has |
//! | `fetch` | reads of bundles, verified, in a single flight, within a time limit |
//! | `staged`, `assembly`, `upload` | blocks that wait for their bundle, and writes of whole ones |
//! | `threads`, `alarm` | threads for blocking calls, and deadlines |
//! | `beside` | manifests and announcements of parts |
//! | `reader` | a tier over other bundles of the store, with the same threads |
//!
//! **What is durable when.** A write ends when the tier has a copy of the block in its staging
//! memory, where reads find it. The tier writes a bundle to the store when its last block came, and
//! [`sync`](Tier::sync) waits for the bundles that are whole. The blocks of a bundle that is not
//! whole, the tail of a chain, are never durable: the tier drops them after a time, or for other
//! blocks, and they are computed again.

mod alarm;
mod ask;
mod assembly;
mod beside;
mod counts;
mod error;
mod fetch;
mod known;
mod parts;
mod reader;
mod settings;
mod staged;
mod threads;
mod upload;

use std::{
    any::Any,
    fmt,
    sync::{Arc, atomic::AtomicBool, atomic::Ordering, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use kvtile_blocks::{
    BlockKey, Tick,
    events::{StoredBlock, TierId},
    pool::PinClaim,
};
use kvtile_tiers::{
    RequestError, TierError,
    parts::PartFolderName,
    tier::{
        AnswerTime, BatchPart, BlockName, BlockRead, BlockWrite, GroupId, NotWritten,
        OutcomeGather, PromisedHold, ReadReport, RefusedBlocks, RemovalTicket, SyncReport, Tier,
        TierAbilities, TierAnswer, TierContext, TierGroup, TierHold, TierStats, WriteReport,
        WriteSuccess,
    },
};
use kvtile_transfer::completion::{Completer, Completion};
use parking_lot::Mutex;

pub use crate::guard::StoreBreakerState;
pub use counts::SharedTierCounters;
pub use error::SharedTierError;
pub use settings::SharedTierSettings;

use crate::{
    bundle::{
        BUNDLE_BLOCKS_MAX, BundleForm, BundleName, BundlePacking, PartName, announcement_name,
        manifest_name,
    },
    guard::{StoreBreaker, StorePace},
    manifest::StoreManifest,
    store::SharedStore,
};
use alarm::DeadlineAlarm;
use beside::ValueBeside;
use counts::count;
use known::{BlockPlace, KnownBlocks};
use parts::{GroupBundles, SharedTierParts};
use staged::StagingRoom;
use threads::StoreThreads;

type WritePart = BatchPart<Result<WriteSuccess, NotWritten>, WriteReport>;

/// How often closing looks whether the blocks of the last batches are staged.
const CLOSE_STEP: Duration = Duration::from_micros(200);

/// The part of the identity in the names of bundles that is the name of a group.
const GROUP_NAME: &str = "kvtile.cache-group";

/// Work of the thread that stages blocks, in the order of the calls.
enum StageWork {
    Write(StagedBatch),
    Sync(Completer<SyncReport>),
}

/// A batch of writes to stage.
struct StagedBatch {
    blocks: Vec<BlockWrite>,
    part: WritePart,
    ticket: RemovalTicket,
    /// Until when its blocks wait for room.
    until: Instant,
}

/// The current state of a shared tier, beside its [counters](SharedTierCounters).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SharedTierStatus {
    /// The name of the store, without secrets.
    pub store: String,
    /// The breaker of reads and queries.
    pub reads: StoreBreakerState,
    /// The breaker of writes.
    pub writes: StoreBreakerState,
    /// The most calls of the store at a time; it follows the latency.
    pub calls_max: usize,
}

/// A tier over a store that other caches use too. The [module](self) describes what is durable when.
pub struct SharedTier {
    parts: Arc<SharedTierParts>,
    /// `None` in a tier without threads.
    stager: Option<(mpsc::Sender<StageWork>, JoinHandle<()>)>,
    /// The tier whose threads a [reader](SharedTier::reader) uses.
    hub: Option<Arc<SharedTier>>,
}

impl fmt::Debug for SharedTier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SharedTier").field(&self.parts).finish()
    }
}

impl SharedTier {
    /// Opens a tier named `id` over a store, for a cache or a block store.
    ///
    /// # Errors
    /// Settings that do not fit the blocks; a thread that cannot be started.
    pub fn open(
        id: TierId,
        store: Arc<dyn SharedStore>,
        settings: SharedTierSettings,
        context: &TierContext,
    ) -> Result<Arc<SharedTier>, TierError> {
        let abilities = store.abilities();
        let groups = groups(&settings, *abilities.best_bytes.end(), context)?;
        let pace = StorePace::new(
            abilities.latency,
            abilities.bytes_per_second,
            abilities.in_flight_max,
        );
        let pace = Arc::new(pace);
        let name = format!("kvtile-{}", id.name());
        let threads_max = match context.threads {
            0 => 0,
            _ => abilities.in_flight_max.max(1),
        };
        let alarm = match context.threads {
            0 => None,
            _ => Some(DeadlineAlarm::start(&format!("{name}-alarm")).map_err(thread_error)?),
        };
        let parts = Arc::new(SharedTierParts {
            id,
            store,
            groups,
            known: KnownBlocks::new(id, Arc::clone(&context.events), settings.known_blocks_max),
            room: StagingRoom::new(settings.staging_bytes),
            open: Default::default(),
            uploads: Default::default(),
            removals: Arc::default(),
            fetches: Mutex::default(),
            threads: StoreThreads::new(name.clone(), threads_max, Arc::clone(&pace)),
            alarm,
            pace,
            reads: Arc::new(StoreBreaker::new(format!("reads of the {id} tier's store"))),
            writes: Arc::new(StoreBreaker::new(format!(
                "writes to the {id} tier's store"
            ))),
            counts: Default::default(),
            clock: Arc::clone(&context.clock),
            is_closing: AtomicBool::new(false),
            abilities,
            settings,
        });
        let stager = match context.threads {
            0 => None,
            // Nothing is written to a tier without groups.
            _ if context.groups.is_empty() => None,
            _ => Some(start_stager(&parts, format!("{name}-stage"))?),
        };
        let hub = None;
        Ok(Arc::new(SharedTier { parts, stager, hub }))
    }

    /// The opener of a tier named `id`, for `CacheBuilder::tier` and `BlockStoreBuilder::tier`.
    pub fn opener(
        id: TierId,
        store: Arc<dyn SharedStore>,
        settings: SharedTierSettings,
    ) -> impl FnOnce(&TierContext) -> Result<Arc<dyn Tier>, TierError> + Send + 'static {
        move |context| Ok(SharedTier::open(id, store, settings, context)? as Arc<dyn Tier>)
    }

    /// What the tier has done so far.
    #[must_use]
    pub fn counters(&self) -> SharedTierCounters {
        self.parts.counts.read()
    }

    /// The store, the state of its breakers, and how many calls of it may run at a time.
    #[must_use]
    pub fn status(&self) -> SharedTierStatus {
        let parts = &self.parts;
        let now = parts.clock.now();
        SharedTierStatus {
            store: parts.store.name().to_owned(),
            reads: parts.reads.state(now),
            writes: parts.writes.state(now),
            calls_max: parts.pace.limit(),
        }
    }

    /// Blocks of one bundle of a group; `None` for a group that the tier does not have.
    #[must_use]
    pub fn bundle_blocks(&self, group: GroupId) -> Option<u32> {
        Some(self.parts.group(group)?.form.blocks)
    }

    /// Waits until the store has all bundles that are whole, at most `within`; false if some are
    /// still being written. For stores that are not durable, which are never synced.
    #[must_use]
    pub fn wait_for_writes(&self, within: Duration) -> bool {
        let end = Instant::now().checked_add(within);
        let staged = self.sync().wait_timeout(within).is_some();
        let left = end.map_or(within, |end| end.saturating_duration_since(Instant::now()));
        staged && upload::wait_for_writes(&self.parts, left)
    }

    fn hold_of(
        &self,
        group: GroupId,
        keys: &[BlockKey],
        is_use: bool,
    ) -> Option<Box<dyn TierHold>> {
        let parts = &self.parts;
        let only_staged = parts.reads.is_open(parts.clock.now());
        let blocks = parts.known.leading(group, keys, (is_use, only_staged));
        PromisedHold::of(blocks.iter().map(|block| (block.parent, block.tenant)))
    }
}

fn thread_error(error: std::io::Error) -> TierError {
    let source = Arc::new(error);
    TierError::Request(RequestError::Thread { source })
}

/// The bundles of each group.
fn groups(
    settings: &SharedTierSettings,
    best_bytes: u64,
    context: &TierContext,
) -> Result<Vec<GroupBundles>, SharedTierError> {
    if let Some(blocks) = settings.bundle_blocks
        && !(1..=BUNDLE_BLOCKS_MAX).contains(&blocks)
    {
        return Err(SharedTierError::BundleBlocks { blocks });
    }
    // A stop may be at each page, and the last pages before it are of no use if their bundle is not whole.
    let has_stops = context.groups.iter().any(|group| group.is_rootless);
    let best_bytes = if has_stops { 0 } else { best_bytes };
    let groups = context.groups.iter();
    groups
        .map(|group| group_bundles(settings, best_bytes, group))
        .collect()
}

/// The bundles of one group.
fn group_bundles(
    settings: &SharedTierSettings,
    best_bytes: u64,
    group: &TierGroup,
) -> Result<GroupBundles, SharedTierError> {
    let block_bytes = group.identity.block_bytes();
    let blocks = match (group.is_rootless, settings.bundle_blocks) {
        // Blocks that are no chain come and go one by one.
        (true, _) => 1,
        (false, Some(blocks)) => blocks,
        (false, None) => BundleForm::blocks_within(block_bytes, best_bytes),
    };
    let mut named = group.identity.clone();
    if group.shares_keys {
        let name = named.logical.clone().with_extra(GROUP_NAME, &group.name);
        named.logical = name.map_err(|source| SharedTierError::GroupName {
            group: group.name.clone(),
            source,
        })?;
    }
    let form = BundleForm::new(&named, settings.part.clone(), blocks);
    let bundle_bytes = block_bytes.saturating_mul(u64::from(form.blocks));
    if settings.staging_bytes < bundle_bytes {
        return Err(SharedTierError::Staging {
            staging_bytes: settings.staging_bytes,
            bundle_bytes,
        });
    }
    let names = BundleName::new(&settings.prefix, &form)?;
    let manifest = manifest_name(&settings.prefix, form.identity)?;
    let announcement = match group.has_part_readers && form.part == PartName::default() {
        false => None,
        true => {
            let part = PartFolderName::of(&named.logical.shard());
            let model = named.logical.model_fingerprint();
            let name = announcement_name(&settings.prefix, model, (&form, &part))?;
            Some(ValueBeside::new(name, Some(format!("{part}\n").into())))
        }
    };
    Ok(GroupBundles {
        manifest: ValueBeside::new(manifest, StoreManifest::new(&named).encode()),
        announcement,
        form,
        packing: BundlePacking::for_blocks_of(&group.identity.logical),
        names,
        is_rootless: group.is_rootless,
    })
}

fn start_stager(
    parts: &Arc<SharedTierParts>,
    name: String,
) -> Result<(mpsc::Sender<StageWork>, JoinHandle<()>), TierError> {
    let (sender, work) = mpsc::channel::<StageWork>();
    let parts = Arc::clone(parts);
    let thread = std::thread::Builder::new().name(name);
    let thread = thread.spawn(move || {
        for work in work {
            let turn = std::panic::AssertUnwindSafe(|| run_stage(&parts, work));
            if std::panic::catch_unwind(turn).is_err() {
                log::error!("staging blocks panicked; they are lost; the tier goes on");
            }
        }
    });
    Ok((sender, thread.map_err(thread_error)?))
}

fn run_stage(parts: &Arc<SharedTierParts>, work: StageWork) {
    match work {
        StageWork::Write(batch) => stage_all(parts, batch),
        StageWork::Sync(completer) => parts.uploads.sync_with(completer),
    }
}

/// Stages the blocks of a batch in their order.
fn stage_all(parts: &Arc<SharedTierParts>, batch: StagedBatch) {
    let start = Instant::now();
    let StagedBatch {
        blocks,
        part,
        ticket,
        until,
    } = batch;
    let mut refused = RefusedBlocks::default();
    let mut outcomes = Vec::with_capacity(blocks.len());
    for block in blocks {
        let outcome = parts.group_to_write(block.name.group).and_then(|group| {
            refused.check(&block)?;
            assembly::stage(parts, &block, (group, until, &ticket))
        });
        if matches!(outcome, Err(NotWritten::NoRoom)) {
            count(&parts.counts.no_room_blocks, 1);
        }
        refused.note(block.name, &outcome);
        // Its memory is free again while the blocks after it wait for room.
        drop(block.from);
        outcomes.push(outcome);
    }
    drop(ticket);
    part.end(outcomes, start.elapsed());
}

impl Tier for SharedTier {
    fn id(&self) -> TierId {
        self.parts.id
    }

    fn abilities(&self) -> TierAbilities {
        TierAbilities {
            // The tier has no list of what is in the store, so it cannot make room there.
            is_bounded: false,
            is_durable: self.parts.abilities.is_durable,
            is_shared: true,
            verifies: true,
            reads_pieces: false,
            answers: AnswerTime::Later,
        }
    }

    fn find(
        &self,
        group: GroupId,
        keys: &[BlockKey],
        _claim: &PinClaim,
    ) -> Option<Box<dyn TierHold>> {
        self.hold_of(group, keys, true)
    }

    fn hold(&self, group: GroupId, keys: &[BlockKey]) -> Option<Box<dyn TierHold>> {
        self.hold_of(group, keys, false)
    }

    fn ask(&self, group: GroupId, keys: &[BlockKey]) -> Completion<TierAnswer> {
        ask::ask(&self.parts, group, keys)
    }

    fn read(&self, blocks: Vec<BlockRead>) -> Completion<ReadReport> {
        fetch::read(&self.parts, blocks)
    }

    fn write(&self, blocks: Vec<BlockWrite>) -> Completion<WriteReport> {
        let lost = || Err(NotWritten::Failed(SharedTierParts::closed()));
        let (completion, part) =
            OutcomeGather::begin(blocks.len(), lost, |blocks, elapsed| WriteReport {
                blocks: blocks.into(),
                elapsed,
            });
        // From here on, and not from when the thread comes to it: batches do not wait one after the other.
        let now = Instant::now();
        let until = now.checked_add(self.parts.settings.room_within);
        let work = StageWork::Write(StagedBatch {
            blocks,
            part,
            ticket: self.parts.removals.begin(),
            until: until.unwrap_or(now),
        });
        match &self.stager {
            None => run_stage(&self.parts, work),
            // The thread ends only after the sender was dropped; a batch that is not sent ends as
            // closed.
            Some((sender, _)) => drop(sender.send(work)),
        }
        completion
    }

    /// For this cache: the values stay in the store. So does the rest of a bundle in the index.
    fn forget(&self, group: GroupId, keys: &[BlockKey]) -> usize {
        let names = keys.iter().map(|&key| BlockName { group, key });
        self.parts.removals.remove(names);
        self.parts.known.remove(group, keys)
    }

    /// For this cache: the values stay in the store.
    fn evict(&self, blocks: usize, _now: Tick) -> usize {
        self.parts.known.evict(blocks)
    }

    fn clear(&self, now: Tick) -> usize {
        self.parts.removals.remove_all();
        self.evict(usize::MAX, now)
    }

    fn sync(&self) -> Completion<SyncReport> {
        let Some((sender, _)) = &self.stager else {
            return self.parts.uploads.sync();
        };
        let completer = Completer::new(0, 0);
        let completion = completer.completion();
        if let Err(mpsc::SendError(StageWork::Sync(completer))) =
            sender.send(StageWork::Sync(completer))
        {
            completer.finish(SyncReport {
                lost: 0,
                failure: Some(SharedTierParts::closed()),
            });
        }
        completion
    }

    fn durable(&self, group: GroupId, keys: &[BlockKey]) -> Vec<bool> {
        let parts = &self.parts;
        let is_stored = |key: &BlockKey| {
            let name = BlockName { group, key: *key };
            let place = parts.known.place(&name);
            matches!(place, Some((_, BlockPlace::Stored(_))))
        };
        let is_durable = |key| parts.abilities.is_durable && is_stored(key);
        keys.iter().map(is_durable).collect()
    }

    fn stats(&self) -> TierStats {
        self.parts.known.stats()
    }

    fn estimate(&self, group: GroupId, blocks: usize) -> Option<Duration> {
        let form = &self.parts.group(group)?.form;
        let size = usize::try_from(form.blocks).unwrap_or(usize::MAX);
        let bundles = blocks.div_ceil(size);
        self.parts.pace.estimate(bundles, form.bundle_bytes())
    }

    fn list(&self, blocks: &mut Vec<StoredBlock>) {
        self.parts.known.list(blocks);
    }

    fn maintain(&self) {
        assembly::drop_stale(&self.parts);
    }

    fn check_integrity(&self) {
        self.parts.known.check_integrity();
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Drop for SharedTier {
    /// Ends all batches. Bundles that are whole are written within
    /// [`SharedTierSettings::close_within`]; calls of the store that do not return are left to
    /// themselves, with memory of the tier only.
    fn drop(&mut self) {
        let parts = &self.parts;
        if self.hub.is_some() {
            parts.is_closing.store(true, Ordering::Relaxed);
            end_fetches(parts);
            return;
        }
        let now = Instant::now();
        let end = now.checked_add(parts.settings.close_within).unwrap_or(now);
        if let Some((sender, thread)) = self.stager.take() {
            drop(sender);
            let is_own = thread.thread().id() == std::thread::current().id();
            while !is_own && !thread.is_finished() && Instant::now() < end {
                std::thread::sleep(CLOSE_STEP);
            }
            parts.is_closing.store(true, Ordering::Relaxed);
            // A thread cannot wait for itself; its panics are in the log.
            if !is_own {
                let _ = thread.join();
            }
        }
        parts.is_closing.store(true, Ordering::Relaxed);
        assembly::drop_all(parts);
        parts.threads.close(end);
        end_fetches(parts);
        parts.uploads.close();
        if let Some(alarm) = &parts.alarm {
            alarm.close();
        }
    }
}

fn end_fetches(parts: &SharedTierParts) {
    let running: Vec<_> = parts.fetches.lock().values().cloned().collect();
    for fetch in running {
        fetch.close();
    }
}
