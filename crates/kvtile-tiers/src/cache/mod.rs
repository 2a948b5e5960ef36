//! The cache: finds the longest stored prefix of a request, loads it, stores what was computed.
//!
//! ```text
//!            lookup            load                     store
//! engine ──────────────► Match ─────► queue ◄───────────────── engine's blocks
//!                     pins on both    │ workers
//!                     tiers           ▼
//!            engine's blocks ◄── host memory ◄── disk       one flight a block
//!                                host memory ──► disk       on eviction, at once, after n uses
//! ```
//!
//! No call of an engine waits: what cannot be queued is refused, and the engine computes instead.
//! Which block is worth keeping is decided by the policies of `kvtile-blocks`; what a layout is and
//! how bytes move is the business of `kvtile-transfer`.

mod below;
mod bring;
mod chains;
mod close;
mod counts;
mod demote;
mod departures;
mod flights;
mod flush;
mod found;
mod health;
mod host;
mod job;
mod load;
mod open;
mod parent;
mod queue;
mod requests;
mod settings;
mod spill;
mod store;
mod tend;

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard},
    thread::{self, JoinHandle},
    time::Duration,
};

use kvtile_blocks::{
    BlockKey, Tick,
    events::{EventLog, Snapshot, Subscriber, TierId},
    policy::Hints,
    pool::{OwnerId, PinReport, PoolStats, TenantId},
};
use kvtile_layout::broken;
use kvtile_transfer::{LayoutHandle, TransferManager};

pub use crate::clock::{Clock, SystemClock};
pub use crate::disk::DiskSettings;
pub use crate::tier::{TierSettings, TierWrites};
pub use flush::FlushReport;
pub use found::Match;
pub use load::{LoadReport, LoadStop};
pub use open::CacheBuilder;
pub use settings::{
    CacheSettings, EVENT_CAPACITY_MAX, HOST_BYTES_MAX, QUEUE_CAPACITY_MAX, QUOTAS_MAX, WORKERS_MAX,
};
pub use spill::{SYNC_BLOCKS, SYNC_WITHIN};
pub use store::{StoreReport, StoreStop};

pub use kvtile_transfer::completion::Completion;

use below::Below;
use chains::Chains;
use counts::Seen;
use departures::Departures;
use flights::Flights;
use host::Host;
use job::Job;
use queue::{Next, Queue, Refused};
use store::StoreJob;

use crate::{
    disk::DiskTier,
    error::TierError,
    metrics::{CacheMetrics, CacheStats, Queue as QueueLabel},
    tier::{Tier, TierStats},
};

/// How urgent a job is; later ones of the list come first. One turn in eight goes to the job that waits for
/// the longest time, whatever its priority, so that none waits for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Priority {
    /// When there is nothing else: prefetching, writing to disk.
    Background,
    /// Storing, unless something else is said.
    Low,
    /// Loading, unless something else is said.
    #[default]
    Normal,
    /// Before everything else.
    Urgent,
}

/// What is said of a lookup beside its keys.
#[derive(Clone, Copy, Debug, Default)]
pub struct LookupOptions {
    /// Who looks; reports of pins name it.
    pub owner: OwnerId,
    /// The match should be used or dropped within this time; one that is held for longer is
    /// reported by [`Cache::overdue`].
    pub hold: Option<Duration>,
    /// What the caller knows of the request.
    pub hints: Hints,
    /// After this time the blocks are worth nothing and leave first, to about a second. The longest time that
    /// any of their users gave counts, and none is the longest. It stands for `hints.expires`, which
    /// counts from the start of the cache's clock.
    pub lifetime: Option<Duration>,
}

/// What is said of a load beside its blocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadOptions {
    /// When it is its turn.
    pub priority: Priority,
    /// Parts that have not begun after this time do not begin.
    pub within: Option<Duration>,
    /// Where the blocks go: another layout of the cache's transfer manager that holds the same, or the
    /// engine's.
    pub layout: Option<LayoutHandle>,
}

