//! What a user does: stores of chosen stops, hits, branches, two requests at once, full pools.

use kvtile_blocks::events::TierId;
use kvtile_tiers::groups::{GroupStoreOptions, LoadBlocks, StopOptions, StoreBlocks};

use super::common::{GroupEngine, chain, in_host, needed, settings, settle};

const ALL: [usize; 4] = [0, 1, 2, 3];

#[test]
fn a_stop_is_found_and_loaded_and_a_prefix_of_it_is_not() {
    let engine = GroupEngine::new(&[0, 3]);
    let cache = engine.open(settings(&[0, 3], &[32, 8]));
    let keys = chain(1, 0, 0, 8);
    let report = engine.store(&cache, &keys, &[32]);
    assert!(report.stopped().is_none(), "{report:?}");
    assert_eq!((report.stored(), report.unreachable), (9, 0));
    let found = cache.lookup(&keys);
    assert_eq!(
        (found.stop(), found.stops(), found.branch()),
        (32, vec![32], None)
    );
    assert_eq!(engine.load(&cache, &keys, found).tokens, 32);
    // The spine of a shorter request is there, its state is not.
    let found = cache.lookup(&keys[..6]);
    assert_eq!((found.stop(), found.branch()), (0, Some(24)));
    // Another state makes it a stop.
    assert_eq!(engine.store(&cache, &keys, &[16]).stored(), 1);
    let found = cache.lookup(&keys[..6]);
    assert_eq!((found.stop(), found.branch()), (16, Some(24)));
    assert_eq!(engine.load(&cache, &keys, found).tokens, 16);
    let found = cache.lookup(&keys);
    assert_eq!(found.stops(), [32, 16]);
    let shorter = found.back_to(31);
    assert_eq!(shorter.stop(), 16);
    let at_most = StopOptions::new().at_most(15);
    assert_eq!(cache.lookup_with(&keys, &at_most).stop(), 0);
    let stats = cache.stats();
    assert_eq!((stats.lookups, stats.hits, stats.found_tokens), (6, 4, 96));
}

#[test]
fn every_group_gets_what_its_rule_needs_at_every_stop() {
    let engine = GroupEngine::new(&ALL);
    let cache = engine.open(settings(&ALL, &[40, 40, 40, 20]));
    let keys = chain(1, 0, 0, 12);
    for stop in [8, 16, 24, 32, 40, 48] {
        let report = engine.store(&cache, &keys, &[stop]);
        assert!(report.stopped().is_none(), "{report:?}");
        assert_eq!(report.unreachable, 0);
        let found = cache.lookup(&keys);
        assert_eq!(found.stop(), stop);
        assert_eq!(engine.load(&cache, &keys, found).tokens, stop);
    }
    let found = cache.lookup(&keys);
    assert_eq!(found.stops(), engine.naive(&cache, &keys));
    assert_eq!(found.stops().len(), 6);
    cache.check_integrity();
}

#[test]
fn pages_that_no_stop_needs_are_not_stored() {
    let engine = GroupEngine::new(&ALL);
    let cache = engine.open(settings(&ALL, &[40, 40, 40, 20]));
    let keys = chain(1, 0, 0, 12);
    let all: Vec<usize> = (0..12).collect();
    let states: Vec<usize> = (0..6).collect();
    let blocks = [
        StoreBlocks::new("full", 0, &all),
        StoreBlocks::new("window", 0, &all),
        StoreBlocks::new("chunk", 0, &all),
        StoreBlocks::new("state", 0, &states),
    ];
    let options = GroupStoreOptions::new().stops([48, 40]);
    let store = cache.store_with(&keys, &blocks, &options).unwrap();
    settle(&cache);
    let report = store.wait();
    // 48 is where a chunk begins; 40 needs the pages 8 and 9 of its chunk.
    let window = [40, 48].iter().flat_map(|stop| needed(1, *stop));
    let window: std::collections::HashSet<u64> = window.collect();
    assert_eq!(in_host(&cache, "window"), window.len() as u64);
    assert_eq!((in_host(&cache, "chunk"), in_host(&cache, "state")), (2, 2));
    assert_eq!(in_host(&cache, "full"), 12);
    assert_eq!(report.unreachable, 12 - window.len() + 10 + 4);
    assert_eq!(cache.lookup(&keys).stops(), [48, 40]);
}

#[test]
fn the_spine_alone_is_stored_piece_by_piece_and_a_later_stop_uses_it() {
    let engine = GroupEngine::new(&[0, 3]);
    let cache = engine.open(settings(&[0, 3], &[32, 8]));
    let keys = chain(1, 0, 0, 8);
    let none = GroupStoreOptions::new();
    for (first, ids) in [(0, [0, 1, 2]), (3, [3, 4, 5])] {
        let store = cache.store_with(&keys, &[StoreBlocks::new("full", first, &ids)], &none);
        settle(&cache);
        assert_eq!(store.unwrap().wait().stored(), 3);
    }
    let found = cache.lookup(&keys);
    assert_eq!((found.stop(), found.branch()), (0, Some(24)));
    let store = cache.store(&keys, &[StoreBlocks::new("state", 2, &[1])], 24);
    settle(&cache);
    assert_eq!(store.unwrap().wait().stored(), 1);
    assert_eq!(cache.lookup(&keys).stop(), 24);
}

