//! The cache: finds the longest stored prefix of a request, loads it, and stores computed blocks.
//!
//! ```text
//!            lookup            load                     store
//! engine ──────────────► Match ─────► queue ◄───────────────── engine's blocks
//!                     pins in all     │ workers
//!                     tiers           ▼
//!            engine's blocks ◄── host memory ◄── tiers       batches, one flight a block
//!                                host memory ──► tiers       on eviction, at once, after n uses
//! ```
//!
//! No call of an engine blocks. The cache refuses what its queue cannot take, and the engine
//! computes the blocks instead.
//!
//! The policies of `kvtile-blocks` decide which blocks to keep. `kvtile-transfer` knows layouts and
//! moves the bytes.

mod below;
mod bring;
mod chains;
mod close;
mod connect;
mod counts;
mod demote;
mod departures;
mod flights;
mod flush;
mod found;
mod grouped;
mod hold;
mod host;
mod job;
mod layered;
mod load;
mod load_marks;
mod load_pieces;
mod open;
mod options;
mod parent;
mod parts;
mod report;
mod requests;
mod seek;
pub mod serving;
mod settings;
mod store;
mod tend;
mod work;

use std::{panic::resume_unwind, sync::Arc, thread::JoinHandle, time::Duration};

use kvtile_blocks::{
    BlockKey,
    events::{EventSnapshot, EventSubscriber, TierId},
    pool::{PinReport, PoolStats},
};
use kvtile_layout::identity::Identity;
use kvtile_transfer::{LayoutHandle, TransferManager};

pub use crate::below::{SYNC_BLOCKS, SYNC_WITHIN};
pub use crate::clock::{Clock, SystemClock};
pub use crate::disk::DiskSettings;
pub use crate::tier::{STORAGE_WORD, TierSettings, TierWrites};
pub use connect::ConnectSettings;
pub(crate) use connect::{
    ConnectOffer, ConnectedParts, ConnectedStop, ConnectedStopOptions, ConnectedStopSeek,
    DaemonConnection,
};
pub use flush::{FlushReport, TierFlush};
pub use found::Match;
pub(crate) use grouped::CacheOfGroup;
pub use load_marks::LoadMarks;
pub use open::CacheBuilder;
pub(crate) use open::{EngineLayout, GroupPlace};
pub use options::{LoadOptions, LookupOptions, Priority, StoreOptions};
pub use report::{LoadReport, LoadStop};
pub use seek::Seek;
pub(crate) use seek::SoughtAnswers;
pub(crate) use settings::check_rate;
pub use settings::{
    CacheSettings, EVENT_CAPACITY_MAX, HOST_BYTES_MAX, QUEUE_CAPACITY_MAX, QUOTAS_MAX, WORKERS_MAX,
};
pub use store::{StoreReport, StoreStop};

pub use kvtile_transfer::completion::Completion;

use connect::ConnectedCache;
pub(crate) use parts::CacheParts;

use kvtile_layout::broken;

use crate::{
    below::TierHealth,
    disk::DiskTier,
    error::TierError,
    metrics::{CacheStats, MissReason, Queue as QueueLabel},
    parts::PartsTier,
    source::{EventSource, ListStoredBlocks},
    tier::{Tier, TierStats},
};