/// What is said of a store beside its blocks.
#[derive(Clone, Copy, Debug)]
pub struct StoreOptions {
    /// Whose blocks they are.
    pub tenant: TenantId,
    /// When it is its turn.
    pub priority: Priority,
    /// If it has not begun after this time, it does not begin.
    pub within: Option<Duration>,
    /// What the caller knows of the blocks.
    pub hints: Hints,
    /// After this time the blocks are worth nothing and leave first, to about a second. The longest time that
    /// any of their users gave counts, and none is the longest. It stands for `hints.expires`, which
    /// counts from the start of the cache's clock.
    pub lifetime: Option<Duration>,
    /// Where the blocks are: another layout of the cache's transfer manager that holds the same, or
    /// the engine's.
    pub layout: Option<LayoutHandle>,
}

impl Default for StoreOptions {
    fn default() -> Self {
        StoreOptions {
            tenant: TenantId::default(),
            priority: Priority::Low,
            within: None,
            hints: Hints::default(),
            lifetime: None,
            layout: None,
        }
    }
}

/// A cache of KV blocks in host memory and on disk, for one engine's layout.
///
/// ```
/// use kvtile_blocks::{key::{BlockHasher, ExtraKeys, KeySettings}, sequence::TokenSequence};
/// use kvtile_layout::{Shape, Unit, Word, identity::LogicalIdentity};
/// use kvtile_tiers::cache::{Cache, CacheSettings, LoadOptions, LookupOptions, StoreOptions};
/// use kvtile_transfer::{FillPattern, PhysicalLayout};
///
/// // The engine: 32 blocks of 16 tokens, in the order of vLLM's CPU backend.
/// let shape = Shape::key_value(32, 4, 16, 2, 64, &Unit::new("bf16", 2, 1)?)?;
/// let engine = PhysicalLayout::builder()
///     .with_shape(shape.clone(), 1)
///     .layout("L|BH(kCN,vNC)".parse::<Word>()?)
///     .allocate_system()
///     .build()?;
/// let identity = LogicalIdentity::new("a-model", "main", &shape, None)?;
/// let keys_of = identity.fingerprint();
/// let cache = Cache::open(CacheSettings::new(identity).host_bytes(16 << 20), engine)?;
///
/// // A prompt of 40 tokens has two full blocks; the engine computed them into its blocks 3 and 7.
/// let hasher = BlockHasher::new(&KeySettings::default(), keys_of.as_bytes())?;
/// let mut prompt = TokenSequence::new(hasher, ExtraKeys::NONE)?;
/// prompt.extend(&(0..40).collect::<Vec<u32>>());
/// # cache.manager().fill(cache.engine(), &[3, 7], FillPattern::Distinct { seed: 1 })?;
/// let stored = cache.store(prompt.keys(), 0, &[3, 7], &StoreOptions::default())?;
/// assert_eq!(stored.wait().stored, 2);
///
/// // Another request begins with the same tokens: its blocks 20 and 21 are loaded, layer by layer.
/// let found = cache.lookup(prompt.keys(), &LookupOptions::default());
/// assert_eq!(found.blocks(), 2);
/// let load = cache.load(found, &[20, 21], &LoadOptions::default())?;
/// assert!(load.wait_layer(0).is_ok());
/// assert_eq!(load.wait().blocks, 2);
/// # let manager = cache.manager();
/// # assert_eq!(manager.block_digest(cache.engine(), 7)?, manager.block_digest(cache.engine(), 21)?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # What outlives the cache
///
/// Without a disk tier, nothing. With one, blocks that are only in host memory are brought to it when the
/// cache is closed or dropped, within [`DiskSettings::close_within`], and by [`Cache::flush`] at any time. A
/// kill or a crash loses what was not synced by then. A sync begins at the latest when [`SYNC_BLOCKS`] blocks
/// were written or [`SYNC_WITHIN`] after the first of them, whatever else the cache does; with
/// [`TierWrites::AtOnce`] each stored block is written in the order of stores as fast as the disk takes them, by
/// a thread that does nothing else.
#[derive(Debug)]
pub struct Cache {
    inner: Arc<Inner>,
    workers: Vec<JoinHandle<()>>,
    /// Whether it was closed already.
    is_closed: bool,
}

