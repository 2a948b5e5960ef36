//! Durability: blocks reported as durable survive a crash, syncs happen in time under load, and
//! other blocks are reported as not durable.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use kvtile_blocks::events::TierId;
use kvtile_testkit::disk::{DiskFaults, SimulatedDisk};
use kvtile_tiers::{
    cache::{CacheSettings, Clock, SYNC_BLOCKS, SYNC_WITHIN, TierWrites},
    disk::medium::Medium,
};

use super::{
    bounds::VirtualClock,
    common::{TestEngine, chain, engine_layout, with_disk},
    keeper::{self, TestBuilder, TestCache},
};

const DISK: u64 = 4 << 20;

fn on(disk: &SimulatedDisk, settings: CacheSettings) -> TestBuilder {
    keeper::builder(settings).medium(Arc::new(disk.clone()) as Arc<dyn Medium>)
}

fn simulated(host: u64, disk_bytes: u64) -> CacheSettings {
    with_disk(host, Path::new("simulated"), disk_bytes)
}

/// The number of leading blocks of chain 1 that survive a power cut now.
fn after_a_crash(disk: &SimulatedDisk, cache: TestCache) -> usize {
    disk.crash();
    drop(cache);
    let cache = on(disk, simulated(64, DISK).workers(0))
        .open(engine_layout())
        .unwrap();
    TestEngine::new(&cache).load(&chain(1, 64), 0)
}

/// A cache that is never idle still writes and syncs.
#[test]
fn blocks_that_are_written_at_once_become_durable_while_the_cache_is_busy() {
    let disk = SimulatedDisk::new(1);
    let settings = simulated(64, DISK)
        .disk_writes(TierWrites::AtOnce)
        .workers(1);
    let cache = on(&disk, settings).open(engine_layout()).unwrap();
    let engine = TestEngine::new(&cache);
    engine.store(&chain(9, 4), 60);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for thread in 0..2 {
            let (cache, is_over) = (&cache, &is_over);
            scope.spawn(move || {
                let keys = chain(9, 4);
                let at = 44 + thread * 4;
                while !is_over.load(Ordering::Relaxed) {
                    let found = cache.lookup(&keys);
                    let load = cache.load(found, &[at, at + 1, at + 2, at + 3]);
                    drop(load.map(|load| load.wait()));
                }
            });
        }
        let engine = TestEngine::new(&cache);
        let keys = chain(1, 40);
        let store = engine.store_from(&keys, 0, 0);
        assert_eq!((store.stored, store.dropped), (40, 0), "{store:?}");
        // The bound is 250 ms after the write; a loaded machine gets more time.
        let patience = Instant::now() + Duration::from_secs(30);
        let syncs = || cache.disk().unwrap().store_stats().syncs;
        while cache.stats().stored.get(&TierId::DISK) != Some(&44) && Instant::now() < patience {
            thread::sleep(Duration::from_millis(5));
        }
        let before = syncs();
        while syncs() == before && Instant::now() < patience {
            thread::sleep(SYNC_WITHIN / 5);
        }
        thread::sleep(SYNC_WITHIN);
        is_over.store(true, Ordering::Relaxed);
    });
    drop(engine);
    assert_eq!(after_a_crash(&disk, cache), 40);
}

/// Both bounds of a sync: the number of blocks, and the time.
#[test]
fn a_sync_is_made_after_so_many_blocks_and_after_so_much_time() {
    for (blocks, time, durable) in [
        (8, Duration::ZERO, 0),
        (8, SYNC_WITHIN, 8),
        (SYNC_BLOCKS, Duration::ZERO, SYNC_BLOCKS),
    ] {
        let disk = SimulatedDisk::new(1);
        let clock = Arc::new(VirtualClock::default());
        let settings = simulated(64, DISK)
            .disk_writes(TierWrites::AtOnce)
            .workers(0);
        let builder = on(&disk, settings).clock(Arc::clone(&clock) as Arc<dyn Clock>);
        let cache = builder.open(engine_layout()).unwrap();
        let engine = TestEngine::new(&cache);
        let keys = chain(1, blocks);
        assert_eq!(engine.store(&keys, 0), blocks);
        clock.advance(time);
        while cache.step() {}
        drop(engine);
        assert_eq!(
            after_a_crash(&disk, cache),
            durable,
            "{blocks} blocks, {time:?}"
        );
    }
}

#[test]
fn a_flush_to_a_full_disk_reports_its_failures() {
    let disk = SimulatedDisk::new(1);
    let cache = on(&disk, simulated(16, DISK).workers(0))
        .open(engine_layout())
        .unwrap();
    let engine = TestEngine::new(&cache);
    engine.store(&chain(1, 16), 0);
    disk.set_faults(DiskFaults {
        full: 1,
        ..DiskFaults::default()
    });
    let flushed = cache.flush();
    assert_eq!(
        (flushed.wanted, flushed.written, flushed.failed),
        (16, 0, 16)
    );
    assert!(!flushed.durable, "{flushed:?}");
    disk.set_faults(DiskFaults::default());
    let flushed = cache.flush();
    assert_eq!(
        (flushed.wanted, flushed.written, flushed.failed),
        (16, 16, 0)
    );
    assert!(flushed.durable, "{flushed:?}");
    drop(engine);
    assert_eq!(after_a_crash(&disk, cache), 16);
}

