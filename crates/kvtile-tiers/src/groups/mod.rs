//! The cache over groups: models whose layers do not all attend to all tokens.
//!
//! ```text
//! chain      k0   k1   k2   k3   k4   k5      one key for each unit of tokens, for all groups
//! full       [0]  [1]  [2]  [3]  [4]  [5]     a prefix: every page
//! window               [2]  [3]       [5]     the last pages before a stop
//! state           [1]       [3]               the record at a stop
//! stops           (1)        3                position 1 lacks its window
//! ```
//!
//! A group has a rule, pages of its own size, a pool of host memory, and a layout of the engine unless each call
//! brings its own. A group of a draft model is kept and brought beside the others and decides nothing. A stop
//! is a position at which every group has what its rule needs. A lookup finds the longest one; a load
//! brings all that it needs, or reports 0 tokens; a store keeps only pages that chosen stops need.
//!
//! Each group has a cache of its own ([`crate::cache`]) over tiers that all groups share: one folder,
//! one lock, one log of events. Pages of a group with the rule full are a chain, whose ancestors stay.
//! Pages of other groups have no parents, so that a window that moves on ages by itself.
//!
//! A thread keeps known stops whole over the groups: their pages are written to durable tiers together,
//! and what only a lost stop needed is removed (`stops`).
//!
//! A cache that is connected to a node daemon has all of this there ([`GroupCache::connect`]): the lookup of
//! a stop is one round trip, and each group's pages pass as those of a connected
//! [`Cache`].
//!
//! Presence in all groups is what makes a stop, so a store needs no transaction across groups: if a
//! page is lost, evicted or damaged, the stops that need it end, and shorter ones remain.

mod connect;
mod division;
mod found;
mod load;
mod open;
mod operation;
mod report;
mod seek;
mod serving;
mod settings;
mod shared;
mod stops;
mod store;
mod view;

