//! Stored blocks are found and loaded from every tier, in every layout.

use std::time::{Duration, Instant};

use kvtile_blocks::{
    GroupId,
    events::{EventMirror, TierId},
};
use kvtile_layout::{Shape, Unit, Word};
use kvtile_tiers::{
    cache::{LoadOptions, LoadStop, LookupOptions, StoreOptions, StoreStop, TierWrites},
    metrics::{MissReason, MoveStats},
};
use kvtile_transfer::{FillPattern, LayoutHandle, PhysicalLayout};

use super::common::{TestEngine, chain, engine_layout, settings, shape, with_disk};
use super::keeper::{self, TestCache};

const DISK: u64 = 4 << 20;

fn blocks_in(cache: &TestCache, keys: &[kvtile_blocks::BlockKey], tier: TierId) -> usize {
    let found = cache.lookup(keys);
    found.blocks_in(tier)
}

/// Number of blocks moved from one tier to another.
fn moved(cache: &TestCache, source: TierId, destination: TierId) -> u64 {
    let stats = cache.stats();
    let route = |m: &&MoveStats| m.source == source && m.destination == destination;
    stats
        .moves
        .iter()
        .find(route)
        .map_or(0, |moves| moves.blocks)
}

#[test]
fn stored_blocks_are_found_and_loaded() {
    let cache = keeper::open(settings(16), engine_layout()).unwrap();
    let mut engine = TestEngine::new(&cache);
    let keys = chain(1, 6);
    assert_eq!(engine.load(&keys, 0), 0);
    assert_eq!(engine.store(&keys, 0), 6);
    assert_eq!(engine.load(&keys, 20), 6);
    let longer = [chain(1, 6), chain(2, 2)].concat();
    assert_eq!(engine.load(&longer, 30), 6, "the longest stored prefix");
    assert_eq!(engine.load(&chain(2, 6), 40), 0);
    cache.check_integrity();
    let stats = cache.stats();
    assert_eq!(
        (stats.hits[&TierId::HOST], stats.lookup_blocks),
        (12, 6 + 6 + 8 + 6)
    );
    assert_eq!(stats.misses[&MissReason::Absent], 6 + 2 + 6);
    assert!(stats.pinned.values().all(|pins| *pins == 0), "{stats:?}");
}

#[test]
fn storing_again_copies_nothing() {
    let cache = keeper::open(settings(16), engine_layout()).unwrap();
    let engine = TestEngine::new(&cache);
    let keys = chain(1, 4);
    assert_eq!(engine.store(&keys, 0), 4);
    assert_eq!(engine.store(&keys, 10), 0);
    assert_eq!(engine.store(&chain(1, 6), 20), 2, "only what is new");
    assert_eq!(moved(&cache, TierId::DEVICE, TierId::HOST), 4 + 2);
}

/// Pitfall 34: a disk hit that is reported and never loaded.
#[test]
fn blocks_survive_a_restart_on_disk() {
    let folder = tempfile::tempdir().unwrap();
    let keys = chain(7, 9);
    {
        let cache = keeper::open(with_disk(16, folder.path(), DISK), engine_layout()).unwrap();
        let engine = TestEngine::new(&cache);
        engine.store(&keys, 0);
        let flushed = cache.flush();
        assert_eq!((flushed.written, flushed.failed), (9, 0));
        assert!(flushed.durable);
    }
    let cache = keeper::open(with_disk(16, folder.path(), DISK), engine_layout()).unwrap();
    let mut engine = TestEngine::new(&cache);
    assert_eq!(blocks_in(&cache, &keys, TierId::DISK), 9);
    assert_eq!(engine.load(&keys, 0), 9);
    // The load copied them to host memory.
    assert_eq!(blocks_in(&cache, &keys, TierId::HOST), 9);
    assert_eq!(moved(&cache, TierId::DISK, TierId::HOST), 9);
    assert!(cache.disk().unwrap().bytes_per_second().is_some());
    cache.check_integrity();
}

