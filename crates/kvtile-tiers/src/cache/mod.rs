//! The cache: finds the longest stored prefix of a request, loads it, stores what was computed.
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
//! No call of an engine waits: what cannot be queued is refused, and the engine computes instead.
//! Which block is worth keeping is decided by the policies of `kvtile-blocks`; what a layout is and
//! how bytes move is the business of `kvtile-transfer`.

mod ask;
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
mod layered;
mod load;
mod open;
mod options;
mod parent;
mod parts;
mod queue;
mod report;
mod requests;
mod settings;
mod spill;
mod store;
mod tend;
mod work;

use std::{panic::resume_unwind, sync::Arc, thread::JoinHandle};

use kvtile_blocks::{
    BlockKey,
    events::{Snapshot, Subscriber, TierId},
    pool::{PinReport, PoolStats},
};
use kvtile_transfer::{LayoutHandle, TransferManager};

pub use crate::clock::{Clock, SystemClock};
pub use crate::disk::DiskSettings;
pub use crate::tier::{STORAGE_WORD, TierSettings, TierWrites};
pub use flush::{FlushReport, TierFlush};
pub use found::Match;
pub use open::CacheBuilder;
pub use options::{LoadOptions, LookupOptions, Priority, StoreOptions};
pub use report::{LoadReport, LoadStop};
pub use settings::{
    CacheSettings, EVENT_CAPACITY_MAX, HOST_BYTES_MAX, QUEUE_CAPACITY_MAX, QUOTAS_MAX, WORKERS_MAX,
};
pub use spill::{SYNC_BLOCKS, SYNC_WITHIN};
pub use store::{StoreReport, StoreStop};

pub use kvtile_transfer::completion::Completion;

use parts::Parts;

use crate::{
    disk::DiskTier,
    error::TierError,
    metrics::{CacheStats, Queue as QueueLabel},
    tier::{Answer, Tier, TierStats},
};

/// A cache of KV blocks in host memory and in tiers below it, for one engine's layout.
///
/// ```
/// use kvtile_layout::{Shape, identity::LogicalIdentity};
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
/// let identity = LogicalIdentity::new("a-model", "main", &shape)?;
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
/// Without a durable tier, nothing. With one, such as a disk, blocks that are only in host memory are brought to
/// it when the cache is closed or dropped, within [`TierSettings::close_within`], and by [`Cache::flush`] at any
/// time. A kill or a crash loses what was not synced by then. A sync begins at the latest when [`SYNC_BLOCKS`]
/// blocks were written or [`SYNC_WITHIN`] after the first of them, whatever else the cache does; with
/// [`TierWrites::AtOnce`] stored blocks are written in the order of stores as fast as the tier takes them, by
/// a thread that does nothing else.
#[derive(Debug)]
pub struct Cache {
    inner: Arc<Parts>,
    workers: Vec<JoinHandle<()>>,
    /// Whether it was closed already.
    is_closed: bool,
}

impl Cache {
    /// Finds the longest prefix of `keys` that is stored, in any tier, and pins it.
    ///
    /// It does no I/O and never waits for a move. Looking for what is not stored takes no exclusive
    /// lock; what is found is entered in the list of pins, under a short one. Where the engine's rate
    /// of computing is known ([`CacheSettings::recompute_tokens_per_second`]), blocks in tiers below host memory that would take longer to
    /// load than to compute are left out.
    pub fn lookup(&self, keys: &[BlockKey]) -> Match {
        self.lookup_with(keys, &LookupOptions::default())
    }

    /// As [`lookup`](Self::lookup), with an owner, a limit on the pins, hints and a lifetime.
    pub fn lookup_with(&self, keys: &[BlockKey], options: &LookupOptions) -> Match {
        found::lookup(&self.inner, keys, options)
    }