/// A flush to a disk smaller than host memory writes each block at most once. The newest chains are
/// on disk afterwards, and the report counts the other blocks as without room.
#[test]
fn a_flush_to_a_smaller_disk_writes_the_most_valuable_blocks_once() {
    let disk = SimulatedDisk::new(1);
    let settings = simulated(48, 120_000).workers(0);
    let cache = on(&disk, settings).open(engine_layout()).unwrap();
    let slots = cache.pool_stats(TierId::DISK).unwrap().blocks;
    let engine = TestEngine::new(&cache);
    for number in 1..13 {
        engine.store(&chain(number, 4), 0);
        // A use right after the store, so that only the age decides.
        drop(cache.lookup(&chain(number, 4)));
    }
    let writes = || cache.disk().unwrap().store_stats().writes;
    assert!(writes() == 0 && slots < 48);
    let flushed = cache.flush();
    assert_eq!(
        (flushed.wanted, flushed.written),
        (48, slots),
        "{flushed:?}"
    );
    assert_eq!(
        (flushed.no_room, flushed.failed),
        (48 - slots, 0),
        "{flushed:?}"
    );
    assert!(!flushed.durable, "blocks without room are not durable");
    let again = cache.flush();
    assert_eq!((again.written, again.no_room), (0, 48 - slots), "{again:?}");
    for number in 13..20 {
        let before = writes();
        let keys = chain(number, 4);
        engine.store(&keys, 0);
        drop(cache.lookup(&keys));
        let evicted = writes() - before;
        let flushed = cache.flush();
        assert!(
            writes() - before <= 4 + evicted + 4,
            "{flushed:?}: {} writes",
            writes() - before
        );
        let on_disk = cache.snapshot().blocks;
        let is_there = |key| {
            let mut blocks = on_disk.iter();
            blocks.any(|block| block.tier == TierId::DISK && block.key == key)
        };
        assert!(
            keys.iter().all(|key| is_there(*key)),
            "chain {number} is the newest"
        );
        cache.check_integrity();
    }
}

#[test]
fn a_flush_of_a_folder_that_was_removed_is_not_durable() {
    for gone in ["records", "slots", "manifest.json", ""] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache");
        let cache = keeper::open(with_disk(16, &path, DISK).workers(0), engine_layout()).unwrap();
        TestEngine::new(&cache).store(&chain(1, 8), 0);
        assert!(cache.flush().durable);
        match gone {
            "" => fs::remove_dir_all(&path).unwrap(),
            file => fs::remove_file(path.join(file)).unwrap(),
        }
        let flushed = cache.flush();
        assert!(!flushed.durable, "without {gone:?}: {flushed:?}");
        assert_eq!(flushed.failed, 8, "without {gone:?}: {flushed:?}");
    }
}

/// After a failed batch the cache pauses writes to the tier; one attempt ends the pause.
#[test]
fn a_full_disk_costs_few_attempts_for_any_number_of_blocks() {
    for writes in [TierWrites::AtOnce, TierWrites::OnEviction] {
        let mut failures = Vec::new();
        for blocks in [16, 32, 64] {
            let disk = SimulatedDisk::new(1);
            let clock = Arc::new(VirtualClock::default());
            let settings = simulated(64, DISK).disk_writes(writes).workers(0);
            let builder = on(&disk, settings).clock(Arc::clone(&clock) as Arc<dyn Clock>);
            let cache = builder.open(engine_layout()).unwrap();
            disk.set_faults(DiskFaults {
                full: 1,
                ..DiskFaults::default()
            });
            let engine = TestEngine::new(&cache);
            engine.store(&chain(1, blocks), 0);
            cache.evict(TierId::HOST, blocks).unwrap();
            failures.push(cache.disk().unwrap().store_stats().write_failures);
            if writes == TierWrites::OnEviction {
                assert_eq!(cache.stats().left_out[&TierId::DISK], blocks as u64);
            }
            // The disk has room again: after the pause the cache writes to it.
            disk.set_faults(DiskFaults::default());
            engine.store(&chain(2, 8), 0);
            cache.evict(TierId::HOST, 8).unwrap();
            while cache.step() {}
            assert_eq!(
                cache.pool_stats(TierId::DISK).unwrap().cached,
                0,
                "writes are paused"
            );
            clock.advance(Duration::from_secs(2));
            engine.store(&chain(3, 8), 0);
            while cache.step() {}
            cache.evict(TierId::HOST, 8).unwrap();
            assert_eq!(cache.pool_stats(TierId::DISK).unwrap().cached, 8);
            cache.check_integrity();
        }
        // All blocks were tried once, in one batch.
        assert_eq!(failures, [16, 32, 64], "{writes:?}");
    }
}

/// The cache pauses writes to a full disk, and still syncs earlier writes in time.
#[test]
fn blocks_that_were_written_are_synced_while_further_writes_fail() {
    let disk = SimulatedDisk::new(1);
    let clock = Arc::new(VirtualClock::default());
    let settings = simulated(64, DISK)
        .disk_writes(TierWrites::AtOnce)
        .workers(0);
    let builder = on(&disk, settings).clock(Arc::clone(&clock) as Arc<dyn Clock>);
    let cache = builder.open(engine_layout()).unwrap();
    let engine = TestEngine::new(&cache);
    assert_eq!(engine.store(&chain(1, 8), 0), 8);
    disk.set_faults(DiskFaults {
        full: 1,
        ..DiskFaults::default()
    });
    engine.store(&chain(2, 8), 0);
    assert_eq!(cache.disk().unwrap().store_stats().write_failures, 8);
    disk.set_faults(DiskFaults::default());
    // Writes pause for a second.
    clock.advance(SYNC_WITHIN);
    while cache.step() {}
    assert_eq!(cache.pool_stats(TierId::DISK).unwrap().cached, 8);
    drop(engine);
    assert_eq!(after_a_crash(&disk, cache), 8);
}