/// Pitfall 27: an eviction that leaves unusable tails; here on the way to the disk.
#[test]
fn evicted_blocks_go_to_disk_in_whole_prefixes() {
    let folder = tempfile::tempdir().unwrap();
    let cache = keeper::open(with_disk(4, folder.path(), DISK), engine_layout()).unwrap();
    let mut engine = TestEngine::new(&cache);
    for number in 0..8 {
        assert_eq!(engine.store(&chain(number, 3), 0), 3);
    }
    for number in 0..8 {
        assert_eq!(engine.load(&chain(number, 3), 10), 3, "chain {number}");
    }
    cache.check_integrity();
    assert!(moved(&cache, TierId::HOST, TierId::DISK) >= 20);
    assert!(moved(&cache, TierId::DISK, TierId::HOST) >= 20);
}

#[test]
fn a_chain_longer_than_host_memory_comes_from_disk_in_pieces() {
    let folder = tempfile::tempdir().unwrap();
    let writes = TierWrites::AtOnce;
    let settings = with_disk(3, folder.path(), DISK)
        .disk_writes(writes)
        .workers(1);
    let cache = keeper::open(settings, engine_layout()).unwrap();
    let mut engine = TestEngine::new(&cache);
    let keys = chain(1, 20);
    // The chain exceeds host memory; its stores evict blocks to disk.
    for first in 0..keys.len() {
        engine.compute(&keys[first], first);
        let stored = cache.store_with(&keys, &[first], &StoreOptions::new().first(first));
        assert_eq!(stored.unwrap().wait().dropped, 0);
        cache.flush();
    }
    assert_eq!(engine.load(&keys, 30), 20);
    cache.check_integrity();
}

#[test]
fn what_is_on_disk_can_be_loaded_while_all_host_memory_is_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let settings = with_disk(3, folder.path(), DISK).workers(0);
    let cache = keeper::open(settings, engine_layout()).unwrap();
    let mut engine = TestEngine::new(&cache);
    let (on_disk, held) = (chain(1, 5), chain(2, 3));
    assert_eq!(engine.store(&on_disk, 0), 5);
    assert_eq!(engine.store(&held, 10), 3);
    let all_of_it = cache.lookup(&held);
    assert_eq!(all_of_it.blocks_in(TierId::HOST), 3);
    assert_eq!(engine.load(&on_disk, 20), 5);
    let prefetch = cache.prefetch(&on_disk).unwrap();
    while cache.step() {}
    let report = prefetch.wait();
    assert!(
        matches!(report.stopped, Some(LoadStop::HostFull)),
        "{report:?}"
    );
    drop(all_of_it);
    assert_eq!(engine.load(&on_disk, 20), 5);
    cache.check_integrity();
}

#[test]
fn blocks_are_written_to_disk_at_once_or_after_uses() {
    for (writes, lookups) in [(TierWrites::AtOnce, 0), (TierWrites::AfterUses(2), 2)] {
        let folder = tempfile::tempdir().unwrap();
        let settings = with_disk(16, folder.path(), DISK)
            .disk_writes(writes)
            .workers(0);
        let cache = keeper::open(settings, engine_layout()).unwrap();
        let mut engine = TestEngine::new(&cache);
        let keys = chain(3, 4);
        engine.store(&keys, 0);
        for _ in 0..lookups {
            assert_eq!(moved(&cache, TierId::HOST, TierId::DISK), 0, "{writes:?}");
            engine.load(&keys, 20);
        }
        while cache.step() {}
        assert_eq!(moved(&cache, TierId::HOST, TierId::DISK), 4, "{writes:?}");
    }
}

#[test]
fn blocks_that_are_to_be_written_take_no_place_in_the_queue() {
    let folder = tempfile::tempdir().unwrap();
    let settings = with_disk(8, folder.path(), DISK)
        .disk_writes(TierWrites::AtOnce)
        .workers(0)
        .queue_capacity(1);
    let cache = keeper::open(settings, engine_layout()).unwrap();
    let mut engine = TestEngine::new(&cache);
    let keys = chain(3, 6);
    let store = |first: usize| {
        engine.compute(&keys[first], first);
        let store = cache.store_with(&keys, &[first], &StoreOptions::new().first(first));
        assert!(cache.step());
        assert_eq!(store.unwrap().wait().stored, 1);
    };
    (0..6).for_each(store);
    let refused: u64 = cache.stats().queues.iter().map(|queue| queue.refused).sum();
    assert_eq!((refused, moved(&cache, TierId::HOST, TierId::DISK)), (0, 0));
    while cache.step() {}
    assert_eq!(moved(&cache, TierId::HOST, TierId::DISK), 6);
    assert_eq!(engine.load(&keys, 20), 6);
    assert!(cache.stats().queues.iter().all(|queue| queue.depth == 0));
}