/// What the threads of a cache share.
struct Inner {
    manager: Arc<TransferManager>,
    engine: LayoutHandle,
    layers: usize,
    page_size: u64,
    block_bytes: u64,
    engine_blocks: u64,
    /// Whether the engine's layout is to be unregistered in the end.
    owns_engine: bool,
    host: Host,
    /// The tiers below host memory, in the order in which blocks are looked for.
    below: Vec<Below>,
    /// Held while host blocks are evicted and written, so that no thread evicts the parent of a block
    /// that another one is about to write.
    turn: Mutex<()>,
    /// Read while host blocks are evicted, until these are on their tiers.
    demotions: RwLock<()>,
    /// Blocks on their way from host memory to a tier.
    departures: Departures,
    queue: Queue<Job>,
    /// Stores that are under way.
    chains: Chains<Box<StoreJob>>,
    flights: Flights,
    clock: Arc<dyn Clock>,
    settings: CacheSettings,
    metrics: Arc<CacheMetrics>,
    seen: Seen,
    events: Arc<EventLog>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").finish_non_exhaustive()
    }
}

/// How long a worker waits for work before it looks after what is due.
const PATIENCE: Duration = Duration::from_millis(200);

impl Inner {
    fn tick(&self) -> Tick {
        self.tick_in(Duration::ZERO)
    }

    /// The tick that it is after some time.
    fn tick_in(&self, time: Duration) -> Tick {
        let millis = self.clock.now().saturating_add(time).as_millis();
        Tick(u64::try_from(millis).unwrap_or(u64::MAX))
    }

    /// The same with the tick of their end, where somebody has given a lifetime.
    fn hints(&self, mut hints: Hints, lifetime: Option<Duration>) -> Hints {
        if let Some(lifetime) = lifetime {
            hints.expires = Some(self.tick_in(lifetime));
        }
        hints
    }

    fn later(&self, time: Option<Duration>) -> Option<Duration> {
        time.map(|time| self.clock.now().saturating_add(time))
    }

    fn is_past(&self, deadline: Option<Duration>) -> bool {
        deadline.is_some_and(|deadline| self.clock.now() > deadline)
    }

    /// Queues all jobs or none, without waiting.
    fn queue(&self, priority: Priority, jobs: Vec<Job>) -> Result<(), TierError> {
        let labels: Vec<QueueLabel> = jobs.iter().map(Job::label).collect();
        // Counted before a worker can take them.
        labels.iter().for_each(|label| self.metrics.queued(*label));
        self.queue.push(priority, jobs).map_err(|(refused, jobs)| {
            drop(jobs);
            labels
                .iter()
                .for_each(|label| self.metrics.unqueued(*label));
            match refused {
                Refused::Full { waiting } => {
                    labels.iter().for_each(|label| self.metrics.refused(*label));
                    TierError::Busy {
                        waiting,
                        capacity: self.settings.queue_capacity,
                    }
                }
                Refused::Closed => TierError::Closed,
            }
        })
    }

    /// Does a job. One that panics has ended its completion by then; what it panicked with is the result.
    fn run(&self, job: Job) -> thread::Result<()> {
        self.metrics.unqueued(job.label());
        let ran = catch_unwind(AssertUnwindSafe(|| job.run(self)));
        self.queue.done();
        ran
    }

    /// Serves the queue until it is closed.
    fn work(&self) {
        loop {
            let ran = match self.queue.next(PATIENCE) {
                Next::Job(job) => self.run(job),
                Next::Idle => catch_unwind(AssertUnwindSafe(|| self.look_after())),
                Next::Closed => return,
            };
            if ran.is_err() {
                log::error!(
                    "a job of the cache panicked and was given up; this is a defect; the cache goes on"
                );
            }
        }
    }

