//! A panic on a thread of the cache ends the operation that waits for it, and nothing else.

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    task::{Context, Wake, Waker},
    thread,
    time::{Duration, Instant},
};

use kvtile_blocks::events::TierId;
use kvtile_tiers::cache::{
    Cache, CacheSettings, Clock, FlushReport, LoadStop, StoreOptions, StoreStop, SystemClock,
    TierWrites,
};

use super::{
    common::{TestEngine, chain, engine_layout, settings, with_disk},
    hooked::{HookedFolder, HookedOperation},
};

/// Longer than anything here takes without a hang.
const BOUND: Duration = Duration::from_secs(30);

/// Whether the fault panics.
type ArmedFlag = Arc<AtomicBool>;

/// A clock that panics on one thread of a cache while it is armed.
struct PanickingClock {
    clock: SystemClock,
    thread: &'static str,
    armed: ArmedFlag,
}

impl Clock for PanickingClock {
    fn now(&self) -> Duration {
        let is_there = thread::current().name() == Some(self.thread);
        assert!(
            !is_there || !self.armed.load(Ordering::SeqCst),
            "the clock panics for the test"
        );
        self.clock.now()
    }
}

/// A cache whose clock panics on `thread` while the flag is set.
fn with_clock(settings: CacheSettings, thread: &'static str) -> (Cache, ArmedFlag) {
    let armed = ArmedFlag::default();
    let clock = PanickingClock {
        clock: SystemClock::default(),
        thread,
        armed: Arc::clone(&armed),
    };
    let builder = Cache::builder(settings).clock(Arc::new(clock));
    (builder.open(engine_layout()).unwrap(), armed)
}

/// A cache whose disk panics before `operation` while the flag is set.
fn with_medium(settings: CacheSettings, operation: HookedOperation) -> (Cache, ArmedFlag) {
    let armed = ArmedFlag::default();
    let (hook, folder) = (
        Arc::clone(&armed),
        settings.disk.as_ref().unwrap().folder.clone(),
    );
    let medium = HookedFolder::new(&folder, move |now| {
        // Syncs also read, to check the files; only reads of loads panic.
        let thread = thread::current();
        let is_load = thread
            .name()
            .is_some_and(|name| name.starts_with("kvtile-read"));
        let is_meant = now == operation && (now != HookedOperation::Read || is_load);
        assert!(
            !is_meant || !hook.load(Ordering::SeqCst),
            "the disk panics for the test"
        );
    });
    let builder = Cache::builder(settings).medium(Arc::new(medium));
    (builder.open(engine_layout()).unwrap(), armed)
}

/// Closes the cache, which must not hang.
fn closed(cache: Cache) -> FlushReport {
    let (sender, report) = mpsc::channel();
    thread::spawn(move || sender.send(cache.close()));
    report.recv_timeout(BOUND).unwrap()
}

fn until(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < BOUND, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_load_that_panics_ends_with_an_error_and_its_thread_does_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let settings = with_disk(8, folder.path(), 4 << 20).workers(1);
    let (cache, armed) = with_medium(settings, HookedOperation::Read);
    let mut engine = TestEngine::new(&cache);
    let keys = chain(1, 4);
    assert_eq!(engine.store(&keys, 0), 4);
    assert_eq!(cache.evict(TierId::HOST, 4).unwrap(), 4);
    armed.store(true, Ordering::SeqCst);
    let found = cache.lookup(&keys);
    assert_eq!(found.blocks_in(TierId::DISK), 4);
    let load = cache.load(found, &[20, 21, 22, 23]).unwrap();
    let layer = load.wait_layer_timeout(0, BOUND);
    assert!(layer.expect("its layers end").is_err());
    let report = load.wait_timeout(BOUND).expect("it ends");
    assert_eq!(report.blocks, 0);
    assert!(
        matches!(report.stopped, Some(LoadStop::Panicked)),
        "{report:?}"
    );
    armed.store(false, Ordering::SeqCst);
    // The blocks are still stored, nothing is held, and the only worker runs the next load.
    assert_eq!(engine.load(&keys, 30), 4);
    drop(engine);
    cache.check_integrity();
    assert!(cache.stats().pinned.values().all(|pins| *pins == 0));
    assert!(closed(cache).durable);
}

#[test]
fn a_store_that_panics_ends_with_an_error_and_resumes_the_stores_that_wait_for_it() {
    let (cache, armed) = with_clock(settings(8).workers(1), "kvtile-cache-0");
    let keys = chain(1, 4);
    let engine = TestEngine::new(&cache);
    (0..4).for_each(|block| engine.compute(&keys[block], block));
    armed.store(true, Ordering::SeqCst);
    // The tail is parked until the store of its parent ends.
    let head = cache.store(&keys, &[0, 1]);
    let tail = cache.store_with(&keys, &[2, 3], &StoreOptions::new().first(2));
    let stops = [head, tail].map(|store| {
        let report = store.unwrap().wait_timeout(BOUND).expect("it ends");
        assert_eq!((report.stored, report.dropped), (0, 2));
        report.stopped.unwrap()
    });
    assert!(
        stops
            .iter()
            .all(|stop| matches!(stop, StoreStop::Panicked | StoreStop::NoAncestors)),
        "{stops:?}"
    );
    assert!(matches!(stops[0], StoreStop::Panicked), "{stops:?}");
    // The periodic work panics too, and the thread survives.
    thread::sleep(Duration::from_millis(500));
    armed.store(false, Ordering::SeqCst);
    let mut engine = engine;
    assert_eq!(engine.store(&keys, 0), 4);
    assert_eq!(engine.load(&keys, 30), 4);
    drop(engine);
    cache.check_integrity();
    closed(cache);
}