#[test]
fn prefetching_brings_blocks_to_host_memory() {
    let folder = tempfile::tempdir().unwrap();
    let keys = chain(7, 5);
    {
        let cache = keeper::open(with_disk(8, folder.path(), DISK), engine_layout()).unwrap();
        TestEngine::new(&cache).store(&keys, 0);
        cache.flush();
    }
    let cache = keeper::open(with_disk(8, folder.path(), DISK), engine_layout()).unwrap();
    let report = cache.prefetch(&keys).unwrap().wait();
    assert_eq!(
        (
            report.blocks,
            report.blocks_from(TierId::DISK),
            report.bytes
        ),
        (5, 5, 0)
    );
    assert_eq!(blocks_in(&cache, &keys, TierId::HOST), 5);
}

#[test]
fn layers_can_be_waited_for_one_by_one() {
    let cache = keeper::open(settings(16), engine_layout()).unwrap();
    let mut engine = TestEngine::new(&cache);
    let keys = chain(1, 6);
    engine.store(&keys, 0);
    let found = cache.lookup(&keys);
    let blocks: Vec<usize> = (20..26).collect();
    let load = cache.load(found, &blocks).unwrap();
    for layer in 0..3 {
        assert!(load.wait_layer(layer).is_ok());
        let in_time = load.clone().wait_layer_timeout(layer, Duration::ZERO);
        assert!(in_time.is_some_and(|end| end.is_ok()));
    }
    assert!(load.wait_layer(3).is_err(), "there is no fourth layer");
    assert_eq!(load.wait().blocks, 6);
    assert!(engine.holds(&keys[5], 25));
}

/// A layout of the same identity, in another order and with other blocks than the engine's.
fn another_layout(cache: &TestCache, blocks: u64) -> LayoutHandle {
    let word: Word = "BLKNHC".parse().unwrap();
    let layout = PhysicalLayout::builder().with_shape(shape(blocks));
    let layout = layout.layout(word).allocate_system().build().unwrap();
    cache.manager().register(layout).unwrap()
}

#[test]
fn blocks_may_come_from_and_go_to_another_layout_than_the_engines() {
    let cache = keeper::open(settings(16), engine_layout()).unwrap();
    let (manager, keys) = (cache.manager(), chain(1, 6));
    let other = another_layout(&cache, 6);
    let pattern = FillPattern::Distinct { seed: 4 };
    manager.fill(other, &[0, 1, 2, 3, 4, 5], pattern).unwrap();
    let options = StoreOptions::new().layout(other);
    let stored = cache.store_with(&keys, &[0, 1, 2, 3, 4, 5], &options);
    assert_eq!(stored.unwrap().wait().stored, 6);

    let digest = |layout, block| manager.block_digest(layout, block).unwrap();
    let found = cache.lookup(&keys);
    let blocks: Vec<usize> = (20..26).collect();
    let load = cache.load(found, &blocks).unwrap();
    assert_eq!(load.wait().blocks, 6);
    assert!((0..6).all(|block| digest(other, block) == digest(cache.engine(), block + 20)));

    let third = another_layout(&cache, 2);
    let into = LoadOptions::new().layout(third);
    let found = cache.lookup(&keys);
    assert_eq!(
        cache
            .load_with(found, &[1, 0], &into)
            .unwrap()
            .wait()
            .blocks,
        2
    );
    assert_eq!(digest(third, 0), digest(other, 1));
    let found = cache.lookup(&keys);
    let refused = cache.load_with(found, &[2], &into).unwrap_err();
    assert!(refused.to_string().contains("block 2 is not one of its 2"));
}

