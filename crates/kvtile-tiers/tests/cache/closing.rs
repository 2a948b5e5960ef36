//! Closing a cache: it keeps the stored blocks, releases all resources, and works on any thread.

use std::{
    future::Future,
    pin::pin,
    sync::{Arc, mpsc},
    task::{Context, Wake, Waker},
    time::Duration,
};

use kvtile_blocks::events::TierId;
use kvtile_tiers::cache::{Clock, TierWrites};
use parking_lot::Mutex;

use super::{
    bounds::VirtualClock,
    common::{TestEngine, chain, engine_layout, settings, with_disk},
    keeper::{self, TestCache},
};

const DISK: u64 = 4 << 20;

#[test]
fn closing_writes_host_memory_to_the_disk() {
    for writes in [
        TierWrites::OnEviction,
        TierWrites::AtOnce,
        TierWrites::AfterUses(1),
    ] {
        for workers in [0, 2] {
            for is_dropped in [false, true] {
                let folder = tempfile::tempdir().unwrap();
                let open = || {
                    let settings = with_disk(32, folder.path(), DISK);
                    let settings = settings.disk_writes(writes).workers(workers);
                    keeper::open(settings, engine_layout()).unwrap()
                };
                let keys = chain(1, 20);
                let cache = open();
                let mut engine = TestEngine::new(&cache);
                engine.store(&keys, 0);
                let wanted = match writes {
                    TierWrites::AfterUses(_) => engine.load(&keys[..12], 40),
                    _ => 20,
                };
                drop(engine);
                if is_dropped {
                    drop(cache);
                } else {
                    let report = cache.close();
                    assert!(report.durable && report.wanted == wanted, "{report:?}");
                }
                let cache = open();
                assert_eq!(
                    TestEngine::new(&cache).load(&keys, 0),
                    wanted,
                    "{writes:?}, {workers}"
                );
            }
        }
    }
}

/// A clock that advances by a second at each reading.
struct HastyClock(VirtualClock);

impl Clock for HastyClock {
    fn now(&self) -> Duration {
        self.0.advance(Duration::from_secs(1));
        self.0.now()
    }
}

#[test]
fn closing_stops_at_its_time_limit_and_reports_late_blocks() {
    let folder = tempfile::tempdir().unwrap();
    let settings = with_disk(128, folder.path(), 4 << 20).workers(0);
    let open = |seconds| {
        let settings = settings.clone().close_within(Duration::from_secs(seconds));
        let clock = Arc::new(HastyClock(VirtualClock::default()));
        keeper::builder(settings)
            .clock(clock)
            .open(engine_layout())
            .unwrap()
    };
    let cache = open(150);
    // More than one batch.
    for number in 0..5 {
        TestEngine::new(&cache).store(&chain(number, 20), 0);
    }
    let report = cache.close();
    assert!(report.written > 0 && report.late > 0, "{report:?}");
    assert_eq!(report.written + report.late, 100, "{report:?}");
    assert!(!report.durable);
    let cache = open(0);
    let loaded = |number| TestEngine::new(&cache).load(&chain(number, 20), 0);
    assert_eq!((0..5).map(loaded).sum::<usize>(), report.written);
    TestEngine::new(&cache).store(&chain(9, 20), 0);
    let report = cache.close();
    assert_eq!((report.written, report.late), (0, 20), "no time, no writes");
    assert!(!report.durable, "{report:?}");
}

#[test]
fn a_match_outlives_its_cache_without_blocks_and_no_other_cache_loads_it() {
    let open = || keeper::open(settings(16), engine_layout()).unwrap();
    let (cache, keys) = (open(), chain(1, 8));
    TestEngine::new(&cache).store(&keys, 0);
    let nothing = cache.lookup(&chain(2, 3));
    let mut found = cache.lookup(&keys);
    let tail = found.split_off(5);
    assert_eq!((nothing.blocks(), found.blocks(), tail.blocks()), (0, 5, 3));
    // Both parts can be loaded, in any order.
    let mut engine = TestEngine::new(&cache);
    assert_eq!(cache.load(tail, &[45, 46]).unwrap().wait().blocks, 2);
    assert!(engine.holds(&keys[6], 46));
    let tail = found.split_off(4);
    assert_eq!(cache.load(found, &[40, 41]).unwrap().wait().blocks, 2);
    assert!(engine.holds(&keys[1], 41));
    drop(engine);
    drop(cache);
    assert_eq!((nothing.blocks(), tail.blocks()), (0, 0));
    assert_eq!((tail.blocks_in(TierId::HOST), tail.tiers().count()), (0, 0));
    let tail = tail.skip(1).truncate(3);
    let again = open();
    for (found, destinations) in [(tail, &[1][..]), (nothing, &[])] {
        let error = again.load(found, destinations).unwrap_err();
        assert!(error.to_string().contains("another cache"), "{error}");
    }
}

/// A waker that closes the cache, on any thread.
struct ClosingWaker {
    cache: Mutex<Option<TestCache>>,
    closed: mpsc::Sender<()>,
}

impl Wake for ClosingWaker {
    fn wake(self: Arc<Self>) {
        let cache = self.cache.lock().take();
        if let Some(cache) = cache {
            cache.close();
            self.closed.send(()).unwrap();
        }
    }
}

#[test]
fn a_cache_may_be_closed_on_its_own_threads() {
    for is_load in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let open = || keeper::open(with_disk(16, folder.path(), DISK), engine_layout());
        let cache = open().unwrap();
        let keys = chain(1, 8);
        TestEngine::new(&cache).store(&keys, 0);
        let (sender, closed) = mpsc::channel();
        let closer = Arc::new(ClosingWaker {
            cache: Mutex::new(None),
            closed: sender,
        });
        let waker = Waker::from(Arc::clone(&closer));
        let mut context = Context::from_waker(&waker);
        // Locked, so that the waker cannot run before the cache is in its slot.
        let mut place = closer.cache.lock();
        let (mut load, mut store) = (None, None);
        if is_load {
            let found = cache.lookup(&keys);
            let blocks = [40, 41, 42, 43, 44, 45, 46, 47];
            load = Some(cache.load(found, &blocks).unwrap());
        } else {
            let keys = chain(2, 4);
            store = Some(cache.store(&keys, &[20, 21, 22, 23]).unwrap());
        }
        let load = load
            .as_mut()
            .map(|load| pin!(load).poll(&mut context).is_ready());
        let store = store
            .as_mut()
            .map(|store| pin!(store).poll(&mut context).is_ready());
        let is_over = load.or(store).unwrap();
        *place = Some(cache);
        drop(place);
        if is_over {
            // The operation ended before the poll, so this thread closes the cache.
            Arc::clone(&closer).wake();
        }
        closed
            .recv_timeout(Duration::from_secs(30))
            .expect("closing ends");
        // The thread that closed the cache releases the folder when it returns.
        let patience = std::time::Instant::now() + Duration::from_secs(30);
        let cache = loop {
            match open() {
                Ok(cache) => break cache,
                Err(error) => assert!(std::time::Instant::now() < patience, "{error}"),
            }
        };
        assert_eq!(TestEngine::new(&cache).load(&keys, 0), 8);
    }
}
