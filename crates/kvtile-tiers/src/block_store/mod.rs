//! A block store: blocks in memory that the caller owns, over the tiers of a [`Cache`](crate::cache::Cache).
//!
//! ```text
//!            load                                          store
//! tiers ─────────────► caller's row      caller's row ─────────────► staging memory ──► tiers
//!         verified, straight into it                   the job ends here      written behind
//! ```
//!
//! An engine that owns its host memory (vLLM's tiers, SGLang's HiCache, LMCache) registers it as
//! rows, one block a row. The store has no host pool: it reads from the tiers straight into a row,
//! or through staging memory where a row has another order than a stored block. A store copies the
//! row to staging memory and ends; a thread writes the block from there.
//!
//! Keys are not a chain: each block is found by itself. A parent and a position are hints for the
//! eviction policy. Blocks of one store are in groups; each group has blocks of its own size,
//! identity and keys.

mod close;
mod count;
mod finished;
mod load;
mod observe;
mod open;
mod parts;
mod report;
mod rows;
mod settings;
mod staging;
mod store;
mod work;
mod write;

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use kvtile_blocks::{
    BlockKey, GroupId,
    events::{EventSnapshot, EventSubscriber, TierId},
    pool::PinClaim,
};
use kvtile_layout::{Shape, identity::LayoutIdentity};
use kvtile_transfer::{
    LayoutHandle, PhysicalLayout,
    completion::{Completer, Completion},
};
use parking_lot::Mutex;

pub use finished::{FinishedJob, FinishedJobs};
pub use open::BlockStoreBuilder;
pub use report::{BlockOutcome, BlockOutcomes, StoreFlush};
pub use rows::{RowsGuard, StoreRows};
pub use settings::{BlockStoreSettings, StoreGroup};

use load::StoreLoadJob;
use parts::BlockStoreParts;
use rows::{RowsOwner, RowsParts};
use store::{RowStoreJob, StoreName};

use crate::{
    cache::Priority,
    error::{RequestError, TierError},
    ids::check_ids,
    metrics::{CacheStats, Queue},
    opening::check_identity,
    queue::{JobQueue, QueueRefusal},
    source::{EventSource, ListStoredBlocks},
    tier::{AnswerTime, BlockName, Tier, TierAnswer, TierStats},
};

/// The blocks of a store, with the chain that they belong to.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct RowStoreOptions {
    /// The key of the block before each block in its chain; empty, or one entry for each key
    /// (default: empty). The tiers evict a block before its parent.
    pub parents: Vec<Option<BlockKey>>,
    /// Number of blocks before each block in its chain; empty, or one entry for each key (default:
    /// empty). A parent counts only with a position above 0.
    pub positions: Vec<u32>,
    /// The tenant of the blocks (default 0).
    pub tenant: u32,
}

impl RowStoreOptions {
    /// The defaults.
    #[must_use]
    pub fn new() -> RowStoreOptions {
        RowStoreOptions::default()
    }

    /// Sets [`parents`](Self::parents).
    #[must_use]
    pub fn parents(mut self, parents: Vec<Option<BlockKey>>) -> RowStoreOptions {
        self.parents = parents;
        self
    }

    /// Sets [`positions`](Self::positions).
    #[must_use]
    pub fn positions(mut self, positions: Vec<u32>) -> RowStoreOptions {
        self.positions = positions;
        self
    }

    /// Sets [`tenant`](Self::tenant).
    #[must_use]
    pub fn tenant(mut self, tenant: u32) -> RowStoreOptions {
        self.tenant = tenant;
        self
    }

    /// The names of `keys` blocks.
    fn names(&self, keys: usize) -> Result<Vec<StoreName>, TierError> {
        for (list, found) in [
            ("parents", self.parents.len()),
            ("positions", self.positions.len()),
        ] {
            if found != 0 && found != keys {
                return Err(unequal(keys, list, found));
            }
        }
        let name = |at: usize| StoreName {
            parent: self.parents.get(at).copied().flatten(),
            position: self.positions.get(at).copied().unwrap_or(0),
        };
        Ok((0..keys).map(name).collect())
    }
}