use std::{
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use kvtile_blocks::{
    BlockKey,
    events::{EventLog, EventSnapshot, EventSubscriber, TierId},
};
use kvtile_layout::GroupRule;
use kvtile_transfer::TransferManager;
use parking_lot::Mutex;

pub use connect::{ConnectGroups, GroupConnectSettings};
pub use found::{GroupMatch, StopOptions};
pub use load::LoadBlocks;
pub use open::GroupCacheBuilder;
pub use operation::GroupOperation;
pub use report::{GroupLoadReport, GroupOutcome, GroupStop, GroupStoreReport};
pub use seek::GroupSeek;
pub use settings::{CacheGroup, GroupCacheSettings};
pub use shared::GroupFacts;
pub use store::{GroupStoreOptions, StoreBlocks};

pub(crate) use division::{GroupPart, divide_host, fill_shares, memory_bytes, pages_of_a_stop};
pub(crate) use shared::{divisor, facts_of};

use shared::GroupsShared;
use stops::StopKeeper;

use crate::{
    cache::{Cache, DaemonConnection, FlushReport, LoadOptions},
    error::{RequestError, TierError},
    keys::{HasherOptions, TokenHasher},
    metrics::CacheStats,
    source::{EventSource, ListStoredBlocks},
    tier::{Tier, TierStats},
};

/// A cache for models with several groups of layers, in host memory and in tiers below it.
///
/// ```
/// use std::num::NonZeroU64;
/// use kvtile_layout::{GroupRule, Shape, identity::Identity};
/// use kvtile_tiers::groups::{CacheGroup, GroupCache, GroupCacheSettings, LoadBlocks, StoreBlocks};
/// use kvtile_transfer::PhysicalLayout;
///
/// // 2 layers with full attention and 4 with a window of 32 tokens, pages of 16 tokens.
/// let engine = |layers| {
///     let shape = Shape::key_value(32, layers, 16, 2, 64, "bf16")?;
///     let builder = PhysicalLayout::builder().with_shape(shape);
///     builder.layout("L|BH(kCN,vNC)").allocate_system().build()
/// };
/// let (full, window) = (engine(2)?, engine(4)?);
/// let identity = |of: &PhysicalLayout| Identity::new("a-model", "main", of.shape());
/// let rule = GroupRule::Window { tokens: NonZeroU64::new(32).ok_or("0 tokens")? };
/// let groups = vec![
///     CacheGroup::new("full", GroupRule::Full, identity(&full)?),
///     CacheGroup::new("window", rule, identity(&window)?),
/// ];
/// let cache = GroupCache::open(GroupCacheSettings::new(groups), vec![full, window])?;
///
/// // A prompt of 100 tokens has 6 full pages. Its last stop is at 96 tokens.
/// let chain = cache.hasher(&Default::default())?.keys(&(0..100).collect::<Vec<u32>>());
/// let pages = [StoreBlocks::new("full", 0, &[0, 1, 2, 3, 4, 5]), StoreBlocks::new("window", 3, &[3, 4, 5])];
/// let stored = cache.store(&chain, &pages, 96)?.wait();
/// // The window needs the pages 4 and 5 only.
/// assert_eq!((stored.stored(), stored.unreachable), (8, 1));
///
/// let found = cache.lookup(&chain);
/// assert_eq!(found.stop(), 96);
/// assert_eq!(found.needs("window", 0)?, 4..6);
/// let blocks = [LoadBlocks::new("full", &[10, 11, 12, 13, 14, 15]), LoadBlocks::new("window", &[20, 21])];
/// assert_eq!(cache.load(found, &blocks)?.wait().tokens, 96);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// What outlives the cache is as for a [`Cache`](crate::cache::Cache#what-outlives-the-cache), for each
/// group.
pub struct GroupCache {
    shared: Arc<GroupsShared>,
    /// One for each group.
    caches: Vec<Cache>,
    manager: Arc<TransferManager>,
    backend: GroupsBackend,
}

/// Who has the events of the cache, and follows them to keep stops whole.
enum GroupsBackend {
    /// This process.
    Here(GroupsHere),
    /// A daemon.
    There(Arc<DaemonConnection>),
}

/// The events of a cache in this process.
struct GroupsHere {
    events: Arc<EventLog>,
    keeper: KeeperPlace,
    /// Lives as long as the cache.
    owner: Arc<()>,
}

/// What follows the events of the cache to keep stops whole.
enum KeeperPlace {
    /// A thread.
    Thread(Option<JoinHandle<()>>),
    /// Calls of [`GroupCache::step`].
    Steps(Mutex<StopKeeper>),
}

impl std::fmt::Debug for GroupCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupCache")
            .field("groups", &self.shared.names())
            .finish_non_exhaustive()
    }
}

/// The counters of a cache over groups.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct GroupCacheStats {
    /// Lookups.
    pub lookups: u64,
    /// Lookups that found a stop.
    pub hits: u64,
    /// Tokens of the stops that lookups found.
    pub found_tokens: u64,
    /// Stops that are known to be stored now. After a restart the cache learns them from lookups.
    pub known_stops: u64,
    /// How often the cache read its events to keep stops whole. It does so when pages come or go, and not
    /// while nothing changes.
    pub keeper_turns: u64,
    /// The counters of each group's cache, by name, in the order of the settings. They count lookups of
    /// pages that were needed.
    pub groups: Vec<(String, CacheStats)>,
}

impl GroupCache {
    fn of(
        shared: GroupsShared,
        caches: Vec<Cache>,
        (manager, events): (Arc<TransferManager>, Arc<EventLog>),
        has_threads: bool,
    ) -> Result<GroupCache, TierError> {
        let shared = Arc::new(shared);
        let keeper = StopKeeper::new(&shared, events.subscribe());
        let keeper = match has_threads {
            true => {
                let thread = thread::Builder::new().name("kvtile-stops".to_owned());
                let thread = thread.spawn(move || keeper.serve());
                KeeperPlace::Thread(Some(thread.map_err(TierError::thread)?))
            }
            false => KeeperPlace::Steps(Mutex::new(keeper)),
        };
        Ok(GroupCache {
            shared,
            caches,
            manager,
            backend: GroupsBackend::Here(GroupsHere {
                events,
                keeper,
                owner: Arc::new(()),
            }),
        })
    }