/// A cache of KV blocks in host memory and in tiers below it, for one engine's layout.
///
/// ```
/// use kvtile_layout::{Shape, identity::Identity};
/// use kvtile_tiers::{TokenHasher, cache::{Cache, CacheSettings}};
/// use kvtile_transfer::{FillPattern, PhysicalLayout};
///
/// // The engine: 32 blocks of 16 tokens, in the order of vLLM's CPU backend.
/// let shape = Shape::key_value(32, 4, 16, 2, 64, "bf16")?;
/// let engine = PhysicalLayout::builder()
///     .with_shape(shape.clone())
///     .layout("L|BH(kCN,vNC)")
///     .allocate_system()
///     .build()?;
/// let identity = Identity::new("a-model", "main", &shape)?;
/// let hasher = TokenHasher::new(&identity)?;
/// let cache = Cache::open(CacheSettings::new(identity).host_bytes(16 << 20), engine)?;
///
/// // A prompt of 40 tokens has two full blocks; the engine computed them into its blocks 3 and 7.
/// let keys = hasher.keys(&(0..40).collect::<Vec<u32>>());
/// # cache.manager().fill(cache.engine(), &[3, 7], FillPattern::Distinct { seed: 1 })?;
/// let stored = cache.store(&keys, &[3, 7])?;
/// assert_eq!(stored.wait().stored, 2);
///
/// // Another request begins with the same tokens: its blocks 20 and 21 are loaded, layer by layer.
/// let found = cache.lookup(&keys);
/// assert_eq!(found.blocks(), 2);
/// let load = cache.load(found, &[20, 21])?;
/// assert!(load.wait_layer(0).is_ok());
/// assert_eq!(load.wait().blocks, 2);
/// # let manager = cache.manager();
/// # assert_eq!(manager.block_digest(cache.engine(), 7)?, manager.block_digest(cache.engine(), 21)?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # What outlives the cache
///
/// Without a durable tier, nothing outlives the cache. With a durable tier, such as a disk, three
/// calls write blocks that are only in host memory to it: closing and dropping the cache, within
/// [`TierSettings::close_within`], and [`Cache::flush`] at any time.
///
/// A kill or a crash loses all unsynced blocks. The cache begins a sync as soon as [`SYNC_BLOCKS`]
/// blocks are written, or [`SYNC_WITHIN`] after the first of them, independently of its other work.
/// With [`TierWrites::AtOnce`] a dedicated thread writes stored blocks in the order of their
/// stores, as fast as the tier takes them.
pub struct Cache {
    backend: CacheBackend,
}

/// Where the host memory and the tiers of a cache are.
enum CacheBackend {
    /// In this process.
    Here(LocalCache),
    /// In a daemon.
    There(ConnectedCache),
}

/// The parts of a cache in this process, with its threads.
struct LocalCache {
    inner: Arc<CacheParts>,
    workers: Vec<JoinHandle<()>>,
    /// Whether the cache is already closed.
    is_closed: bool,
    /// Lives as long as the cache, while matches may keep `inner`.
    owner: Arc<()>,
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache")
            .field("is_connected", &self.is_connected())
            .finish_non_exhaustive()
    }
}

impl Cache {
    /// The parts in this process; `None` for a connected cache.
    fn parts_here(&self) -> Option<&Arc<CacheParts>> {
        match &self.backend {
            CacheBackend::Here(cache) => Some(&cache.inner),
            CacheBackend::There(_) => None,
        }
    }