#[test]
fn a_layout_of_another_identity_is_refused() {
    let cache = keeper::open(settings(16), engine_layout()).unwrap();
    let manager = cache.manager();
    let unit = Unit::new("f32", 4, 1).unwrap();
    let wider = Shape::key_value(4, 3, 4, 2, 16, &unit).unwrap();
    let layout = PhysicalLayout::builder().with_shape(wider);
    let layout = layout.layout("BLKNHC".parse::<Word>().unwrap());
    let handle = manager.register(layout.allocate_system().build().unwrap());
    let options = StoreOptions::new().layout(handle.unwrap());
    let refused = cache.store_with(&chain(1, 1), &[0], &options).unwrap_err();
    assert!(
        refused.to_string().contains("planes.k.C differs"),
        "{refused}"
    );
    let gone = another_layout(&cache, 2);
    drop(manager.unregister(gone).unwrap());
    let options = options.layout(gone);
    assert!(cache.store_with(&chain(1, 1), &[0], &options).is_err());
}

#[test]
fn the_engines_own_hits_are_skipped() {
    let cache = keeper::open(settings(16), engine_layout()).unwrap();
    let mut engine = TestEngine::new(&cache);
    let keys = chain(1, 6);
    engine.store(&keys, 0);
    let found = cache.lookup(&keys).skip(2).truncate(3);
    assert_eq!(found.blocks(), 3);
    let load = cache.load(found, &[40, 41, 42]).unwrap();
    assert_eq!(load.wait().blocks, 3);
    for (key, block) in keys[2..5].iter().zip(40..) {
        assert!(engine.holds(key, block));
    }
}

#[test]
fn a_cancelled_load_touches_nothing() {
    let cache = keeper::open(settings(16).workers(0), engine_layout()).unwrap();
    let mut engine = TestEngine::new(&cache);
    let keys = chain(1, 3);
    engine.store(&keys, 0);
    engine.poison(20);
    let found = cache.lookup(&keys);
    let load = cache.load(found, &[20, 21, 22]).unwrap();
    load.cancel();
    while cache.step() {}
    let report = load.wait();
    assert!(
        matches!(report.stopped, Some(LoadStop::Cancelled)),
        "{report:?}"
    );
    assert_eq!(report.blocks, 0);
    assert!(!engine.holds(&keys[0], 20));
    // Its pins are released: every block can be evicted.
    assert_eq!(cache.evict(TierId::HOST, 16).unwrap(), 3);
}

/// Pitfall 19: a completion that never resolves.
#[test]
fn jobs_that_wait_when_a_cache_is_closed_complete() {
    let cache = keeper::open(settings(16).workers(0), engine_layout()).unwrap();
    let engine = TestEngine::new(&cache);
    let keys = chain(1, 3);
    engine.store(&keys, 0);
    let found = cache.lookup(&keys);
    let load = cache.load(found, &[20, 21, 22]).unwrap();
    let more = chain(2, 1);
    let store = cache.store(&more, &[9]).unwrap();
    drop(cache);
    assert!(matches!(load.wait().stopped, Some(LoadStop::Closed)));
    assert!(matches!(store.wait().stopped, Some(StoreStop::Closed)));
}

#[test]
fn a_store_that_began_before_a_clearing_keeps_nothing() {
    let cache = keeper::open(settings(16).workers(0), engine_layout()).unwrap();
    let engine = TestEngine::new(&cache);
    let keys = chain(1, 3);
    for (block, key) in keys.iter().enumerate() {
        engine.compute(key, block);
    }
    let store = cache.store(&keys, &[0, 1, 2]).unwrap();
    assert_eq!(cache.clear().unwrap(), 0);
    while cache.step() {}
    let report = store.wait();
    let cleared = matches!(report.stopped, Some(StoreStop::Cleared));
    assert!(cleared && report.dropped == 3, "{report:?}");
    assert_eq!(cache.lookup(&keys).blocks(), 0);
    // A store after it is independent of it.
    engine.store(&keys, 0);
    assert_eq!(cache.lookup(&keys).blocks(), 3);
}

#[test]
fn concurrent_loads_of_a_block_share_one_flight() {
    let folder = tempfile::tempdir().unwrap();
    let keys = chain(7, 12);
    {
        let cache = keeper::open(with_disk(16, folder.path(), DISK), engine_layout()).unwrap();
        TestEngine::new(&cache).store(&keys, 0);
        cache.flush();
    }
    let settings = with_disk(16, folder.path(), DISK).workers(4);
    let cache = keeper::open(settings, engine_layout()).unwrap();
    let mut loads = Vec::new();
    for copy in 0..4 {
        let found = cache.lookup(&keys);
        let blocks: Vec<usize> = (copy * 12..copy * 12 + found.blocks()).collect();
        loads.push(cache.load(found, &blocks).unwrap());
    }
    for load in loads {
        assert_eq!(load.wait().blocks, 12);
    }
    let store = cache.disk().unwrap().store_stats();
    assert_eq!(store.reads, 12, "each block was read once");
    let mut engine = TestEngine::new(&cache);
    for block in 0..48 {
        assert!(engine.holds(&keys[block % 12], block));
    }
}

