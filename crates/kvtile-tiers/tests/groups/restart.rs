//! Folders: restarts, damage, other settings.

use std::fs;

use kvtile_blocks::events::TierId;
use kvtile_tiers::{cache::TierWrites, groups::StopOptions};

use super::common::{GroupEngine, chain, in_host, settings, settle, with_disk};

const ALL: [usize; 4] = [0, 1, 2, 3];

#[test]
fn a_restart_finds_the_stops_of_a_closed_cache() {
    let folder = tempfile::tempdir().unwrap();
    let engine = GroupEngine::new(&ALL);
    let small = || with_disk(settings(&ALL, &[12, 3, 4, 2]), folder.path());
    let cache = engine.open(small());
    let keys: Vec<_> = (0..4).map(|number| chain(number, 0, 0, 10)).collect();
    for keys in &keys {
        engine.store(&cache, keys, &[16, 40]);
    }
    for (name, report) in cache.close() {
        assert!(report.durable, "{name}: {report:?}");
    }
    let cache = engine.open(small());
    cache.check_integrity();
    for keys in &keys {
        let found = cache.lookup(keys);
        assert_eq!((found.stop(), found.stops()), (40, vec![40, 16]));
        assert_eq!(engine.load(&cache, keys, found).tokens, 40);
        let found = cache.lookup(&keys[..5]);
        assert_eq!(engine.load(&cache, keys, found).tokens, 16);
    }
    drop(cache);
    // Other rules make other keys, other groups are refused.
    let other = GroupEngine::new(&[0, 1]);
    let two = with_disk(settings(&[0, 1], &[12, 3]), folder.path());
    let refused = other.try_open(two, None);
    assert!(refused.err().unwrap().to_string().contains("chunk"));
}

/// A stop is worth its loading as a whole. Without the rate, and in host memory, it is found anyway.
#[test]
fn a_stop_that_loads_more_slowly_than_it_computes_is_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let engine = GroupEngine::new(&[0, 1, 3]);
    let disk = || with_disk(settings(&[0, 1, 3], &[20, 9, 4]), folder.path());
    let keys = chain(1, 0, 0, 10);
    let cache = engine.open(disk());
    engine.store(&cache, &keys, &[24, 40]);
    drop(cache);
    let cache = engine.open(disk());
    let at = |rate: f64| {
        let options = StopOptions::new().recompute_tokens_per_second(rate);
        cache.lookup_with(&keys, &options).stop()
    };
    // Before the first read nothing is known of the disk.
    assert_eq!(at(1e12), 40);
    let other = cache.lookup(&keys[..6]);
    assert_eq!(engine.load(&cache, &keys[..6], other).tokens, 24);
    // The shorter stop is in host memory now, and the rest of the longer one takes time.
    assert_eq!((at(1e12), at(1e-3)), (24, 40));
    assert_eq!((at(f64::NAN), at(0.0), at(-1.0)), (40, 40, 40));
    let found = cache.lookup(&keys);
    assert_eq!(engine.load(&cache, &keys, found).tokens, 40);
    assert_eq!(at(1e12), 40);
    // The rate may be one of the settings.
    drop(cache);
    let cache = engine.open(disk().recompute_tokens_per_second(1e12));
    let at = |rate: f64| {
        let options = StopOptions::new().recompute_tokens_per_second(rate);
        cache.lookup_with(&keys, &options).stop()
    };
    let found = cache.lookup(&keys);
    assert_eq!(engine.load(&cache, &keys, found).tokens, 40);
    // Nothing in host memory: no stop is worth it at that rate.
    for name in ["full", "window", "state"] {
        cache.evict(name, TierId::HOST, 20).unwrap();
    }
    assert_eq!((cache.lookup(&keys).stop(), at(1e12), at(1e-3)), (0, 0, 40));
}

/// However many longer ones are on disk.
#[test]
fn the_stop_in_host_memory_is_found_behind_a_hundred_on_disk() {
    let folder = tempfile::tempdir().unwrap();
    let engine = GroupEngine::new(&[0, 1]);
    let disk = || with_disk(settings(&[0, 1], &[110, 110]), folder.path());
    let keys = chain(1, 0, 0, 100);
    let cache = engine.open(disk());
    let stops: Vec<u64> = (1..=100).map(|unit| unit * 4).collect();
    engine.store(&cache, &keys, &stops);
    drop(cache);
    let cache = engine.open(disk());
    let found = cache.lookup(&keys[..3]);
    assert_eq!(engine.load(&cache, &keys[..3], found).tokens, 12);
    let at = |rate: f64| {
        let options = StopOptions::new().recompute_tokens_per_second(rate);
        cache.lookup_with(&keys, &options).stop()
    };
    assert_eq!((at(1e12), at(1e-3)), (12, 400));
}