    /// Starts loading the leading blocks of a match to the blocks `destinations` of the engine's layout, one
    /// for each id. It returns at once.
    ///
    /// # Errors
    /// More destinations than blocks; an id that the layout does not have, or twice; a full queue
    /// ([`TierError::Busy`]): compute the blocks instead.
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
        load::start(&self.inner, found, destinations, options)
    }

    /// Starts storing the blocks `blocks` of the engine's layout: `blocks[i]` holds the KV of `keys[i]`. `keys`
    /// is a chain from its first block on. It returns at once. The blocks are leased for reading until the store
    /// ends: a transfer that would write them is refused.
    ///
    /// # Errors
    /// Fewer keys than blocks; an id that the layout does not have, or twice; a full queue
    /// ([`TierError::Busy`]): go on without storing them.
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
    /// As for [`store`](Self::store); a layout that is not registered with the cache's manager, or that is not of
    /// the cache's identity.
    pub fn store_with(
        &self,
        keys: &[BlockKey],
        blocks: &[usize],
        options: &StoreOptions,
    ) -> Result<Completion<StoreReport>, TierError> {
        store::start(&self.inner, keys, blocks, options)
    }

    /// Asks tiers that answer later ([`Answers::Later`](crate::tier::Answers)) for the leading blocks of `keys`:
    /// a lookup finds what they have once this has ended. It ends with the number of leading blocks that a
    /// lookup would find then; at once where no tier answers later.
    ///
    /// # Errors
    /// A full queue ([`TierError::Busy`]).
    pub fn ask(&self, keys: &[BlockKey]) -> Result<Completion<Answer>, TierError> {
        ask::start(&self.inner, keys)
    }

    /// Starts bringing the leading blocks of `keys` that are in tiers below to host memory.
    ///
    /// # Errors
    /// A full queue ([`TierError::Busy`]).
    pub fn prefetch(&self, keys: &[BlockKey]) -> Result<Completion<LoadReport>, TierError> {
        load::prefetch(&self.inner, keys)
    }

    /// Evicts up to `blocks` blocks from a tier, those least worth keeping first. What leaves host
    /// memory goes to the tiers below as the settings say. Returns how many have gone.
    ///
    /// It does the I/O of that on the caller's thread.
    ///
    /// # Errors
    /// A tier that this cache does not have.
    pub fn evict(&self, tier: TierId, blocks: usize) -> Result<usize, TierError> {
        demote::evict(&self.inner, tier, blocks)
    }

    /// Forgets all blocks: those in host memory, where pinned ones stay as they are until their last
    /// pin goes but are not found any more, and those of the tiers below that are not pinned. Returns how many
    /// have gone.
    ///
    /// # Errors
    /// A tier that cannot be brought to forget ([`TierError::NotDurable`]).
    pub fn clear(&self) -> Result<usize, TierError> {
        demote::clear(&self.inner)
    }

    /// Brings everything to each durable tier that is in host memory, as far as the tier has room, and waits
    /// until it is durable; on the caller's thread. Where not all of it has room, those blocks go there
    /// that are worth most. Tiers that are not durable get nothing; without a durable tier it does nothing, and the
    /// report says that ([`FlushReport::no_tier`]).
    pub fn flush(&self) -> FlushReport {
        flush::flush(&self.inner, false)
    }

    /// What was counted since the cache was opened, and what it holds now.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        counts::stats(&self.inner)
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
        counts::tier_stats(&self.inner, tier)
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
            if let Err(panic) = work::run(&self.inner, job) {
                resume_unwind(panic);
            }
            return true;
        }
        let mut below = self.inner.below.iter();
        below.any(|below| tend::step_tier(&self.inner, below))
    }

    /// Does what is due from time to time: learning, and syncing the tiers. The
    /// threads of a cache do it by themselves.
    pub fn look_after(&self) {
        work::look_after(&self.inner);
        for below in &self.inner.below {
            if below.spill.is_dirty() {
                below.sync(&*self.inner.clock);
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
