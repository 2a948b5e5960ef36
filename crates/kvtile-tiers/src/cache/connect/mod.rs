//! A cache that is connected to a node daemon: the daemon owns host memory and the tiers below, this
//! process owns the engine's blocks.
//!
//! ```text
//! this process                                 daemon
//! lookup ─────────── one round trip ─────────► pins a match for this session
//! load   ─────────── hold ───────────────────► brings blocks to host memory, pins them
//!        engine ◄─ copy ─ host memory, mapped here for reading
//! store  engine ─ copy ─► staging memory, mapped there for reading
//!        ─────────── store ──────────────────► copies staging to host memory, registers
//! ```
//!
//! A daemon that does not answer costs misses and refusals, never a hang: every call has a deadline,
//! and while the daemon is late or away, lookups end at once. A thread connects again.

mod connection;
mod events;
mod found;
mod link;
mod load;
mod prefetch;
mod requests;
mod session;
mod settings;
mod stops;
mod store;
mod threads;

use std::{
    path::Path,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use kvtile_blocks::{
    BlockKey, Tick,
    events::{EventSnapshot, EventSubscriber, TierId},
    pool::{OwnerId, PinReport},
};
use kvtile_daemon_wire::{FrameKind, KEYS_MAX};
use kvtile_layout::{Shape, broken, identity::Identity};
use kvtile_transfer::{LayoutHandle, PhysicalLayout, TransferManager};
use parking_lot::Mutex;

pub(crate) use connection::{ConnectOffer, DaemonConnection};
pub(super) use found::{ConnectedMatch, ConnectedSeek};
pub use settings::ConnectSettings;
pub(crate) use stops::{ConnectedStop, ConnectedStopOptions, ConnectedStopSeek};

use super::{
    Cache, CacheBackend, FlushReport, LookupOptions, Priority,
    chains::StoresInFlight,
    serving::{CallAnswer, CallMessage, HelloBlocks, codes},
};
use crate::{
    below::TierHealth,
    error::TierError,
    metrics::{CacheMetrics, CacheStats, MissReason, Queue},
    opening::check_identity,
    queue::JobQueue,
    source::EventSource,
    tier::TierStats,
};
use link::LinkError;

/// The longest pause before connecting again.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(5);

/// How long a store or a call waits before it goes to a busy daemon again.
const BUSY_PAUSE: Duration = Duration::from_millis(5);

/// How much longer than its own time a seek waits for the daemon.
const SEEK_GRACE: Duration = Duration::from_millis(100);

/// A job of a connected cache. Dropping it completes it.
trait ConnectedJob: Send {
    /// The kind of job in the metrics.
    fn label(&self) -> Queue;

    fn run(self: Box<Self>, parts: &ConnectedParts);
}

/// A job in the queue.
type BoxedConnectedJob = Box<dyn ConnectedJob>;

/// What the threads of a connected cache share: the jobs of one group.
pub(crate) struct ConnectedParts {
    id: u64,
    connection: Arc<DaemonConnection>,
    /// The number of the group in the connection.
    group: u16,
    settings: ConnectSettings,
    manager: Arc<TransferManager>,
    /// The layout of the engine; without one each call gives its own.
    engine: Option<LayoutHandle>,
    layers: usize,
    page_size: u64,
    owns_engine: bool,
    queue: JobQueue<BoxedConnectedJob>,
    /// Stores of this process that are in flight.
    chains: StoresInFlight<(Priority, BoxedConnectedJob)>,
    /// What this process counts: its queue, lookups that found no daemon, and hits that it lost.
    metrics: CacheMetrics,
    /// The last counters that the daemon reported.
    stats: Mutex<CacheStats>,
    block_bytes: u64,
}

/// The backend of a connected cache.
pub(super) struct ConnectedCache {
    parts: Arc<ConnectedParts>,
    threads: Vec<JoinHandle<()>>,
}

impl Cache {
    /// Connects to the node daemon (`kvtile serve`) at `socket`, which owns host memory and the tiers
    /// below, for an engine whose blocks lie in `engine`. All processes that connect with the same
    /// identity share the daemon's blocks.
    ///
    /// If the connection ends later, lookups find nothing, stores and loads end with their reason,
    /// and the cache connects again by itself.
    ///
    /// # Errors
    /// Settings out of range; an identity that does not match the engine's shape; no daemon at the
    /// socket, or one that does not answer in time; a daemon of another user or version, or one that
    /// refuses the identity.
    pub fn connect(
        socket: impl AsRef<Path>,
        settings: ConnectSettings,
        engine: PhysicalLayout,
    ) -> Result<Cache, TierError> {
        let manager = Arc::new(TransferManager::new());
        let handle = manager.register(engine)?;
        ConnectedCache::open(socket.as_ref(), settings, (manager, handle, true))
    }

    /// As [`connect`](Self::connect), for a layout that is registered with the engine's transfer
    /// manager.
    ///
    /// # Errors
    /// Those of [`connect`](Self::connect); a handle that the manager does not know.
    pub fn connect_registered(
        socket: impl AsRef<Path>,
        settings: ConnectSettings,
        manager: Arc<TransferManager>,
        engine: LayoutHandle,
    ) -> Result<Cache, TierError> {
        ConnectedCache::open(socket.as_ref(), settings, (manager, engine, false))
    }

    /// The cache of one group of a connection.
    pub(crate) fn of_connection(
        connection: &Arc<DaemonConnection>,
        (group, identity): (u16, &Identity),
        manager: &Arc<TransferManager>,
        (engine, owns_engine): (Option<LayoutHandle>, bool),
    ) -> Result<Cache, TierError> {
        let settings = connection.settings.with_identity(identity.clone());
        let of = (Arc::clone(connection), group);
        let shape = identity.shape();
        let engine = (Arc::clone(manager), engine, owns_engine);
        ConnectedCache::start(of, settings, shape, engine)
    }
}

impl ConnectedCache {
    fn open(
        socket: &Path,
        settings: ConnectSettings,
        (manager, engine, owns_engine): (Arc<TransferManager>, LayoutHandle, bool),
    ) -> Result<Cache, TierError> {
        let layout = manager.layout(engine)?;
        check_identity(&settings.identity, &layout)?;
        let shape = layout.shape().with_num_blocks(1)?;
        let identity = settings.identity.clone();
        let offer = ConnectOffer {
            blocks: HelloBlocks::Plain {
                identity: Box::new(identity.clone()),
                shape: Box::new(shape.clone()),
            },
            groups: vec![(identity, shape.clone())],
        };
        let of_process = settings.with_identity(());
        let connection = DaemonConnection::open(socket, of_process, offer, Arc::clone(&manager))?;
        let engine = (manager, Some(engine), owns_engine);
        let started = ConnectedCache::start((Arc::clone(&connection), 0), settings, &shape, engine);
        started.inspect_err(|_| connection.close())
    }

    fn start(
        (connection, group): (Arc<DaemonConnection>, u16),
        settings: ConnectSettings,
        shape: &Shape,
        (manager, engine, owns_engine): (Arc<TransferManager>, Option<LayoutHandle>, bool),
    ) -> Result<Cache, TierError> {
        let layers = shape.num_layers();
        let Ok(layers) = usize::try_from(layers) else {
            broken(format_args!("{layers} layers in an engine's memory"))
        };
        let workers = settings.workers;
        let parts = Arc::new(ConnectedParts {
            id: connection.id,
            connection,
            group,
            layers,
            page_size: shape.page_size(),
            queue: JobQueue::new(settings.queue_capacity),
            chains: StoresInFlight::default(),
            metrics: CacheMetrics::new(&[]),
            stats: Mutex::default(),
            block_bytes: shape.block_bytes()?,
            settings,
            manager,
            engine,
            owns_engine,
        });
        for queue in [Queue::Load, Queue::Store, Queue::Prefetch] {
            let capacity = parts.settings.queue_capacity as u64;
            parts.metrics.queue_capacity(queue, capacity);
        }
        // Dropping it ends the connection and the threads.
        let mut cache = ConnectedCache {
            parts,
            threads: Vec::new(),
        };
        for number in 0..workers {
            cache.spawn(format!("kvtile-connect-{number}"), ConnectedParts::work)?;
        }
        Ok(Cache {
            backend: CacheBackend::There(cache),
        })
    }

    pub(super) fn parts(&self) -> &Arc<ConnectedParts> {
        &self.parts
    }

    fn spawn(
        &mut self,
        name: String,
        work: impl FnOnce(&ConnectedParts) + Send + 'static,
    ) -> Result<(), TierError> {
        let parts = Arc::clone(&self.parts);
        let thread = std::thread::Builder::new().name(name);
        let thread = thread.spawn(move || work(&parts));
        self.threads.push(thread.map_err(TierError::thread)?);
        Ok(())
    }

    /// A lookup: one round trip. `None` if the daemon does not answer.
    pub(super) fn lookup(
        &self,
        keys: &[BlockKey],
        options: &LookupOptions,
    ) -> Option<ConnectedMatch> {
        let (leading, _) = keys.split_at(keys.len().min(KEYS_MAX));
        let found = || -> Result<ConnectedMatch, LinkError> {
            let session = self.parts.answering()?;
            let frame = codes::lookup_frame(leading, &self.at_rate(options), Duration::ZERO);
            let request = |number| frame.encode(FrameKind::Lookup, number);
            let reply = session.request(request, None)?;
            let answer = reply.wait(self.parts.settings.answer_within)?;
            ConnectedMatch::of(&session, self.parts.id, (reply.number, answer))
        };
        let found = found().ok();
        if found.is_none() {
            self.missed(keys.len());
        }
        found
    }

    /// Counts a lookup that found no daemon.
    fn missed(&self, blocks: usize) {
        let misses = [(MissReason::Late, blocks as u64)];
        self.parts.metrics.looked_up(&[], &misses);
    }

    /// The options with this engine's rate of computing, if they have none.
    fn at_rate(&self, options: &LookupOptions) -> LookupOptions {
        let rate = self.parts.settings.recompute_tokens_per_second;
        options.recompute_tokens_per_second(options.rate().or(rate))
    }

    pub(super) fn seek(
        &self,
        keys: &[BlockKey],
        (within, options): (Duration, &LookupOptions),
    ) -> Option<ConnectedSeek> {
        let (leading, _) = keys.split_at(keys.len().min(KEYS_MAX));
        let seek = || -> Result<ConnectedSeek, LinkError> {
            let session = self.parts.answering()?;
            let frame = codes::lookup_frame(leading, &self.at_rate(options), within);
            let request = |number| frame.encode(FrameKind::Seek, number);
            let now = Instant::now();
            Ok(ConnectedSeek {
                reply: session.request(request, None)?,
                session,
                cache: self.parts.id,
                end: now
                    .checked_add(within.saturating_add(SEEK_GRACE))
                    .unwrap_or(now),
                is_taken: false,
            })
        };
        let seek = seek().ok();
        if seek.is_none() {
            self.missed(keys.len());
        }
        seek
    }

    pub(super) fn evict(&self, tier: TierId, blocks: usize) -> Result<usize, TierError> {
        self.blocks_of(&CallMessage::Evict { tier, blocks })
    }

    pub(super) fn clear(&self) -> Result<usize, TierError> {
        self.blocks_of(&CallMessage::Clear)
    }

    fn blocks_of(&self, call: &CallMessage) -> Result<usize, TierError> {
        match self.parts.io_call(call)? {
            CallAnswer::Blocks(blocks) => Ok(blocks),
            _ => Err(session::refused("the answer is of another call".to_owned())),
        }
    }

    /// The report of a flush; one that is not durable if the daemon does not answer.
    pub(super) fn flush(&self) -> FlushReport {
        match self.parts.io_call(&CallMessage::Flush) {
            Ok(CallAnswer::Flushed(report)) => report,
            Ok(_) => FlushReport::default(),
            Err(error) => {
                log::warn!("the daemon did not flush: {error}");
                FlushReport::default()
            }
        }
    }

    /// The counters of the daemon's cache, the last known ones if it does not answer, with what this
    /// process counts. The queues of loads, stores and prefetches are those of this process.
    pub(super) fn stats(&self) -> CacheStats {
        let within = self.parts.settings.answer_within;
        let mut last = self.parts.stats.lock();
        if let Ok(CallAnswer::Stats(stats)) = self.parts.call(&CallMessage::Stats, within) {
            *last = *stats;
        }
        let mut stats = last.clone();
        drop(last);
        let mine = self.parts.metrics.stats();
        stats.lookups += mine.lookups;
        stats.lookup_blocks += mine.lookup_blocks;
        for (reason, blocks) in mine.misses {
            *stats.misses.entry(reason).or_default() += blocks;
        }
        for (reason, blocks) in mine.lost_hits {
            *stats.lost_hits.entry(reason).or_default() += blocks;
        }
        let is_theirs = |queue: &crate::metrics::QueueStats| queue.queue == Queue::Spill;
        stats.queues.retain(is_theirs);
        stats.queues.splice(..0, mine.queues);
        stats
    }

    /// The expected time to read blocks; `None` if the daemon has no such tier, has not read from it, or does not
    /// answer.
    pub(super) fn estimate(&self, tier: TierId, blocks: usize) -> Option<Duration> {
        let within = self.parts.settings.answer_within;
        match self
            .parts
            .call(&CallMessage::Estimate { tier, blocks }, within)
        {
            Ok(CallAnswer::Estimate(time)) => time,
            _ => None,
        }
    }

    /// The health of a tier; `None` if the daemon has no such tier, or does not answer.
    pub(super) fn tier_health(&self, tier: TierId) -> Option<TierHealth> {
        let within = self.parts.settings.answer_within;
        match self.parts.call(&CallMessage::TierHealth { tier }, within) {
            Ok(CallAnswer::TierHealth(health)) => health,
            _ => None,
        }
    }

    pub(super) fn tier_stats(&self, tier: TierId) -> Option<TierStats> {
        let within = self.parts.settings.answer_within;
        match self.parts.call(&CallMessage::TierStats { tier }, within) {
            Ok(CallAnswer::TierStats(stats)) => stats.map(|stats| *stats),
            _ => None,
        }
    }

    pub(super) fn overdue(&self) -> Vec<PinReport> {
        let within = self.parts.settings.answer_within;
        let Ok(CallAnswer::Overdue(pins)) = self.parts.call(&CallMessage::Overdue, within) else {
            return Vec::new();
        };
        let report = |pin: &super::serving::PinMessage| PinReport {
            owner: OwnerId(pin.owner),
            deadline: Tick(pin.deadline),
            blocks: pin.blocks,
            since: Tick(pin.since),
        };
        pins.iter().map(report).collect()
    }

    pub(super) fn subscribe(&self) -> EventSubscriber {
        self.parts.connection.subscribe()
    }

    pub(super) fn event_source(&self) -> EventSource {
        self.parts.connection.event_source([self.parts.page_size])
    }

    pub(super) fn identity(&self) -> &Identity {
        &self.parts.settings.identity
    }

    /// Payload bytes of one block. The engine's layout was made with it.
    pub(super) fn block_bytes(&self) -> u64 {
        self.parts.block_bytes
    }

    pub(super) fn snapshot(&self) -> EventSnapshot {
        self.parts.connection.snapshot()
    }

    pub(super) fn tiers(&self) -> Vec<TierId> {
        self.parts.connection.tiers()
    }

    pub(super) fn is_connected(&self) -> bool {
        self.parts.connection.is_connected()
    }

    pub(super) fn engine(&self) -> LayoutHandle {
        match self.parts.engine {
            Some(engine) => engine,
            None => broken(format_args!("the cache of a group has no layout")),
        }
    }

    pub(super) fn manager(&self) -> &Arc<TransferManager> {
        &self.parts.manager
    }

    /// Runs one queued job on the caller's thread.
    pub(super) fn step(&self) -> bool {
        match self.parts.queue.try_next() {
            Some(job) => {
                // On this thread a panic belongs to the caller.
                if let Err(panic) = self.parts.run(job) {
                    std::panic::resume_unwind(panic);
                }
                true
            }
            None => false,
        }
    }
}

impl Drop for ConnectedCache {
    /// Ends the connection: the daemon drops all that it holds for this cache.
    fn drop(&mut self) {
        self.parts.connection.close();
        self.parts.drop_jobs();
        for thread in self.threads.drain(..) {
            // A thread cannot wait for itself.
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
        if self.parts.owns_engine
            && let Some(engine) = self.parts.engine
            && let Err(error) = self.parts.manager.unregister(engine)
        {
            log::warn!("the engine's layout is still in use: {error}");
        }
    }
}