    /// The events in this process; `None` for a connected cache.
    fn here(&self) -> Option<&GroupsHere> {
        match &self.backend {
            GroupsBackend::Here(here) => Some(here),
            GroupsBackend::There(_) => None,
        }
    }

    /// Whether calls reach the pages: always true in process. A connected cache whose daemon is away, or
    /// does not answer, finds nothing and stores nothing until it is true again.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        match &self.backend {
            GroupsBackend::Here(_) => true,
            GroupsBackend::There(connection) => connection.is_connected(),
        }
    }

    /// The groups, in the order of the settings; those of a connected cache in the order of their names.
    #[must_use]
    pub fn groups(&self) -> &[GroupFacts] {
        &self.shared.facts
    }

    /// Tokens of one key of a chain: the greatest common divisor of the pages of all groups.
    #[must_use]
    pub fn unit(&self) -> u64 {
        self.shared.unit.get()
    }

    /// Tokens between two possible stops: the least common multiple of the pages of the model's own groups.
    #[must_use]
    pub fn stop_unit(&self) -> u64 {
        self.shared.stop_unit.get()
    }

    /// Makes the keys of chains for this cache: one for each [`unit`](Self::unit) of tokens. They commit
    /// to the identities and rules of all groups.
    ///
    /// # Errors
    /// Those of [`TokenHasher::with_options`].
    pub fn hasher(&self, options: &HasherOptions) -> Result<TokenHasher, TierError> {
        TokenHasher::of_chain(&self.chain_identity(), self.unit(), options)
    }

    /// The bytes that identify a chain of this cache: those of the model's [`chain`](GroupCacheSettings::chain), or the
    /// names, rules and identities of its own groups. All ranks of a model have the same.
    #[must_use]
    pub fn chain_identity(&self) -> Vec<u8> {
        match &self.shared.chain {
            Some(chain) => chain.as_bytes().to_vec(),
            None => shared::chain_identity(&self.shared.facts),
        }
    }

    /// Finds the longest stop of the chain at which every group has what its rule needs, and pins that.
    /// It does no I/O.
    pub fn lookup(&self, chain: &[BlockKey]) -> GroupMatch {
        self.lookup_with(chain, &StopOptions::default())
    }

    /// As [`lookup`](Self::lookup), with a limit, an owner, a limit on the pins, hints and a lifetime.
    pub fn lookup_with(&self, chain: &[BlockKey], options: &StopOptions) -> GroupMatch {
        found::lookup(&self.shared, chain.into(), options)
    }

    /// As [`lookup`](Self::lookup), but first queries the tiers that answer over a network
    /// ([`AnswerTime::Later`](crate::tier::AnswerTime)) for stops, and waits for their answers, at most
    /// `within`. The call itself returns at once. Without such a tier the seek is ready at once.
    pub fn seek(&self, chain: &[BlockKey], within: Duration) -> GroupSeek {
        self.seek_with(chain, within, &StopOptions::default())
    }

    /// As [`seek`](Self::seek), with the options of a lookup.
    pub fn seek_with(
        &self,
        chain: &[BlockKey],
        within: Duration,
        options: &StopOptions,
    ) -> GroupSeek {
        GroupSeek::begin(&self.shared, chain.into(), (within, options))
    }

    /// Starts loading what the stop of a match needs and returns at once. The report has the tokens of
    /// the stop if all of it arrived, and otherwise 0: the engine then computes from the start, or from
    /// what it has itself.
    ///
    /// # Errors
    /// A match of another cache; a group that is unknown or given twice; another number of blocks than
    /// [`GroupMatch::needs`] has pages; an id that is out of range or occurs twice; a full queue
    /// ([`RequestError::Busy`]).
    pub fn load(
        &self,
        found: GroupMatch,
        blocks: &[LoadBlocks<'_>],
    ) -> Result<GroupOperation<GroupLoadReport>, TierError> {
        self.load_with(found, blocks, &LoadOptions::default())
    }

    /// As [`load`](Self::load), with a priority and a deadline. The layout of the options is not used:
    /// [`LoadBlocks::layout`] is. Draft groups may be left out.
    ///
    /// # Errors
    /// As for [`load`](Self::load).
    pub fn load_with(
        &self,
        found: GroupMatch,
        blocks: &[LoadBlocks<'_>],
        options: &LoadOptions,
    ) -> Result<GroupOperation<GroupLoadReport>, TierError> {
        load::start(&self.shared, found, blocks, options)
    }

    /// Starts bringing what the stop of a match needs to host memory, with the lowest priority, so that a
    /// later load does not wait for a tier. The report has the tokens of the stop if all of it is there
    /// then; a group whose queue is full is an outcome in it.
    ///
    /// # Errors
    /// A match of another cache.
    pub fn prefetch(
        &self,
        found: GroupMatch,
    ) -> Result<GroupOperation<GroupLoadReport>, TierError> {
        load::prefetch(&self.shared, found)
    }

    /// Starts storing what the stop at `stop` tokens needs and returns at once. The caller must not
    /// change the blocks until the operation ends.
    ///
    /// # Errors
    /// As for [`store_with`](Self::store_with).
    pub fn store(
        &self,
        chain: &[BlockKey],
        blocks: &[StoreBlocks<'_>],
        stop: u64,
    ) -> Result<GroupOperation<GroupStoreReport>, TierError> {
        self.store_with(chain, blocks, &GroupStoreOptions::new().stop(stop))
    }

    /// As [`store`](Self::store), for any number of stops, with a tenant, a priority, a deadline, hints
    /// and a lifetime. Pages of groups with the rule full are stored as given, also without a stop: a
    /// later stop may need them. Of other groups the pages that none of the stops needs are left out.
    ///
    /// Groups with the rule full are stored last. A queue that is full when their turn comes is an
    /// outcome in the report.
    ///
    /// # Errors
    /// A group that is unknown or given twice; a stop that no lookup could find; blocks of a group that
    /// needs a stop, without one; too few keys; an id that is out of range or occurs twice.
    pub fn store_with(
        &self,
        chain: &[BlockKey],
        blocks: &[StoreBlocks<'_>],
        options: &GroupStoreOptions,
    ) -> Result<GroupOperation<GroupStoreReport>, TierError> {
        store::start(&self.shared, chain, blocks, options)
    }

    /// Evicts up to `pages` pages of a group from a tier, the least valuable first, and returns how many
    /// it evicted. The caller's thread does the I/O.
    ///
    /// # Errors
    /// A group or a tier that this cache does not have.
    pub fn evict(&self, group: &str, tier: TierId, pages: usize) -> Result<usize, TierError> {
        let at = self.shared.at(group)?;
        let cache = self.caches.get(at);
        let cache = cache.ok_or(TierError::Request(RequestError::Closed))?;
        cache.evict(tier, pages)
    }

    /// Removes all pages of all groups and returns how many.
    ///
    /// # Errors
    /// As for [`Cache::clear`].
    pub fn clear(&self) -> Result<usize, TierError> {
        let cleared = self.caches.iter().map(Cache::clear);
        cleared
            .collect::<Result<Vec<usize>, _>>()
            .map(|all| all.iter().sum())
    }

    /// Writes the pages of host memory to the durable tiers and waits until they are durable. Returns
    /// the outcome of each group, in their order.
    pub fn flush(&self) -> Vec<(String, FlushReport)> {
        let outcomes = self.caches.iter().map(Cache::flush);
        self.shared.named(outcomes)
    }

    /// The counters since the cache was opened.
    #[must_use]
    pub fn stats(&self) -> GroupCacheStats {
        let counts = self.stop_counts();
        GroupCacheStats {
            lookups: counts.lookups,
            hits: counts.hits,
            found_tokens: counts.found_tokens,
            known_stops: counts.known_stops,
            keeper_turns: counts.keeper_turns,
            groups: self.shared.named(self.caches.iter().map(Cache::stats)),
        }
    }

    /// The tiers of the cache in lookup order: host memory, then the tiers below it.
    #[must_use]
    pub fn tiers(&self) -> Vec<TierId> {
        match &self.backend {
            GroupsBackend::Here(_) => {
                let below = self.shared.tiers.iter().map(|tier| tier.id());
                std::iter::once(TierId::HOST).chain(below).collect()
            }
            GroupsBackend::There(connection) => connection.tiers(),
        }
    }

    /// The counters and contents of a tier for one group; `None` if the cache does not have the group
    /// or the tier.
    #[must_use]
    pub fn tier_stats(&self, group: &str, tier: TierId) -> Option<TierStats> {
        let at = self.shared.at(group).ok()?;
        self.caches.get(at)?.tier_stats(tier)
    }

    /// A tier below host memory in this process; `None` for a connected cache.
    #[must_use]
    pub fn tier(&self, tier: TierId) -> Option<&Arc<dyn Tier>> {
        self.shared.tiers.iter().find(|one| one.id() == tier)
    }

    /// The manager that moves the pages.
    #[must_use]
    pub fn manager(&self) -> &Arc<TransferManager> {
        &self.manager
    }

    /// Subscribes to the events of all groups and tiers from now on.
    #[must_use]
    pub fn subscribe(&self) -> EventSubscriber {
        match &self.backend {
            GroupsBackend::Here(here) => here.events.subscribe(),
            GroupsBackend::There(connection) => connection.subscribe(),
        }
    }

    /// All stored pages, and the position in the event log at which this list is true.
    #[must_use]
    pub fn snapshot(&self) -> EventSnapshot {
        let list = |blocks: &mut Vec<_>| self.shared.list_stored(blocks);
        match &self.backend {
            GroupsBackend::Here(here) => here.events.snapshot(list),
            GroupsBackend::There(connection) => connection.snapshot(),
        }
    }

    /// The events and snapshots of the cache, for a reader that must not keep it open.
    #[must_use]
    pub fn event_source(&self) -> EventSource {
        let page_sizes = self.shared.facts.iter().map(|facts| facts.page_size.get());
        match &self.backend {
            GroupsBackend::Here(here) => {
                let shared = Arc::downgrade(&self.shared);
                EventSource::new(&here.events, shared, &here.owner, page_sizes)
            }
            GroupsBackend::There(connection) => connection.event_source(page_sizes),
        }
    }

    /// Runs one queued job, or one write or sync of a tier that is due, on the caller's thread; `false`
    /// if there is none. For caches without worker threads.
    pub fn step(&self) -> bool {
        let keeps = || match self.here().map(|here| &here.keeper) {
            Some(KeeperPlace::Steps(keeper)) => keeper.lock().step(),
            Some(KeeperPlace::Thread(_)) | None => false,
        };
        self.caches.iter().any(Cache::step) || keeps()
    }

    /// Runs the periodic work: counters, policy maintenance, and syncs of the tiers. The worker threads
    /// of a cache do it by themselves.
    pub fn look_after(&self) {
        self.caches.iter().for_each(Cache::look_after);
    }

    /// Checks the invariants between the parts of the cache; for tests, while no other thread uses it.
    ///
    /// # Panics
    /// If an invariant does not hold.
    pub fn check_integrity(&self) {
        self.caches.iter().for_each(Cache::check_integrity);
    }

    /// Closes the cache as dropping it does, and reports the outcome of the pages in host memory of each
    /// group.
    pub fn close(mut self) -> Vec<(String, FlushReport)> {
        self.end()
    }

    /// Closes the caches of all groups, those with the rule full last.
    fn end(&mut self) -> Vec<(String, FlushReport)> {
        match &mut self.backend {
            GroupsBackend::Here(here) => {
                here.events.end_waits();
                if let KeeperPlace::Thread(thread) = &mut here.keeper
                    && let Some(thread) = thread.take()
                {
                    // A panic of the thread is already in the log.
                    let _ = thread.join();
                }
            }
            GroupsBackend::There(connection) => connection.close(),
        }
        let caches = std::mem::take(&mut self.caches);
        let all = self.shared.facts.iter().zip(caches);
        let (spine, others): (Vec<_>, Vec<_>) =
            all.partition(|(facts, _)| facts.rule == GroupRule::Full);
        let closed = others.into_iter().chain(spine);
        closed
            .map(|(facts, cache)| (facts.name.clone(), cache.close()))
            .collect()
    }
}

impl Drop for GroupCache {
    fn drop(&mut self) {
        self.end();
    }
}
