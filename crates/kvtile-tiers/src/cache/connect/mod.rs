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

mod events;
mod found;
mod link;
mod load;
mod prefetch;
mod session;
mod settings;
mod store;
mod threads;

use std::{
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use kvtile_blocks::{
    BlockKey, Tick,
    events::{EventSnapshot, EventSubscriber, TierId},
    pool::{OwnerId, PinReport},
};
use kvtile_daemon_wire::{FrameKind, KEYS_MAX};
use kvtile_layout::{broken, identity::Identity};
use kvtile_transfer::{
    LayoutHandle, PhysicalLayout, TransferManager,
    completion::{Completer, Completion},
};
use parking_lot::{Condvar, Mutex};

pub(super) use found::{ConnectedMatch, ConnectedSeek};
pub use settings::ConnectSettings;

use super::{
    Cache, CacheBackend, FlushReport, LoadOptions, LoadReport, LookupOptions, Priority,
    StoreOptions, StoreReport,
    chains::StoresInFlight,
    requests,
    serving::{CallAnswer, CallMessage, codes},
};
use crate::{
    below::TierHealth,
    error::{RequestError, TierError},
    metrics::{CacheMetrics, CacheStats, MissReason, Queue},
    opening::check_identity,
    queue::JobQueue,
    source::EventSource,
    tier::TierStats,
};
use events::ConnectedEvents;
use link::LinkError;
use load::ConnectedLoad;
use prefetch::ConnectedPrefetch;
use session::DaemonSession;
use store::ConnectedStore;

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

/// The state of the connection.
#[derive(Default)]
struct ConnectionState {
    session: Option<Arc<DaemonSession>>,
    /// The socket of a handshake that is in progress.
    connecting: Option<UnixStream>,
    is_closed: bool,
}

impl ConnectionState {
    /// Ends the handshake of a cache that is closed.
    fn end_if_closed(&self) {
        if let Some(socket) = self.connecting.as_ref().filter(|_| self.is_closed) {
            // An error means that it has ended already.
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
    }
}

/// A job in the queue.
type BoxedConnectedJob = Box<dyn ConnectedJob>;

/// What the threads of a connected cache share.
struct ConnectedParts {
    id: u64,
    socket: PathBuf,
    settings: ConnectSettings,
    manager: Arc<TransferManager>,
    engine: LayoutHandle,
    engine_layout: PhysicalLayout,
    layers: usize,
    owns_engine: bool,
    queue: JobQueue<BoxedConnectedJob>,
    /// Stores of this process that are in flight.
    chains: StoresInFlight<(Priority, BoxedConnectedJob)>,
    /// Number of clearings of this process. Its lock orders stores and clearings on the socket.
    clearings: Mutex<u64>,
    /// Held by the one call that does I/O in the daemon.
    calls: Mutex<()>,
    state: Mutex<ConnectionState>,
    changed: Condvar,
    /// What this process counts: its queue, lookups that found no daemon, and hits that it lost.
    metrics: CacheMetrics,
    /// The last counters that the daemon reported, and its tiers.
    stats: Mutex<CacheStats>,
    events: Arc<ConnectedEvents>,
    block_bytes: u64,
    tiers: Mutex<Vec<TierId>>,
}

/// The backend of a connected cache.
pub(super) struct ConnectedCache {
    parts: Arc<ConnectedParts>,
    threads: Vec<JoinHandle<()>>,
    /// Lives as long as the cache, while its threads may keep `parts`.
    owner: Arc<()>,
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
}

impl ConnectedCache {
    fn open(
        socket: &Path,
        settings: ConnectSettings,
        (manager, engine, owns_engine): (Arc<TransferManager>, LayoutHandle, bool),
    ) -> Result<Cache, TierError> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        settings.check()?;
        let engine_layout = manager.layout(engine)?;
        check_identity(&settings.identity, &engine_layout)?;
        let engine_of = (&manager, &engine_layout);
        let session = DaemonSession::open(socket, &settings, engine_of, |_| {})?;
        let layers = engine_layout.shape().num_layers();
        let Ok(layers) = usize::try_from(layers) else {
            broken(format_args!("{layers} layers in an engine's memory"))
        };
        let workers = settings.workers;
        let parts = Arc::new(ConnectedParts {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            socket: socket.to_path_buf(),
            layers,
            queue: JobQueue::new(settings.queue_capacity),
            chains: StoresInFlight::default(),
            clearings: Mutex::new(0),
            calls: Mutex::new(()),
            tiers: Mutex::new(session.tiers.clone()),
            state: Mutex::new(ConnectionState {
                session: Some(Arc::new(session)),
                ..ConnectionState::default()
            }),
            changed: Condvar::new(),
            metrics: CacheMetrics::new(&[]),
            stats: Mutex::default(),
            events: Arc::new(ConnectedEvents::new()?),
            block_bytes: engine_layout.shape().block_bytes()?,
            settings,
            manager,
            engine,
            engine_layout,
            owns_engine,
        });
        for queue in [Queue::Load, Queue::Store, Queue::Prefetch] {
            let capacity = parts.settings.queue_capacity as u64;
            parts.metrics.queue_capacity(queue, capacity);
        }
        let mut cache = ConnectedCache {
            parts,
            threads: Vec::new(),
            owner: Arc::new(()),
        };
        cache.spawn("kvtile-connect".to_owned(), ConnectedParts::supervise)?;
        for number in 0..workers {
            cache.spawn(format!("kvtile-connect-{number}"), ConnectedParts::work)?;
        }
        Ok(Cache {
            backend: CacheBackend::There(cache),
        })
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
            let reply = session.link.request(request, None)?;
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
                reply: session.link.request(request, None)?,
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

    pub(super) fn load(
        &self,
        mut found: ConnectedMatch,
        destinations: &[usize],
        options: &LoadOptions,
    ) -> Result<Completion<LoadReport>, TierError> {
        if found.cache != self.parts.id {
            return Err(TierError::Request(RequestError::OtherCache));
        }
        // Blocks that the end of the connection took are no mistake of the caller: the load ends with
        // `Closed`.
        let blocks = found.found_blocks();
        if destinations.len() > blocks {
            return Err(TierError::Request(RequestError::TooManyDestinations {
                destinations: destinations.len(),
                blocks,
            }));
        }
        let layout = self.parts.check_blocks(options.layout, destinations)?;
        requests::check_after(&self.parts.manager, layout, &options.after)?;
        if let Some(marks) = &options.marks {
            // Each layer counts only once the daemon has confirmed that it held the blocks.
            marks.close();
        }
        found.narrow(0, destinations.len());
        if destinations.is_empty() {
            return Ok(self.load_nothing());
        }
        let completer = Completer::new(self.parts.layers, destinations.len());
        let completion = completer.completion();
        let job = ConnectedLoad::new(completer, found, (layout, destinations), options);
        let pushed = self.parts.push(options.priority, Box::new(job));
        pushed.inspect_err(|_| {
            let wanted = destinations.len() as u64;
            self.parts.metrics.lost(MissReason::QueueFull, wanted);
        })?;
        Ok(completion)
    }

    /// A load of no blocks.
    pub(super) fn load_nothing(&self) -> Completion<LoadReport> {
        Completion::ended(self.parts.layers, LoadReport::nothing())
    }

    pub(super) fn store(
        &self,
        keys: &[BlockKey],
        blocks: &[usize],
        options: &StoreOptions,
    ) -> Result<Completion<StoreReport>, TierError> {
        let end = options.first.checked_add(blocks.len());
        let Some(chain) = end.and_then(|end| keys.get(..end)) else {
            return Err(TierError::Request(RequestError::TooFewKeys {
                keys: keys.len(),
                first: options.first,
                blocks: blocks.len(),
            }));
        };
        if chain.len() > KEYS_MAX {
            return Err(session::refused(format!(
                "a chain of {} blocks; a daemon stores chains of at most {KEYS_MAX}",
                chain.len()
            )));
        }
        let layout = self.parts.check_blocks(options.layout, blocks)?;
        requests::check_after(&self.parts.manager, layout, &options.after)?;
        let completer = Completer::new(0, 0);
        let completion = completer.completion();
        let mut job = ConnectedStore::new(completer, chain, (layout, blocks), options);
        match blocks.is_empty() {
            true => job.finish(),
            false => job.enter(&self.parts)?,
        }
        Ok(completion)
    }

    pub(super) fn prefetch(&self, keys: &[BlockKey]) -> Result<Completion<LoadReport>, TierError> {
        let (leading, _) = keys.split_at(keys.len().min(KEYS_MAX));
        let completer = Completer::new(0, 0);
        let completion = completer.completion();
        let job = ConnectedPrefetch {
            completer,
            keys: leading.to_vec(),
            start: Instant::now(),
        };
        self.parts.push(Priority::Background, Box::new(job))?;
        Ok(completion)
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
        let session = self.parts.session();
        self.parts.events.subscribe(session.as_ref())
    }

    pub(super) fn event_source(&self) -> EventSource {
        let session = self.parts.session();
        let page_size = self.parts.engine_layout.shape().page_size();
        ConnectedEvents::source(
            &self.parts.events,
            session.as_ref(),
            (&self.owner, page_size),
        )
    }

    pub(super) fn identity(&self) -> &Identity {
        &self.parts.settings.identity
    }

    /// Payload bytes of one block. The engine's layout was made with it.
    pub(super) fn block_bytes(&self) -> u64 {
        self.parts.block_bytes
    }

    pub(super) fn snapshot(&self) -> EventSnapshot {
        let (session, within) = (self.parts.session(), self.parts.settings.answer_within);
        self.parts.events.snapshot(session.as_ref(), within)
    }

    pub(super) fn tiers(&self) -> Vec<TierId> {
        self.parts.tiers.lock().clone()
    }

    pub(super) fn is_connected(&self) -> bool {
        let session = self.parts.session();
        session.is_some_and(|session| !session.link.is_closed() && !session.link.is_late())
    }

    pub(super) fn engine(&self) -> LayoutHandle {
        self.parts.engine
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
        let session = {
            let mut state = self.parts.state.lock();
            state.is_closed = true;
            state.end_if_closed();
            state.session.clone()
        };
        self.parts.changed.notify_all();
        if let Some(session) = session {
            session.link.close();
        }
        self.parts.drop_jobs();
        for thread in self.threads.drain(..) {
            // A thread cannot wait for itself.
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
        self.parts.state.lock().session = None;
        if self.parts.owns_engine
            && let Err(error) = self.parts.manager.unregister(self.parts.engine)
        {
            log::warn!("the engine's layout is still in use: {error}");
        }
    }
}
