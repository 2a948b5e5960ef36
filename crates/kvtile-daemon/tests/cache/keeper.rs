//! The keeper of the caches under test: a daemon with one client. Calls go through the client; what
//! only the process with the tiers has comes from the daemon's cache.

use std::{
    ops::Deref,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use kvtile_blocks::events::TierId;
use kvtile_daemon::{Daemon, DaemonSettings, ServedCache};
use kvtile_tiers::{
    TierError,
    cache::{
        Cache, CacheBuilder, CacheSettings, Clock, ConnectSettings, FlushReport, TierSettings,
    },
    disk::{DiskTier, medium::Medium},
    metrics::Queue,
    tier::{Tier, TierContext},
};
use kvtile_transfer::{HasLayout, PhysicalLayout, PhysicalLayoutBuilder};
use parking_lot::Mutex;
use tempfile::TempDir;

/// By how much fewer random seeds a scenario runs than with the fastest keeper.
pub(crate) const SLOWER: u64 = 25;

/// The job queue of the daemon's cache: its default.
const DAEMON_QUEUE: usize = 1024;

/// Builds the engine's layout, in memory of this process.
pub(crate) fn engine(layout: PhysicalLayoutBuilder<HasLayout>) -> PhysicalLayout {
    layout.allocate_system().build().unwrap()
}

/// Opens a cache in a daemon of its own, and connects to it.
pub(crate) fn open(
    settings: CacheSettings,
    engine: PhysicalLayout,
) -> Result<TestCache, TierError> {
    builder(settings).open(engine)
}

/// A builder of a cache. The client has the settings of a process, and the daemon those of the tiers.
pub(crate) fn builder(mut settings: CacheSettings) -> TestBuilder {
    let mut connect = ConnectSettings::new(settings.identity.clone())
        .answer_within(Duration::from_secs(60))
        .workers(settings.workers)
        .queue_capacity(settings.queue_capacity);
    connect.recompute_tokens_per_second = settings.recompute_tokens_per_second.take();
    TestBuilder {
        is_stepped: settings.workers == 0,
        builder: Cache::builder(settings.queue_capacity(DAEMON_QUEUE)),
        connect,
    }
}

/// The components of a cache that a daemon opens.
pub(crate) struct TestBuilder {
    builder: CacheBuilder,
    connect: ConnectSettings,
    is_stepped: bool,
}

impl TestBuilder {
    pub(crate) fn clock(mut self, clock: Arc<dyn Clock>) -> TestBuilder {
        self.builder = self.builder.clock(clock);
        self
    }

    pub(crate) fn medium(mut self, medium: Arc<dyn Medium>) -> TestBuilder {
        self.builder = self.builder.medium(medium);
        self
    }

    pub(crate) fn tier(
        mut self,
        settings: TierSettings,
        open: impl FnOnce(&TierContext) -> Result<Arc<dyn Tier>, TierError> + Send + 'static,
    ) -> TestBuilder {
        self.builder = self.builder.tier(settings, open);
        self
    }

    pub(crate) fn open(self, engine: PhysicalLayout) -> Result<TestCache, TierError> {
        let folder = tempfile::tempdir().unwrap();
        let socket: PathBuf = folder.path().join("socket");
        let builder = Mutex::new(Some(self.builder));
        let maker = move |_: CacheSettings| Ok(builder.lock().take().expect("one cache is opened"));
        let settings = DaemonSettings::new(&socket, 1 << 20);
        let daemon = Daemon::start_with(settings, Arc::new(maker)).unwrap();
        let client = Cache::connect(&socket, self.connect, engine)?;
        let (_, served) = daemon.caches().remove(0);
        Ok(TestCache {
            client,
            served,
            daemon,
            is_stepped: self.is_stepped,
            _folder: folder,
        })
    }
}

/// A cache that is connected to a daemon of its own. The fields are dropped in their order.
pub(crate) struct TestCache {
    client: Cache,
    served: Arc<ServedCache>,
    daemon: Daemon,
    /// Whether the daemon's cache has no threads, so that the caller of `step` runs its jobs.
    is_stepped: bool,
    _folder: TempDir,
}

impl std::fmt::Debug for TestCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.client.fmt(f)
    }
}

impl Deref for TestCache {
    type Target = Cache;

    fn deref(&self) -> &Cache {
        &self.client
    }
}

impl TestCache {
    fn there(&self) -> &Cache {
        self.served.cache()
    }

    /// Whether jobs of the client wait in the daemon.
    fn has_jobs(&self) -> bool {
        let queues = self.there().stats().queues;
        let mut jobs = queues.iter().filter(|one| one.queue != Queue::Spill);
        jobs.any(|queue| queue.depth > 0)
    }

    /// Runs one job of the client, with the jobs that it makes in the daemon; else one step of the
    /// daemon's cache.
    pub(crate) fn step(&self) -> bool {
        if !self.is_stepped {
            return self.client.step() || self.there().step();
        }
        let has_run = std::thread::scope(|scope| {
            let job = scope.spawn(|| self.client.step());
            while !job.is_finished() {
                match self.has_jobs() {
                    true => drop(self.there().step()),
                    false => std::thread::yield_now(),
                }
            }
            job.join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        has_run || self.there().step()
    }

    /// Waits until the daemon has served all frames so far.
    fn settle(&self) {
        let begin = Instant::now();
        let is_busy = || {
            let _ = self.client.tier_stats(TierId::HOST);
            self.daemon
                .status()
                .sessions
                .iter()
                .any(|one| one.in_progress > 0)
        };
        while is_busy() && !self.is_stepped && begin.elapsed() < Duration::from_secs(60) {
            std::thread::yield_now();
        }
    }

    pub(crate) fn check_integrity(&self) {
        self.settle();
        self.there().check_integrity();
    }

    pub(crate) fn look_after(&self) {
        self.there().look_after();
    }

    pub(crate) fn tier(&self, tier: TierId) -> Option<&Arc<dyn Tier>> {
        self.there().tier(tier)
    }

    pub(crate) fn disk(&self) -> Option<&DiskTier> {
        self.there().disk()
    }

    /// Ends the client and the daemon. The report is that of the daemon's cache.
    pub(crate) fn close(self) -> FlushReport {
        drop(self.client);
        drop(self.served);
        let mut reports = self.daemon.stop();
        reports.remove(0).1
    }
}
