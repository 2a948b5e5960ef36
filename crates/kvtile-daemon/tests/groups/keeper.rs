//! The keeper of the caches under test: a daemon with one client. Calls go through the client; what only
//! the process with the tiers has comes from the daemon's cache.

use std::{
    ops::Deref,
    sync::Arc,
    time::{Duration, Instant},
};

use kvtile_blocks::events::TierId;
use kvtile_daemon::{CacheMaker, Daemon, DaemonSettings, ServedCache};
use kvtile_tiers::{
    TierError,
    cache::{Cache, CacheBuilder, CacheSettings, FlushReport},
    disk::medium::Medium,
    groups::{GroupCache, GroupCacheBuilder, GroupCacheSettings, GroupConnectSettings},
    metrics::Queue,
    tier::Tier,
};
use kvtile_transfer::{LayoutHandle, TransferManager};
use parking_lot::Mutex;
use tempfile::TempDir;

/// By how much fewer random seeds a scenario runs than with the fastest keeper.
pub(crate) const SLOWER: u64 = 10;

/// The job queue of the daemon's cache: its default.
const DAEMON_QUEUE: usize = 1024;

/// Makes the one cache of a test.
struct OneMaker(Mutex<Option<GroupCacheBuilder>>);

impl CacheMaker for OneMaker {
    fn cache(&self, settings: CacheSettings) -> Result<CacheBuilder, TierError> {
        Ok(Cache::builder(settings))
    }

    fn groups(&self, _: GroupCacheSettings) -> Result<GroupCacheBuilder, TierError> {
        Ok(self.0.lock().take().expect("one cache is opened"))
    }
}

/// Opens a cache in a daemon of its own, and connects to it.
pub(crate) fn open(
    mut settings: GroupCacheSettings,
    medium: Option<Arc<dyn Medium>>,
    (manager, handles): (Arc<TransferManager>, &[Option<LayoutHandle>]),
) -> Result<TestGroups, TierError> {
    let mut connect = GroupConnectSettings::of_groups(settings.groups.clone())?
        .answer_within(Duration::from_secs(60))
        .workers(settings.workers)
        .queue_capacity(settings.queue_capacity);
    connect.identity.chain = settings.chain;
    connect.recompute_tokens_per_second = settings.recompute_tokens_per_second.take();
    let is_stepped = settings.workers == 0;
    // The order of a hello.
    settings
        .groups
        .sort_by(|one, other| one.name.cmp(&other.name));
    let mut builder = GroupCache::builder(settings.queue_capacity(DAEMON_QUEUE));
    if let Some(medium) = medium {
        builder = builder.medium(medium);
    }
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let maker = Arc::new(OneMaker(Mutex::new(Some(builder))));
    let of_daemon = DaemonSettings::new(&socket, 1 << 20);
    let daemon = Daemon::start_with(of_daemon, maker).unwrap();
    let client = GroupCache::connect_registered(&socket, connect, manager, handles)?;
    let (_, served) = daemon.caches().remove(0);
    Ok(TestGroups {
        client,
        served,
        daemon,
        is_stepped,
        _folder: folder,
    })
}

/// A cache that is connected to a daemon of its own. The fields are dropped in their order.
pub(crate) struct TestGroups {
    client: GroupCache,
    served: Arc<ServedCache>,
    daemon: Daemon,
    /// Whether the daemon's cache has no threads, so that the caller of `step` runs its jobs.
    is_stepped: bool,
    _folder: TempDir,
}

impl std::fmt::Debug for TestGroups {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.client.fmt(f)
    }
}

impl Deref for TestGroups {
    type Target = GroupCache;

    fn deref(&self) -> &GroupCache {
        &self.client
    }
}

impl TestGroups {
    fn there(&self) -> &GroupCache {
        self.served.group_cache().expect("a cache with groups")
    }

    /// Whether jobs of the client wait in the daemon.
    fn has_jobs(&self) -> bool {
        let groups = self.there().stats().groups;
        let queues = groups.iter().flat_map(|(_, stats)| &stats.queues);
        let mut jobs = queues.filter(|one| one.queue != Queue::Spill);
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
        // A call comes after the frames before it.
        let _ = self.client.stop_counts();
        has_run || self.there().step()
    }

    /// Waits until the daemon has served all frames so far.
    fn settle(&self) {
        let begin = Instant::now();
        let is_busy = || {
            let _ = self.client.stop_counts();
            let sessions = self.daemon.status().sessions;
            sessions.iter().any(|one| one.in_progress > 0)
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

    /// Ends the client and the daemon. The reports are those of the daemon's cache.
    pub(crate) fn close(self) -> Vec<(String, FlushReport)> {
        drop(self.client);
        drop(self.served);
        self.daemon.stop()
    }
}