/// Pitfall 31: events without order, numbers or tiers.
#[test]
fn events_and_snapshots_agree_with_what_is_stored() {
    let folder = tempfile::tempdir().unwrap();
    let cache = keeper::open(with_disk(4, folder.path(), DISK), engine_layout()).unwrap();
    let engine = TestEngine::new(&cache);
    let mut events = cache.subscribe();
    let mut mirror = EventMirror::new();
    for number in 0..5 {
        engine.store(&chain(number, 3), 0);
    }
    cache.flush();
    let fresh = EventMirror::from_snapshot(&cache.snapshot());
    let mut list = Vec::new();
    let (start, mut applied) = (Instant::now(), 0);
    // Events of a daemon come some milliseconds later.
    while mirror.len(TierId::DISK) < 15 || mirror.len(TierId::HOST) > 4 {
        assert!(start.elapsed() < Duration::from_secs(30), "{list:?}");
        events.poll(&mut list, 100).unwrap();
        for event in &list[applied..] {
            assert!(mirror.apply(event));
        }
        applied = list.len();
    }
    for number in 0..5 {
        for key in chain(number, 3) {
            for tier in [TierId::HOST, TierId::DISK] {
                let has = |mirror: &EventMirror| mirror.contains(tier, GroupId(0), &key);
                let (one, other) = (has(&mirror), has(&fresh));
                assert_eq!(one, other, "{key} in {tier:?}");
            }
        }
    }
    assert_eq!(fresh.len(TierId::DISK), 15);
    assert!(list.iter().all(|event| event.group == GroupId(0)));
}

#[test]
fn clearing_forgets_everything_in_every_tier() {
    let folder = tempfile::tempdir().unwrap();
    let keys = chain(1, 6);
    {
        let cache = keeper::open(with_disk(16, folder.path(), DISK), engine_layout()).unwrap();
        TestEngine::new(&cache).store(&keys, 0);
        cache.flush();
        assert_eq!(cache.clear().unwrap(), 12);
        assert_eq!(cache.lookup(&keys).blocks(), 0);
    }
    let cache = keeper::open(with_disk(16, folder.path(), DISK), engine_layout()).unwrap();
    assert_eq!(cache.lookup(&keys).blocks(), 0);
}

/// Pitfall 39: pins that are never released if no load follows the lookup.
#[test]
fn pins_that_are_held_too_long_are_reported() {
    let cache = keeper::open(settings(16), engine_layout()).unwrap();
    let engine = TestEngine::new(&cache);
    let keys = chain(1, 3);
    engine.store(&keys, 0);
    let options = LookupOptions::new()
        .owner(kvtile_blocks::pool::OwnerId(17))
        .hold(Duration::ZERO);
    let found = cache.lookup_with(&keys, &options);
    std::thread::sleep(Duration::from_millis(5));
    let overdue = cache.overdue();
    assert_eq!(overdue.len(), 1);
    assert_eq!((overdue[0].owner.0, overdue[0].blocks), (17, 3));
    drop(found);
    assert!(cache.overdue().is_empty());
}

/// Pitfall 20: a block that is reused before a pending read of it.
#[test]
fn a_pinned_match_is_never_evicted() {
    let cache = keeper::open(settings(4), engine_layout()).unwrap();
    let mut engine = TestEngine::new(&cache);
    let keys = chain(1, 3);
    engine.store(&keys, 0);
    let found = cache.lookup(&keys);
    for number in 10..20 {
        engine.store(&chain(number, 1), 5);
    }
    let blocks = [50, 51, 63];
    let load = cache.load(found, &blocks).unwrap();
    assert_eq!(load.wait().blocks, 3);
    for (key, block) in keys.iter().zip(blocks) {
        assert!(engine.holds(key, block));
    }
}