    /// Whether calls reach the tiers: always true in process. A connected cache whose daemon is away,
    /// or does not answer, finds nothing and stores nothing until it is true again.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        match &self.backend {
            CacheBackend::Here(_) => true,
            CacheBackend::There(cache) => cache.is_connected(),
        }
    }

    /// Finds the longest prefix of `keys` that is stored, in any tier, and pins it.
    ///
    /// A lookup does no I/O and never waits for a transfer. A miss takes no exclusive lock; a hit
    /// takes a short one to record its pins. If the engine's rate of computing is known
    /// ([`CacheSettings::recompute_tokens_per_second`]), the match excludes blocks in tiers below
    /// host memory that take longer to load than to compute.
    pub fn lookup(&self, keys: &[BlockKey]) -> Match {
        self.lookup_with(keys, &LookupOptions::default())
    }

    /// As [`lookup`](Self::lookup), with an owner, a limit on the pins, hints and a lifetime.
    pub fn lookup_with(&self, keys: &[BlockKey], options: &LookupOptions) -> Match {
        match &self.backend {
            CacheBackend::Here(cache) => {
                found::lookup(&cache.inner, keys, (options, MissReason::Absent))
            }
            CacheBackend::There(cache) => {
                let found = cache.lookup(keys, options);
                found.map_or_else(Match::of_closed, Match::of_connected)
            }
        }
    }

    /// As [`lookup`](Self::lookup), but first queries the tiers that answer over a network
    /// ([`AnswerTime::Later`](crate::tier::AnswerTime)) and waits for their answers, at most
    /// `within`. The call itself returns at once. `keys` is the chain from its first block on.
    ///
    /// Without such a tier, and while all of them are in a backoff after failures, the seek is ready
    /// at once.
    pub fn seek(&self, keys: &[BlockKey], within: Duration) -> Seek {
        self.seek_with(keys, within, &LookupOptions::default())
    }

    /// As [`seek`](Self::seek), with the options of a lookup.
    pub fn seek_with(&self, keys: &[BlockKey], within: Duration, options: &LookupOptions) -> Seek {
        match &self.backend {
            CacheBackend::Here(cache) => seek::start(&cache.inner, keys, (within, options)),
            CacheBackend::There(cache) => Seek::of_connected(cache.seek(keys, (within, options))),
        }
    }

    /// Starts loading the blocks of a match to `destinations` of the engine's layout and returns at
    /// once. Fewer destinations than blocks load the leading blocks.
    ///
    /// # Errors
    /// A match of another cache; more destinations than blocks; an id that is out of range or
    /// occurs twice; a full queue ([`RequestError::Busy`](crate::RequestError::Busy)): compute the
    /// blocks instead.
    pub fn load(
        &self,
        found: Match,
        destinations: &[usize],
    ) -> Result<Completion<LoadReport>, TierError> {
        self.load_with(found, destinations, &LoadOptions::default())
    }

    /// As [`load`](Self::load), with a priority, a deadline, or another layout than the engine's.
    ///
    /// # Errors
    /// As for [`load`](Self::load); a layout that is not registered with the cache's manager, or that is not of
    /// the cache's identity.
    pub fn load_with(
        &self,
        found: Match,
        destinations: &[usize],
        options: &LoadOptions,
    ) -> Result<Completion<LoadReport>, TierError> {
        match &self.backend {
            CacheBackend::Here(cache) => load::start(&cache.inner, found, destinations, options),
            CacheBackend::There(cache) => match found.into_connected() {
                Ok(found) => cache.parts().load(found, destinations, options),
                Err(found) => found
                    .check_nothing(destinations)
                    .map(|()| cache.parts().load_nothing()),
            },
        }
    }

    /// Starts storing blocks of the engine's layout and returns at once: `blocks[i]` holds the KV of
    /// `keys[i]`. `keys` is the chain from its first block on. The caller must not change the blocks
    /// until the completion ends; the transfer manager refuses transfers that would overwrite them.
    ///
    /// # Errors
    /// Fewer keys than blocks; an id that is out of range or occurs twice; a full queue
    /// ([`RequestError::Busy`](crate::RequestError::Busy)): continue without storing them.
    pub fn store(
        &self,
        keys: &[BlockKey],
        blocks: &[usize],
    ) -> Result<Completion<StoreReport>, TierError> {
        self.store_with(keys, blocks, &StoreOptions::default())
    }

    /// As [`store`](Self::store), from a later block of the chain on ([`StoreOptions::first`]: `blocks[i]` holds
    /// the KV of `keys[first + i]`), with a tenant, a priority, a deadline, hints, a lifetime, or another layout
    /// than the engine's.
    ///
    /// # Errors
    /// As for [`store`](Self::store), where `keys` must contain at least [`StoreOptions::first`] keys more than
    /// there are blocks; a layout that is not registered with the cache's manager, or that is not of the cache's
    /// identity.
    pub fn store_with(
        &self,
        keys: &[BlockKey],
        blocks: &[usize],
        options: &StoreOptions,
    ) -> Result<Completion<StoreReport>, TierError> {
        match &self.backend {
            CacheBackend::Here(cache) => store::start(&cache.inner, keys, blocks, options),
            CacheBackend::There(cache) => cache.parts().store(keys, blocks, options),
        }
    }

    /// Starts copying the leading blocks of `keys` from the tiers below to host memory.
    ///
    /// # Errors
    /// A full queue ([`RequestError::Busy`](crate::RequestError::Busy)).
    pub fn prefetch(&self, keys: &[BlockKey]) -> Result<Completion<LoadReport>, TierError> {
        match &self.backend {
            CacheBackend::Here(cache) => load::prefetch(&cache.inner, keys),
            CacheBackend::There(cache) => cache.parts().prefetch(keys),
        }
    }

    /// Evicts up to `blocks` blocks from a tier, the least valuable first, and returns how many it
    /// evicted. Blocks evicted from host memory are written to the tiers below as their settings
    /// state.
    ///
    /// The caller's thread does that I/O.
    ///
    /// # Errors
    /// A tier that this cache does not have.
    pub fn evict(&self, tier: TierId, blocks: usize) -> Result<usize, TierError> {
        match &self.backend {
            CacheBackend::Here(cache) => demote::evict(&cache.inner, tier, blocks),
            CacheBackend::There(cache) => cache.evict(tier, blocks),
        }
    }

    /// Removes all blocks and returns how many. Pinned blocks of host memory keep their bytes until
    /// the last unpin, but lookups do not find them. Pinned blocks of the tiers below stay, and a
    /// shared tier removes blocks for this cache only. Stores in flight end with
    /// [`StoreStop::Cleared`].
    ///
    /// # Errors
    /// The erasures of a durable tier could not be synced ([`FolderError::NotDurable`](crate::FolderError::NotDurable)).
    pub fn clear(&self) -> Result<usize, TierError> {
        match &self.backend {
            CacheBackend::Here(cache) => demote::clear(&cache.inner),
            CacheBackend::There(cache) => cache.clear(),
        }
    }

    /// Writes the blocks of host memory to each durable tier, as far as the tier has room, and
    /// waits until they are durable; on the caller's thread. If not all blocks fit, the most
    /// valuable ones are written. Tiers that are not durable get nothing. Without a durable tier
    /// the call does nothing, and the report counts all blocks as [`FlushReport::no_tier`].
    pub fn flush(&self) -> FlushReport {
        match &self.backend {
            CacheBackend::Here(cache) => flush::flush(&cache.inner, false),
            CacheBackend::There(cache) => cache.flush(),
        }
    }

    /// The counters since the cache was opened, and its current contents.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        match &self.backend {
            CacheBackend::Here(cache) => counts::stats(&cache.inner),
            CacheBackend::There(cache) => cache.stats(),
        }
    }

    /// The tiers of the cache in lookup order: host memory, then the tiers below it.
    #[must_use]
    pub fn tiers(&self) -> Vec<TierId> {
        match &self.backend {
            CacheBackend::Here(cache) => {
                let below = cache.inner.below.iter().map(|below| below.id);
                std::iter::once(TierId::HOST).chain(below).collect()
            }
            CacheBackend::There(cache) => cache.tiers(),
        }
    }

    /// The counters and contents of a tier; `None` if the cache has no such tier.
    #[must_use]
    pub fn tier_stats(&self, tier: TierId) -> Option<TierStats> {
        match &self.backend {
            CacheBackend::Here(cache) => counts::tier_stats(&cache.inner, tier),
            CacheBackend::There(cache) => cache.tier_stats(tier),
        }
    }

    /// Which operations of a tier are in a backoff after failures; `None` if the cache has no such
    /// tier, or its daemon does not answer. Host memory has none.
    #[must_use]
    pub fn tier_health(&self, tier: TierId) -> Option<TierHealth> {
        match &self.backend {
            CacheBackend::Here(cache) => counts::tier_health(&cache.inner, tier),
            CacheBackend::There(cache) => cache.tier_health(tier),
        }
    }

    /// The expected time to read so many blocks of a tier below host memory, from earlier reads. `None` for host
    /// memory, before the first read, and where the daemon does not answer.
    #[must_use]
    pub fn estimate(&self, tier: TierId, blocks: usize) -> Option<Duration> {
        match &self.backend {
            CacheBackend::Here(cache) => {
                let below = cache.inner.below.iter().find(|below| below.id == tier)?;
                below.tier.estimate(below::GROUP, blocks)
            }
            CacheBackend::There(cache) => cache.estimate(tier, blocks),
        }
    }

    /// The identity of the blocks.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        match &self.backend {
            CacheBackend::Here(cache) => &cache.inner.settings.identity,
            CacheBackend::There(cache) => cache.identity(),
        }
    }

    /// Payload bytes of one block.
    #[must_use]
    pub fn block_bytes(&self) -> u64 {
        match &self.backend {
            CacheBackend::Here(cache) => cache.inner.block_bytes,
            CacheBackend::There(cache) => cache.block_bytes(),
        }
    }

    /// The counters and contents of a tier's pool; `None` if the cache has no such tier or the tier
    /// has no pool.
    #[must_use]
    pub fn pool_stats(&self, tier: TierId) -> Option<PoolStats> {
        self.tier_stats(tier)?.pool
    }

    /// A tier below host memory in this process; `None` for a cache that is connected to a daemon,
    /// which has the tiers. [`tier_stats`](Self::tier_stats) and
    /// [`tier_health`](Self::tier_health) work for both.
    #[must_use]
    pub fn tier(&self, tier: TierId) -> Option<&Arc<dyn Tier>> {
        let mut below = self.below().iter();
        below
            .find(|below| below.id == tier)
            .map(|below| &below.tier)
    }

    /// The tier of the parts that other ranks wrote, if the cache has one in this process.
    #[must_use]
    pub fn parts(&self) -> Option<&PartsTier> {
        let mut tiers = self.below().iter().map(|below| &below.tier);
        tiers.find_map(|tier| tier.as_any().downcast_ref::<PartsTier>())
    }

    /// The first disk tier of the cache, if it has one in this process.
    #[must_use]
    pub fn disk(&self) -> Option<&DiskTier> {
        let tiers = self.below().iter().map(|below| &below.tier);
        tiers
            .filter_map(|tier| tier.as_any().downcast_ref::<DiskTier>())
            .next()
    }

    /// Pins held past the deadline of their owner.
    #[must_use]
    pub fn overdue(&self) -> Vec<PinReport> {
        let inner = match &self.backend {
            CacheBackend::Here(cache) => &cache.inner,
            CacheBackend::There(cache) => return cache.overdue(),
        };
        let now = inner.tick();
        let mut pins = inner.host.pool.overdue(now);
        for below in &inner.below {
            pins.extend(below.tier.overdue(now));
        }
        pins
    }

    /// Subscribes to the events of all tiers from now on.
    #[must_use]
    pub fn subscribe(&self) -> EventSubscriber {
        match &self.backend {
            CacheBackend::Here(cache) => cache.inner.events.subscribe(),
            CacheBackend::There(cache) => cache.subscribe(),
        }
    }

    /// All stored blocks, and the position in the event log at which this list is true. A
    /// subscriber that lagged restarts from here.
    #[must_use]
    pub fn snapshot(&self) -> EventSnapshot {
        let inner = match &self.backend {
            CacheBackend::Here(cache) => &cache.inner,
            CacheBackend::There(cache) => return cache.snapshot(),
        };
        let list = |blocks: &mut Vec<_>| inner.list_stored(blocks);
        inner.events.snapshot(list)
    }

    /// The events and snapshots of the cache, for a reader that must not keep it open.
    #[must_use]
    pub fn event_source(&self) -> EventSource {
        let cache = match &self.backend {
            CacheBackend::Here(cache) => cache,
            CacheBackend::There(cache) => return cache.event_source(),
        };
        let inner = Arc::downgrade(&cache.inner);
        let page_size = cache.inner.page_size;
        EventSource::new(&cache.inner.events, inner, &cache.owner, [page_size])
    }

    /// The engine's layout, as registered with the cache's transfer manager.
    #[must_use]
    pub fn engine(&self) -> LayoutHandle {
        match &self.backend {
            CacheBackend::Here(cache) => match cache.inner.engine {
                Some(engine) => engine.handle,
                None => broken(format_args!("the cache of a group has no layout")),
            },
            CacheBackend::There(cache) => cache.engine(),
        }
    }

    /// The manager that moves the blocks.
    #[must_use]
    pub fn manager(&self) -> &Arc<TransferManager> {
        match &self.backend {
            CacheBackend::Here(cache) => &cache.inner.manager,
            CacheBackend::There(cache) => cache.manager(),
        }
    }

    /// Runs one queued job, or one write or sync of a tier that is due, on the caller's thread;
    /// `false` if there is none. For caches without worker threads.
    pub fn step(&self) -> bool {
        let inner = match &self.backend {
            CacheBackend::Here(cache) => &cache.inner,
            CacheBackend::There(cache) => return cache.step(),
        };
        if let Some(job) = inner.queue.try_next() {
            // On this thread a panic belongs to the caller.
            if let Err(panic) = work::run(inner, job) {
                resume_unwind(panic);
            }
            return true;
        }
        let mut below = inner.below.iter();
        below.any(|below| tend::step_tier(inner, below))
    }

    /// Runs the periodic work: counters, policy maintenance, and syncs of the tiers. The worker
    /// threads of a cache do it by themselves, and those of a daemon for its clients.
    pub fn look_after(&self) {
        let Some(inner) = self.parts_here() else {
            return;
        };
        work::look_after(inner);
        for below in &inner.below {
            if below.spill.is_dirty() {
                below.sync(&*inner.clock);
            }
        }
    }

    /// Checks the invariants between the parts of the cache in this process; for tests, while no other
    /// thread uses it.
    ///
    /// # Panics
    /// If an invariant does not hold.
    pub fn check_integrity(&self) {
        let Some(inner) = self.parts_here() else {
            return;
        };
        inner.host.pool.check_integrity();
        for below in &inner.below {
            below.tier.check_integrity();
        }
    }

    /// The tiers below host memory in this process; none for a connected cache.
    fn below(&self) -> &[below::CacheTier] {
        self.parts_here().map_or(&[], |inner| &inner.below)
    }
}