/// Blocks in memory that the caller owns, over tiers. The [module](self) has the picture.
///
/// No call waits for I/O, except those that say so. A load ends when no I/O touches its rows any
/// more, and its blocks are verified. A store ends when it no longer needs its rows;
/// [`flush`](Self::flush) waits until stored blocks are durable.
///
/// ```
/// use kvtile_blocks::BlockKey;
/// use kvtile_layout::{Shape, identity::Identity};
/// use kvtile_tiers::{
///     block_store::{BlockStore, BlockStoreSettings, StoreGroup},
///     disk::DiskSettings,
/// };
/// use kvtile_transfer::{FillPattern, PhysicalLayout};
///
/// // The caller's memory: 32 rows, one block of 16 tokens each.
/// let shape = Shape::key_value(32, 4, 16, 2, 64, "bf16")?;
/// let rows = PhysicalLayout::builder()
///     .with_shape(shape.clone())
///     .layout("BLHKNC")
///     .allocate_system()
///     .build()?;
/// let identity = Identity::new("a-model", "main", &shape)?;
/// let group = StoreGroup::new("kv", identity, shape);
/// # let folder = std::env::temp_dir().join(format!("kvtile-doc-{}", std::process::id()));
/// let disk = DiskSettings::new(&folder, 1 << 30);
/// let store = BlockStore::open(BlockStoreSettings::new(vec![group]).disk(disk))?;
/// let rows = store.register("kv", rows)?;
///
/// let keys = [BlockKey::from_opaque(b"first"), BlockKey::from_opaque(b"second")];
/// assert_eq!(store.store(&keys, &rows, &[3, 7])?.wait().ok(), 2);
/// assert_eq!(store.contains(rows.group(), &keys)?, [true, true]);
/// assert_eq!(store.load(&keys, &rows, &[20, 21])?.wait().ok(), 2);
/// assert!(store.flush(None).durable);
/// # drop((rows, store));
/// # std::fs::remove_dir_all(&folder)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct BlockStore {
    parts: Arc<BlockStoreParts>,
    finished: FinishedJobs,
    threads: Vec<JoinHandle<()>>,
    is_closed: bool,
    /// Lives as long as the store.
    owner: Arc<()>,
}

impl BlockStore {
    /// Registers memory of the caller as rows of a group: block `i` of the layout is row `i`. The
    /// order of a row is free; rows in the order of stored blocks are read without a copy.
    ///
    /// # Errors
    /// A group that the store does not have; a layout of another shape or identity.
    pub fn register(&self, group: &str, layout: PhysicalLayout) -> Result<StoreRows, TierError> {
        let rows = self.check_rows(group, &layout)?;
        let handle = self.parts.manager.register(layout)?;
        Ok(self.rows(handle, RowsOwner::Store, rows))
    }

    /// As [`register`](Self::register), for a layout that the caller has registered with the
    /// store's transfer manager ([`BlockStoreBuilder::manager`]). The rows hold `guard`
    /// until they are released; the caller unregisters the layout then.
    ///
    /// # Errors
    /// As for [`register`](Self::register); a handle that the manager does not know.
    pub fn register_handle(
        &self,
        group: &str,
        handle: LayoutHandle,
        guard: RowsGuard,
    ) -> Result<StoreRows, TierError> {
        let layout = self.parts.manager.layout(handle)?;
        let rows = self.check_rows(group, &layout)?;
        Ok(self.rows(handle, RowsOwner::Caller(Mutex::new(Some(guard))), rows))
    }

    /// The group and the number of rows of a layout, and whether rows have the order of stored
    /// blocks.
    fn check_rows(
        &self,
        group: &str,
        layout: &PhysicalLayout,
    ) -> Result<(GroupId, u64, bool), TierError> {
        let id = self.group_id(group)?;
        let parts = self.parts.group(id);
        check_identity(&parts.identity, layout)?;
        let strided = layout.strided();
        let is_direct = strided.blocks_are_contiguous()
            && LayoutIdentity::of_block(strided).fingerprint() == parts.block_layout.fingerprint();
        Ok((id, layout.shape().num_blocks(), is_direct))
    }