/// A waker that panics, and one that records its call.
struct PanicOnWake;

struct RecordingWaker(AtomicBool);

impl Wake for PanicOnWake {
    fn wake(self: Arc<Self>) {
        panic!("a waker that was asked to panic");
    }
}

impl Wake for RecordingWaker {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn a_waker_that_panics_stops_neither_other_waiters_nor_jobs() {
    let folder = tempfile::tempdir().unwrap();
    let settings = with_disk(8, folder.path(), 4 << 20).workers(1);
    let builder = Cache::builder(settings);
    let gate = Arc::new(parking_lot::Mutex::new(()));
    let hook = Arc::clone(&gate);
    let medium = HookedFolder::new(folder.path(), move |operation| {
        if operation == HookedOperation::Read {
            drop(hook.lock());
        }
    });
    let cache = builder
        .medium(Arc::new(medium))
        .open(engine_layout())
        .unwrap();
    let mut engine = TestEngine::new(&cache);
    let keys = chain(1, 2);
    engine.store(&keys, 0);
    cache.evict(TierId::HOST, 2).unwrap();
    let closed_gate = gate.lock();
    let found = cache.lookup(&keys);
    let load = cache.load(found, &[20, 21]).unwrap();
    let good = Arc::new(RecordingWaker(AtomicBool::new(false)));
    let wakers = [
        Waker::from(Arc::new(PanicOnWake)),
        Waker::from(Arc::clone(&good)),
        Waker::from(Arc::new(PanicOnWake)),
    ];
    let mut waiting: Vec<_> = wakers.iter().map(|_| load.clone()).collect();
    for (waiter, waker) in waiting.iter_mut().zip(&wakers) {
        let polled = pin!(waiter).poll(&mut Context::from_waker(waker));
        assert!(polled.is_pending());
    }
    drop(closed_gate);
    assert_eq!(load.wait_timeout(BOUND).expect("it ends").blocks, 2);
    until("the other waiter is woken", || {
        good.0.load(Ordering::SeqCst)
    });
    assert_eq!(engine.load(&keys, 30), 2);
    drop(engine);
    cache.check_integrity();
    closed(cache);
}

#[test]
fn a_write_or_a_sync_that_panics_is_a_failure_and_leaves_the_disk_in_order() {
    for operation in [HookedOperation::Write, HookedOperation::Sync] {
        let folder = tempfile::tempdir().unwrap();
        let settings = with_disk(8, folder.path(), 4 << 20).workers(1);
        let (cache, armed) = with_medium(settings, operation);
        let mut engine = TestEngine::new(&cache);
        let keys = chain(1, 4);
        assert_eq!(engine.store(&keys, 0), 4);
        armed.store(true, Ordering::SeqCst);
        let flushed = cache.flush();
        assert!(!flushed.durable, "{operation:?}: {flushed:?}");
        cache.check_integrity();
        armed.store(false, Ordering::SeqCst);
        let flushed = cache.flush();
        assert!(
            flushed.durable && flushed.written == 4,
            "{operation:?}: {flushed:?}"
        );
        assert_eq!(cache.evict(TierId::HOST, 4).unwrap(), 4);
        assert_eq!(engine.load(&keys, 30), 4);
        drop(engine);
        cache.check_integrity();
        assert!(closed(cache).durable);
    }
}

#[test]
fn the_thread_of_the_disk_goes_on_after_a_panic() {
    let folder = tempfile::tempdir().unwrap();
    let settings = with_disk(8, folder.path(), 4 << 20)
        .workers(1)
        .disk_writes(TierWrites::AtOnce);
    let (cache, armed) = with_clock(settings, "kvtile-cache-disk");
    // Without `step`, which would do the work of the disk's thread on this thread.
    let store = |number, block| {
        let options = StoreOptions::default();
        let store = cache.store_with(&chain(number, 2), &[block, block + 1], &options);
        let report = store.unwrap().wait_timeout(BOUND).expect("it ends");
        assert_eq!(report.stored, 2, "{report:?}");
    };
    armed.store(true, Ordering::SeqCst);
    store(1, 0);
    thread::sleep(Duration::from_millis(300));
    armed.store(false, Ordering::SeqCst);
    // The same thread writes the next blocks and syncs them in time.
    store(2, 4);
    until("the stored blocks are written", || {
        cache.disk().unwrap().store_stats().used >= 2
    });
    until("the written blocks are durable", || {
        cache.disk().unwrap().store_stats().syncs > 0
    });
    assert!(cache.flush().durable);
    cache.check_integrity();
    assert!(closed(cache).durable);
}

#[test]
fn closing_ends_while_a_thread_still_panics() {
    for thread in ["kvtile-cache-0", "kvtile-cache-disk"] {
        let folder = tempfile::tempdir().unwrap();
        let settings = with_disk(8, folder.path(), 4 << 20)
            .workers(1)
            .disk_writes(TierWrites::AtOnce);
        let (cache, armed) = with_clock(settings, thread);
        armed.store(true, Ordering::SeqCst);
        let store = cache.store(&chain(1, 2), &[0, 1]);
        store.unwrap().wait_timeout(BOUND).expect("it ends");
        closed(cache);
    }
}