    /// What is due from time to time: counting and learning.
    fn look_after(&self) {
        self.observe();
        self.host.pool.maintain();
        for below in &self.below {
            below.tier.maintain();
        }
    }

    /// The tier at a position of the list.
    fn tier(&self, at: usize) -> &Below {
        let Some(below) = self.below.get(at) else {
            broken(format_args!("tier {at} of {}", self.below.len()))
        };
        below
    }

    /// The turn to evict host blocks and write them.
    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that host blocks are about to be evicted, until they are on their tiers. A thread says it once.
    fn demoting(&self) -> RwLockReadGuard<'_, ()> {
        let demotions = self.demotions.read();
        demotions.unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for all demotions that have begun.
    fn wait_for_demotions(&self) {
        let demotions = self.demotions.write();
        drop(demotions.unwrap_or_else(PoisonError::into_inner));
    }
}

impl Cache {
    /// Finds the longest prefix of `keys` that is stored, in any tier, and pins it.
    ///
    /// It does no I/O and never waits for a move. Looking for what is not stored takes no exclusive
    /// lock; what is found is entered in the list of pins, under a short one. Where the engine's rate
    /// of computing is known ([`CacheSettings::recompute_tokens_per_second`]), blocks on disk that would take longer to
    /// load than to compute are left out.
    pub fn lookup(&self, keys: &[BlockKey], options: &LookupOptions) -> Match {
        found::lookup(&self.inner, keys, options)
    }

    /// Starts loading the blocks of a match to `destinations` of the engine's layout, as many
    /// leading ones as there are ids. It returns at once.
    ///
    /// # Errors
    /// More destinations than blocks; an id that the layout does not have, or twice; another layout
    /// than the engine's that is not registered with the manager or not of the cache's identity; a full
    /// queue ([`TierError::Busy`]): compute the blocks instead.
    pub fn load(
        &self,
        found: Match,
        destinations: &[usize],
        options: &LoadOptions,
    ) -> Result<Completion<LoadReport>, TierError> {
        load::start(&self.inner, found, destinations, options)
    }

    /// Starts storing engine blocks: block `i` of `blocks` is that of `keys[first + i]`. `keys` is
    /// the chain from its first block on, at least up to the last one stored. It returns at once;
    /// until its end the blocks must keep what they hold (a transfer that would write them
    /// meanwhile is refused).
    ///
    /// # Errors
    /// Fewer keys than blocks; an id that the layout does not have, or twice; another layout than the
    /// engine's that is not registered with the manager or not of the cache's identity; a full queue
    /// ([`TierError::Busy`]): go on without storing them.
    pub fn store(
        &self,
        keys: &[BlockKey],
        first: usize,
        blocks: &[usize],
        options: &StoreOptions,
    ) -> Result<Completion<StoreReport>, TierError> {
        store::start(&self.inner, (keys, first), blocks, options)
    }

    /// Starts bringing the leading blocks of `keys` that are on disk to host memory.
    ///
    /// # Errors
    /// A full queue ([`TierError::Busy`]).
    pub fn prefetch(&self, keys: &[BlockKey]) -> Result<Completion<LoadReport>, TierError> {
        load::prefetch(&self.inner, keys)
    }

    /// Evicts up to `blocks` blocks from a tier, those least worth keeping first. What leaves host
    /// memory goes to the disk as the settings say. Returns how many have gone.
    ///
    /// It does the I/O of that on the caller's thread.
    ///
    /// # Errors
    /// A tier that this cache does not have.
    pub fn evict(&self, tier: TierId, blocks: usize) -> Result<usize, TierError> {
        self.inner.evict(tier, blocks)
    }

    /// Forgets all blocks: those in host memory, where pinned ones stay as they are until their last
    /// pin goes but are not found any more, and those on disk that nobody has pinned. Returns how many
    /// have gone.
    ///
    /// # Errors
    /// A disk that cannot be brought to forget.
    pub fn clear(&self) -> Result<usize, TierError> {
        self.inner.clear()
    }