    fn rows(
        &self,
        handle: LayoutHandle,
        owner: RowsOwner,
        rows: (GroupId, u64, bool),
    ) -> StoreRows {
        let manager = Arc::clone(&self.parts.manager);
        let parts = RowsParts::new((manager, handle), owner, self.parts.number, rows);
        StoreRows {
            parts: Arc::new(parts),
        }
    }

    /// The id of a group, by its name.
    ///
    /// # Errors
    /// A group that the store does not have.
    pub fn group_id(&self, group: &str) -> Result<GroupId, TierError> {
        let id = self.parts.names.get(group).copied();
        id.ok_or_else(|| self.parts.unknown_group(group))
    }

    /// The names of the groups, in the order of their ids.
    pub fn groups(&self) -> impl Iterator<Item = &str> {
        self.parts.groups.iter().map(|group| group.name.as_str())
    }

    /// The shape of a group's blocks; its number of blocks is that of staging memory.
    ///
    /// # Errors
    /// A group that the store does not have.
    pub fn shape(&self, group: GroupId) -> Result<&Shape, TierError> {
        Ok(&self.parts.check_group(group)?.shape)
    }

    /// Whether a load would find each block now, without I/O. It is no promise: a tier may evict
    /// the block before the load.
    ///
    /// # Errors
    /// A group that the store does not have.
    pub fn contains(&self, group: GroupId, keys: &[BlockKey]) -> Result<Vec<bool>, TierError> {
        self.parts.check_group(group)?;
        let now = self.parts.clock.now();
        let has = |key| self.parts.has(group, key, now);
        Ok(keys.iter().map(has).collect())
    }

    /// Queries the tiers with [`AnswerTime::Later`] for the leading blocks of `keys`, the keys of a
    /// chain from its first block on. [`contains`](Self::contains) and [`load`](Self::load) know
    /// the blocks of a tier once its completion has ended. There is one completion for each such
    /// tier, so none for a store that has only a disk.
    ///
    /// # Errors
    /// A group that the store does not have.
    pub fn ask(
        &self,
        group: GroupId,
        keys: &[BlockKey],
    ) -> Result<Vec<Completion<TierAnswer>>, TierError> {
        self.parts.check_group(group)?;
        let now = self.parts.clock.now();
        let asked =
            self.parts.below.iter().filter(|below| {
                below.abilities.answers == AnswerTime::Later && below.may_look(now)
            });
        Ok(asked.map(|below| below.tier.ask(group, keys)).collect())
    }

    /// Counts a use of each block for the eviction policies of the tiers, and returns how many
    /// blocks some tier has.
    ///
    /// # Errors
    /// A group that the store does not have.
    pub fn touch(&self, group: GroupId, keys: &[BlockKey]) -> Result<usize, TierError> {
        self.parts.check_group(group)?;
        let claim = PinClaim {
            now: self.parts.tick(),
            ..PinClaim::default()
        };
        let mut touched = 0;
        for below in &self.parts.below {
            let has = |key: &BlockKey| below.tier.has(group, key);
            for run in keys.chunk_by(|a, b| has(a) == has(b)) {
                if run.first().is_some_and(has) {
                    let hold = below.tier.find(group, run, &claim);
                    touched += hold.map_or(0, |hold| hold.blocks());
                }
            }
        }
        Ok(touched)
    }

    /// Starts loading blocks into rows: `ids[i]` is the row of `keys[i]`. The caller must not use
    /// the rows until the completion ends. A full queue ends the job at once, its blocks failed
    /// with [`RequestError::Busy`].
    ///
    /// A read that a tier does not answer within
    /// [`TierSettings::answer_within`](crate::tier::TierSettings::answer_within) pauses the reads
    /// of the tier. Its load still ends only when the tier no longer touches the rows.
    ///
    /// # Errors
    /// Rows of another store, or released ones; lists of different lengths; a row that is out of
    /// range or occurs twice.
    pub fn load(
        &self,
        keys: &[BlockKey],
        rows: &StoreRows,
        ids: &[usize],
    ) -> Result<Completion<BlockOutcomes>, TierError> {
        let counted = self.enter(keys, rows, ids)?;
        let completer = Completer::new(0, 0);
        let completion = completer.completion();
        let job = StoreLoadJob {
            completer: completer.clone(),
            keys: keys.to_vec(),
            ids: ids.to_vec(),
            start: self.parts.clock.now(),
            has_begun: false,
            counted,
            rows: Arc::clone(&rows.parts),
        };
        self.queue(
            (&self.parts.loads, Queue::Load),
            job,
            (&completer, keys.len()),
        );
        Ok(completion)
    }

