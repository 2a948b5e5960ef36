//! Stops stay whole over the groups: written together, and gone together.

use std::{path::Path, sync::Arc};

use kvtile_blocks::events::TierId;
use kvtile_testkit::disk::SimulatedDisk;
use kvtile_tiers::{disk::medium::Medium, groups::GroupCache};

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
            let builder = GroupCache::builder(settings).medium(medium);
            let handles = &engine.handles;
            builder
                .open_registered(Arc::clone(&engine.manager), handles)
                .unwrap()
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