#[test]
fn a_prefetch_brings_what_the_stop_needs_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let engine = GroupEngine::new(&[0, 1, 3]);
    let disk = || with_disk(settings(&[0, 1, 3], &[20, 9, 4]), folder.path());
    let keys = chain(1, 0, 0, 10);
    let cache = engine.open(disk());
    engine.store(&cache, &keys, &[24, 40]);
    drop(cache);
    let cache = engine.open(disk());
    let prefetch = cache.prefetch(cache.lookup(&keys)).unwrap();
    settle(&cache);
    let report = prefetch.wait();
    assert_eq!((report.tokens, report.wanted), (40, 40), "{report:?}");
    let there = ["full", "window", "state"].map(|name| in_host(&cache, name));
    assert_eq!(there, [10, 3, 1]);
    let found = cache.lookup(&keys);
    let report = engine.load(&cache, &keys, found);
    let from_host = report
        .groups
        .iter()
        .map(|of| of.outcome.as_ref().unwrap().from_host);
    assert_eq!((report.tokens, from_host.sum::<usize>()), (40, 14));
    // Of nothing nothing is brought, and a match of another cache is refused.
    let nothing = cache.prefetch(cache.lookup(&chain(2, 0, 0, 10))).unwrap();
    assert_eq!(nothing.try_result().unwrap().tokens, 0);
    let other = engine.open(settings(&[0, 1, 3], &[20, 9, 4]));
    assert!(other.prefetch(cache.lookup(&keys)).is_err());
}

/// A flipped bit in a state: the stop before it, or a miss, and a count.
#[test]
fn a_flipped_bit_in_a_state_costs_that_stop() {
    let folder = tempfile::tempdir().unwrap();
    let engine = GroupEngine::new(&[0, 3]);
    let disk = || with_disk(settings(&[0, 3], &[12, 2]), folder.path());
    let keys = chain(1, 0, 0, 8);
    let cache = engine.open(disk());
    engine.store(&cache, &keys, &[16]);
    engine.store(&cache, &keys, &[32]);
    drop(cache);
    let file = folder.path().join("slots-1");
    let mut bytes = fs::read(&file).unwrap();
    // The later state is in the second slot that is not empty.
    let slots = bytes
        .chunks_mut(4096)
        .filter(|slot| slot.iter().any(|byte| *byte != 0));
    let mut slots: Vec<&mut [u8]> = slots.collect();
    assert_eq!(slots.len(), 2);
    slots[1][77] ^= 4;
    fs::write(&file, &bytes).unwrap();
    let cache = engine.open(disk());
    let found = cache.lookup(&keys);
    let stop = found.stop();
    assert_eq!(stop, 32);
    let report = engine.load(&cache, &keys, found);
    assert_eq!(report.tokens, 0, "{report:?}");
    assert_eq!(report.stopped().unwrap().0, "state");
    let found = cache.lookup(&keys);
    assert_eq!((found.stop(), found.branch()), (16, Some(32)));
    assert_eq!(engine.load(&cache, &keys, found).tokens, 16);
    let damaged = |group| cache.tier_stats(group, TierId::DISK).unwrap().damaged;
    assert_eq!((damaged("state"), damaged("full")), (1, 0));
    assert_eq!(
        cache.stats().groups[1].1.checksum_failures[&TierId::DISK],
        1
    );
}

#[test]
fn groups_write_at_once_where_the_disk_is_set_so() {
    let folder = tempfile::tempdir().unwrap();
    let engine = GroupEngine::new(&ALL);
    let mut at_once = with_disk(settings(&ALL, &[20, 8, 8, 4]), folder.path());
    at_once.disk.as_mut().unwrap().writes = TierWrites::AtOnce;
    let cache = engine.open(at_once);
    let keys = chain(1, 0, 0, 8);
    engine.store(&cache, &keys, &[24]);
    for group in ["full", "window", "chunk", "state"] {
        let on_disk = cache.tier_stats(group, TierId::DISK).unwrap().present;
        let in_host = cache.tier_stats(group, TierId::HOST).unwrap().present;
        assert_eq!(on_disk, in_host, "{group}");
    }
    // Evicted from one place, found in the other.
    assert!(cache.evict("window", TierId::HOST, 9).unwrap() > 0);
    assert_eq!(cache.evict("state", TierId::DISK, 9).unwrap(), 1);
    let found = cache.lookup(&keys);
    assert_eq!(engine.load(&cache, &keys, found).tokens, 24);
    assert_eq!(cache.evict("window", TierId::DISK, 9).unwrap(), 3);
    assert!(cache.clear().unwrap() > 0);
    assert_eq!(cache.lookup(&keys).branch(), None);
    assert_eq!(cache.snapshot().blocks.len(), 0);
}