    /// Starts storing rows: `ids[i]` is the row of `keys[i]`. The caller must not change the rows
    /// until the completion ends. A full queue ends the job at once, its blocks failed with
    /// [`RequestError::Busy`].
    ///
    /// # Errors
    /// As for [`load`](Self::load).
    pub fn store(
        &self,
        keys: &[BlockKey],
        rows: &StoreRows,
        ids: &[usize],
    ) -> Result<Completion<BlockOutcomes>, TierError> {
        self.store_with(keys, rows, ids, &RowStoreOptions::default())
    }

    /// As [`store`](Self::store), with the chain of the blocks and their tenant.
    ///
    /// # Errors
    /// As for [`store`](Self::store); lists of the options with another length than `keys`.
    pub fn store_with(
        &self,
        keys: &[BlockKey],
        rows: &StoreRows,
        ids: &[usize],
        options: &RowStoreOptions,
    ) -> Result<Completion<BlockOutcomes>, TierError> {
        let names = options.names(keys.len())?;
        let counted = self.enter(keys, rows, ids)?;
        let completer = Completer::new(0, 0);
        let completion = completer.completion();
        let job = RowStoreJob {
            completer: completer.clone(),
            keys: keys.to_vec(),
            names,
            ids: ids.to_vec(),
            tenant: options.tenant,
            start: self.parts.clock.now(),
            ticket: self.parts.removals.begin(),
            has_begun: false,
            counted,
            rows: Arc::clone(&rows.parts),
        };
        self.queue(
            (&self.parts.stores, Queue::Store),
            job,
            (&completer, keys.len()),
        );
        Ok(completion)
    }

    /// Checks a job, and counts it.
    fn enter(
        &self,
        keys: &[BlockKey],
        rows: &StoreRows,
        ids: &[usize],
    ) -> Result<[count::CountedJob; 2], TierError> {
        let counted = [self.parts.jobs.enter(), rows.parts.jobs.enter()];
        if rows.parts.store != self.parts.number {
            return Err(TierError::Request(RequestError::OtherStore));
        }
        rows.parts.check()?;
        if ids.len() != keys.len() {
            return Err(unequal(keys.len(), "rows", ids.len()));
        }
        check_ids(ids, rows.parts.rows)?;
        Ok(counted)
    }

    /// Queues a job. A job that the queue refuses ends here.
    fn queue<J>(
        &self,
        (queue, label): (&JobQueue<J>, Queue),
        job: J,
        (completer, blocks): (&Completer<BlockOutcomes>, usize),
    ) {
        let metrics = &self.parts.metrics;
        // Counted before the push, because a worker may take the job at once.
        metrics.queued(label);
        if let Err((refused, jobs)) = queue.push(Priority::Normal, vec![job]) {
            metrics.unqueued(label);
            if let QueueRefusal::Full { waiting } = refused {
                metrics.refused(label);
                let capacity = self.parts.settings.queue_capacity;
                let busy = TierError::Request(RequestError::Busy { waiting, capacity });
                let busy = BlockOutcome::Failed(busy);
                completer.finish(BlockOutcomes::all(blocks, &busy, Duration::ZERO));
            }
            // Of a closed store: dropping the job ends it as closed.
            drop(jobs);
        }
    }

    /// As [`load`](Self::load); the end of the job is in [`take_finished`](Self::take_finished),
    /// with the number `job`.
    ///
    /// # Errors
    /// As for [`load`](Self::load). Such a job is not in the queue.
    pub fn submit_load(
        &self,
        job: u64,
        keys: &[BlockKey],
        rows: &StoreRows,
        ids: &[usize],
    ) -> Result<(), TierError> {
        let completion = self.load(keys, rows, ids)?;
        self.finished.watch(job, completion);
        Ok(())
    }