    /// Brings everything to the disk that is only in host memory, as far as the disk has room, and waits
    /// until it is durable; on the caller's thread. Where not all of it has room, those blocks go there
    /// that are worth most. Without a disk it does nothing.
    pub fn flush(&self) -> FlushReport {
        self.inner.flush(false)
    }

    /// What was counted since the cache was opened, and what it holds now.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        self.inner.stats()
    }

    /// The tiers of the cache: host memory, then those below it in the order in which blocks are looked for.
    #[must_use]
    pub fn tiers(&self) -> Vec<TierId> {
        let below = self.inner.below.iter().map(|below| below.id);
        std::iter::once(TierId::HOST).chain(below).collect()
    }

    /// What a tier counted and holds; `None` for a tier that the cache does not have.
    #[must_use]
    pub fn tier_stats(&self, tier: TierId) -> Option<TierStats> {
        self.inner.tier_stats(tier)
    }

    /// What the pool of a tier counted and holds; `None` for a tier that the cache does not have, or that has
    /// no pool.
    #[must_use]
    pub fn pool_stats(&self, tier: TierId) -> Option<PoolStats> {
        self.tier_stats(tier)?.pool
    }

    /// A tier below host memory.
    #[must_use]
    pub fn tier(&self, tier: TierId) -> Option<&Arc<dyn Tier>> {
        let below = self.inner.below.iter().find(|below| below.id == tier)?;
        Some(&below.tier)
    }

    /// The first disk of the cache, where there is one.
    #[must_use]
    pub fn disk(&self) -> Option<&DiskTier> {
        let tiers = self.inner.below.iter().map(|below| &below.tier);
        tiers
            .filter_map(|tier| tier.as_any().downcast_ref::<DiskTier>())
            .next()
    }

    /// Pins that were held for longer than their owners said.
    #[must_use]
    pub fn overdue(&self) -> Vec<PinReport> {
        let now = self.inner.tick();
        let mut pins = self.inner.host.pool.overdue(now);
        for below in &self.inner.below {
            pins.extend(below.tier.overdue(now));
        }
        pins
    }

    /// Events of all tiers from now on.
    #[must_use]
    pub fn subscribe(&self) -> Subscriber {
        self.inner.events.subscribe()
    }

    /// All stored blocks, with the place in the order of events that this is true at: where a
    /// subscriber that lagged starts anew.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.inner.events.snapshot(|blocks| {
            self.inner.host.pool.list_stored(blocks);
            for below in &self.inner.below {
                below.tier.list(blocks);
            }
        })
    }

    /// The engine's layout, as it is registered with the cache's transfer manager.
    #[must_use]
    pub fn engine(&self) -> LayoutHandle {
        self.inner.engine
    }

    /// The manager that moves the blocks.
    #[must_use]
    pub fn manager(&self) -> &Arc<TransferManager> {
        &self.inner.manager
    }

    /// Does one job that waits, on the caller's thread; `false` where none does. For caches
    /// without threads of their own.
    pub fn step(&self) -> bool {
        if let Some(job) = self.inner.queue.try_next() {
            // On this thread a panic is the caller's to see.
            if let Err(panic) = self.inner.run(job) {
                resume_unwind(panic);
            }
            return true;
        }
        let mut below = self.inner.below.iter();
        below.any(|below| self.inner.step_tier(below))
    }

    /// Does what is due from time to time: learning, and bringing written blocks to the disk. The
    /// threads of a cache do it by themselves.
    pub fn look_after(&self) {
        self.inner.look_after();
        for below in &self.inner.below {
            if below.spill.is_dirty() {
                self.inner.sync(below);
            }
        }
    }

    /// Asserts what must hold between the parts of the cache; for tests, while nothing else runs.
    ///
    /// # Panics
    /// Where something does not hold.
    pub fn check_integrity(&self) {
        self.inner.host.pool.check_integrity();
        for below in &self.inner.below {
            below.tier.check_integrity();
        }
    }
}
