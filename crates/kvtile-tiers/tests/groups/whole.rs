//! Stops stay whole over the groups: written together, and removed together.

use std::{
    cell::Cell,
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use kvtile_blocks::events::TierId;
use kvtile_testkit::disk::SimulatedDisk;
use kvtile_tiers::{disk::medium::Medium, groups::StoreBlocks};

use super::common::{GroupEngine, chain, in_host, settings, settle, with_disk};

/// The spine of an old stop is evicted to the disk, or its state is. Without the other one a restart
/// would find nothing.
#[test]
fn what_is_evicted_to_the_disk_takes_the_rest_of_its_stop_along() {
    for pages in [[7, 9, 9], [40, 1, 9], [40, 40, 1]] {
        let engine = GroupEngine::new(&[0, 1, 3]);
        let disk = SimulatedDisk::new(7);
        let open = |pages: &[u64]| {
            let settings = with_disk(settings(&[0, 1, 3], pages), Path::new("simulated"));
            let medium: Arc<dyn Medium> = Arc::new(disk.clone());
            engine.try_open(settings, Some(medium)).unwrap()
        };
        let cache = open(&pages);
        let old = chain(1, 0, 0, 8);
        engine.store(&cache, &old, &[32]);
        for other in [2, 3] {
            engine.store(&cache, &chain(other, 0, 0, 8), &[32]);
        }
        settle(&cache);
        cache.look_after();
        // Only what is on the disk survives.
        disk.kill();
        drop(cache);
        let cache = open(&pages);
        let found = cache.lookup(&old);
        assert_eq!(found.stop(), 32, "{pages:?}");
        assert_eq!(engine.load(&cache, &old, found).tokens, 32);
    }
}

#[test]
fn a_stop_that_lost_a_page_leaves_its_spine_and_the_pages_of_other_stops() {
    let engine = GroupEngine::new(&[0, 1, 3]);
    let cache = engine.open(settings(&[0, 1, 3], &[40, 40, 1]));
    let keys = chain(1, 0, 0, 12);
    engine.store(&cache, &keys, &[24, 32]);
    // The windows of 24 and 32 tokens are the pages 3 to 5 and 5 to 7.
    assert_eq!(
        (in_host(&cache, "window"), in_host(&cache, "state")),
        (5, 2)
    );
    assert_eq!(cache.stats().known_stops, 2);
    // A third state takes the place of one of them.
    engine.store(&cache, &keys, &[48]);
    settle(&cache);
    let stops = cache.lookup(&keys).stops();
    assert_eq!((stops.len(), stops[0]), (2, 48));
    assert_eq!(in_host(&cache, "state"), 2);
    assert_eq!(in_host(&cache, "window"), 6);
    assert_eq!(
        (in_host(&cache, "full"), cache.stats().known_stops),
        (12, 2)
    );
    assert_eq!(stops, engine.naive(&cache, &keys));
    // Without the end of its spine a stop is nothing.
    cache.evict("full", TierId::HOST, 1).unwrap();
    settle(&cache);
    assert_eq!((in_host(&cache, "full"), in_host(&cache, "state")), (11, 1));
    assert_eq!(
        (in_host(&cache, "window"), cache.stats().known_stops),
        (3, 1)
    );
    cache.check_integrity();
}

/// An engine may store the groups of a stop with several calls. Until the last one it is no stop that has lost a page.
#[test]
fn a_stop_that_comes_in_parts_is_known_once_all_of_it_is_stored() {
    let engine = GroupEngine::new(&[0, 1, 3]);
    let cache = engine.open(settings(&[0, 1, 3], &[40, 40, 4]));
    let keys = chain(1, 0, 0, 8);
    let store = |blocks: StoreBlocks<'_>| {
        let stored = cache.store(&keys, &[blocks], 32).unwrap();
        settle(&cache);
        let report = stored.try_result().expect("the store has ended");
        assert!(report.stopped().is_none(), "{report:?}");
    };
    store(StoreBlocks::new("state", 3, &[0]));
    store(StoreBlocks::new("full", 0, &[0, 1, 2, 3, 4, 5, 6, 7]));
    assert_eq!(cache.stats().known_stops, 0);
    assert_eq!(cache.lookup(&keys).stop(), 0);
    // A page that leaves does not take the state of the unknown stop along.
    let other = chain(2, 0, 0, 8);
    engine.store(&cache, &other, &[32]);
    cache.evict("window", TierId::HOST, 1).unwrap();
    settle(&cache);
    assert_eq!(
        (cache.stats().known_stops, in_host(&cache, "state")),
        (0, 1)
    );
    store(StoreBlocks::new("window", 5, &[5, 6, 7]));
    assert_eq!(cache.stats().known_stops, 1);
    assert_eq!(cache.lookup(&keys).stop(), 32);
}

/// The thread that keeps stops whole waits for events: it takes turns when pages come and go, and none at
/// other times.
#[test]
fn an_idle_cache_takes_no_turns() {
    let engine = GroupEngine::new(&[0, 1, 3]);
    let cache = engine.open(settings(&[0, 1, 3], &[40, 40, 4]).workers(1));
    let turns = || cache.stats().keeper_turns;
    let until = |is_done: &dyn Fn() -> bool| {
        let begin = Instant::now();
        while !is_done() {
            assert!(
                begin.elapsed() < Duration::from_secs(60),
                "{} turns",
                turns()
            );
            thread::sleep(Duration::from_millis(1));
        }
    };
    // Nothing has happened yet.
    assert_eq!(turns(), 0);
    engine.store(&cache, &chain(1, 0, 0, 8), &[32]);
    until(&|| turns() > 0);
    // The turns for the events of the store end; from then on there are none.
    let last = Cell::new(0);
    until(&|| {
        thread::sleep(Duration::from_millis(50));
        last.replace(turns()) == turns()
    });
    let before = turns();
    thread::sleep(Duration::from_millis(100));
    assert_eq!(turns(), before);
    // A page that goes is followed at once.
    cache.evict("state", TierId::HOST, 1).unwrap();
    until(&|| turns() > before);
    until(&|| cache.stats().known_stops == 0);
}