    /// As [`store_with`](Self::store_with); the end of the job is in
    /// [`take_finished`](Self::take_finished), with the number `job`.
    ///
    /// # Errors
    /// As for [`store_with`](Self::store_with). Such a job is not in the queue.
    pub fn submit_store(
        &self,
        job: u64,
        keys: &[BlockKey],
        rows: &StoreRows,
        ids: &[usize],
        options: &RowStoreOptions,
    ) -> Result<(), TierError> {
        let completion = self.store_with(keys, rows, ids, options)?;
        self.finished.watch(job, completion);
        Ok(())
    }

    /// Takes the submitted jobs that have ended. It never blocks.
    #[must_use]
    pub fn take_finished(&self) -> Vec<FinishedJob> {
        self.finished.take()
    }

    /// A descriptor that is readable while submitted jobs that have ended wait to be taken.
    #[must_use]
    pub fn finished_fd(&self) -> BorrowedFd<'_> {
        self.finished.as_fd()
    }

    /// Number of jobs that have not ended.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.parts.jobs.jobs()
    }

    /// Waits until all jobs have ended: no I/O touches any row. Finished jobs stay in their queue.
    /// Code that the end of a job wakes may call this: it does not wait for that job, which no longer
    /// touches its rows.
    pub fn drain(&self) {
        self.parts.jobs.wait();
    }

    /// Removes blocks from all tiers and from staging memory, and returns how many blocks were
    /// there. Loads in flight may still get them. Of stores in flight it removes the blocks too.
    ///
    /// # Errors
    /// A group that the store does not have.
    pub fn forget(&self, group: GroupId, keys: &[BlockKey]) -> Result<usize, TierError> {
        let parts = &self.parts;
        let there = parts.check_group(group)?;
        let _removing = parts.removing.write();
        parts
            .removals
            .remove(keys.iter().map(|&key| BlockName { group, key }));
        let mut removed = there.staging.forget(keys);
        for below in &parts.below {
            let forgotten = below.tier.forget(group, keys);
            if forgotten > 0 {
                below.spill.touched(parts.clock.now());
            }
            removed = removed.max(forgotten);
        }
        Ok(removed)
    }

    /// The counters since the store was opened, and its current contents.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        work::observe(&self.parts);
        self.parts.metrics.stats()
    }

    /// The tiers of the store, in lookup order.
    #[must_use]
    pub fn tiers(&self) -> Vec<TierId> {
        self.parts.below.iter().map(|below| below.id).collect()
    }

    /// A tier of the store.
    #[must_use]
    pub fn tier(&self, tier: TierId) -> Option<&Arc<dyn Tier>> {
        let below = self.parts.below.iter().find(|below| below.id == tier)?;
        Some(&below.tier)
    }

    /// The counters and contents of a tier; `None` if the store has no such tier.
    #[must_use]
    pub fn tier_stats(&self, tier: TierId) -> Option<TierStats> {
        Some(self.tier(tier)?.stats())
    }

    /// Subscribes to the events of all tiers from now on.
    #[must_use]
    pub fn subscribe(&self) -> EventSubscriber {
        self.parts.events.subscribe()
    }

    /// All stored blocks, and the position in the event log at which this list is true. A
    /// subscriber that lagged restarts from here.
    #[must_use]
    pub fn snapshot(&self) -> EventSnapshot {
        let list = |blocks: &mut Vec<_>| self.parts.list_stored(blocks);
        self.parts.events.snapshot(list)
    }

    /// The events and snapshots of the store, for a reader that must not keep it open.
    #[must_use]
    pub fn event_source(&self) -> EventSource {
        let groups = self.parts.groups.iter();
        let page_sizes = groups.map(|group| group.identity.page_size());
        let parts = Arc::downgrade(&self.parts);
        EventSource::new(&self.parts.events, parts, &self.owner, page_sizes)
    }
}

fn unequal(keys: usize, list: &'static str, found: usize) -> TierError {
    TierError::Request(RequestError::UnequalLists { keys, list, found })
}