/// Two requests share a spine, and their windows differ from the place where they branch.
#[test]
fn two_requests_at_once_share_a_spine_and_have_windows_of_their_own() {
    let engine = GroupEngine::new(&ALL);
    let cache = engine.open(settings(&ALL, &[40, 40, 40, 20]));
    for common in 0..8 {
        let number = common as u64;
        let (one, other) = (chain(number, 0, common, 8), chain(number, 1, common, 8));
        engine.store(&cache, &one, &[32]);
        let found = cache.lookup(&other);
        let spine = (common as u64 * 4) / 8 * 8;
        assert_eq!(
            (found.stop(), found.branch()),
            (0, (spine > 0).then_some(spine))
        );
        engine.store(&cache, &other, &[32]);
        let (found, found_other) = (cache.lookup(&one), cache.lookup(&other));
        assert_eq!((found.stop(), found_other.stop()), (32, 32));
        assert_eq!(engine.load(&cache, &one, found).tokens, 32);
        assert_eq!(engine.load(&cache, &other, found_other).tokens, 32);
    }
}

#[test]
fn an_engine_that_has_a_prefix_loads_the_rest() {
    let engine = GroupEngine::new(&ALL);
    let cache = engine.open(settings(&ALL, &[40, 40, 40, 20]));
    let keys = chain(1, 0, 0, 10);
    engine.store(&cache, &keys, &[40]);
    let found = cache.lookup(&keys);
    assert_eq!(found.needs("full", 17).unwrap(), 4..10);
    assert_eq!(found.needs("window", 36).unwrap(), 9..10);
    assert_eq!(found.needs("window", 4).unwrap(), 7..10);
    assert_eq!(found.needs("state", 40).unwrap(), 5..5);
    assert_eq!(found.needs("chunk", 0).unwrap(), 8..10);
    let blocks = [
        LoadBlocks::new("full", &[4, 5, 6, 7, 8, 9]).have(17),
        LoadBlocks::new("window", &[9]).have(36),
        LoadBlocks::new("chunk", &[1, 2]),
        LoadBlocks::new("state", &[3]),
    ];
    let load = cache.load(found, &blocks).unwrap();
    settle(&cache);
    let report = load.wait();
    assert_eq!((report.tokens, report.groups.len()), (40, 4));
    let mut groups = report.groups.iter();
    let loaded = groups.find(|of| of.group == "full").unwrap();
    let loaded = loaded.outcome.as_ref().unwrap();
    assert_eq!((loaded.blocks, loaded.from_host), (6, 6));
}

/// Windows that move on are evicted page by page, the oldest first; the newest stop stays.
#[test]
fn a_full_pool_keeps_the_newest_stops() {
    let engine = GroupEngine::new(&[0, 1, 3]);
    let cache = engine.open(settings(&[0, 1, 3], &[60, 3, 2]));
    let keys = chain(1, 0, 0, 14);
    for stop in [8, 16, 24, 32, 40, 48, 56] {
        engine.store(&cache, &keys, &[stop]);
        let found = cache.lookup(&keys);
        assert_eq!(found.stop(), stop);
        assert_eq!(engine.load(&cache, &keys, found).tokens, stop);
    }
    assert_eq!(cache.lookup(&keys).stops(), engine.naive(&cache, &keys));
    assert_eq!(in_host(&cache, "full"), 14);
    // An attachment that goes leaves the spine: the next stop uses it.
    while cache.evict("state", TierId::HOST, 1).unwrap() > 0 {}
    let found = cache.lookup(&keys);
    assert_eq!((found.stop(), found.branch()), (0, Some(56)));
    drop(found);
    let report = engine.store(&cache, &keys, &[56]);
    assert_eq!((report.stored(), report.present()), (1, 17));
    assert_eq!(cache.lookup(&keys).stop(), 56);
    cache.check_integrity();
}

/// A model without a group with full attention: the keys are the spine.
#[test]
fn states_alone_are_found_by_the_chain() {
    let engine = GroupEngine::new(&[3]);
    let cache = engine.open(settings(&[3], &[8]));
    assert_eq!((cache.unit(), cache.stop_unit()), (8, 8));
    let keys = cache.hasher(&Default::default()).unwrap();
    let keys = keys.keys(&(0..40).collect::<Vec<u32>>());
    let store = |page, block, stop| {
        let store = cache.store(&keys, &[StoreBlocks::new("state", page, &[block])], stop);
        settle(&cache);
        store.unwrap().wait().stored()
    };
    assert_eq!(store(1, 4, 16) + store(3, 5, 32), 2);
    let found = cache.lookup(&keys);
    assert_eq!((found.stop(), found.stops()), (32, vec![32, 16]));
    let load = cache
        .load(found, &[LoadBlocks::new("state", &[9])])
        .unwrap();
    settle(&cache);
    assert_eq!(load.wait().tokens, 32);
    let digest = |block| {
        engine
            .manager
            .block_digest(engine.handles[0], block)
            .unwrap()
    };
    assert_eq!(digest(9), digest(5));
}
