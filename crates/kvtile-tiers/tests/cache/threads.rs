//! Many threads on one cache: every byte that it gives is right, and in the end nothing is held.

use std::time::{Duration, Instant};

use kvtile_blocks::events::Tier;
use kvtile_testkit::disk::Numbers;
use kvtile_tiers::{
    TierError,
    cache::{Cache, LoadOptions, LookupOptions, StoreOptions},
};

use super::{
    bounds::folder_bytes,
    common::{Engine, chain, engine_layout, number, with_disk},
};

#[test]
fn random_work_of_several_threads_gives_no_wrong_byte_and_leaks_nothing() {
    const SEED: u64 = 4;
    println!("seed {SEED}");
    let folder = tempfile::tempdir().unwrap();
    let settings = with_disk(12, folder.path(), 300_000).queue_capacity(64);
    let cache = Cache::open(settings, engine_layout()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let cache = &cache;
            scope.spawn(move || work(cache, thread, SEED));
        }
    });
    while cache.step() {}
    cache.flush();
    cache.check_integrity();
    let stats = cache.stats();
    assert!(stats.pinned.values().all(|pins| *pins == 0), "{stats:?}");
    assert!(
        stats.hit_ratio().is_some_and(|ratio| ratio > 0.1),
        "{stats:?}"
    );
    let host = cache.pool_stats(Tier::Host).unwrap();
    assert_eq!(cache.evict(Tier::Host, 12).unwrap(), host.cached);
    assert!(
        cache
            .stats()
            .checksum_failures
            .values()
            .all(|failures| *failures == 0)
    );
}

/// Pitfall 35: memory, descriptors or disk that grow without bounds.
#[test]
fn a_mixed_load_grows_nothing() {
    const SEED: u64 = 5;
    const CAPACITY: u64 = 300_000;
    println!("seed {SEED}");
    let seconds = Duration::from_secs(number("KVTILE_CACHE_SECONDS").unwrap_or(3));
    let folder = tempfile::tempdir().unwrap();
    let settings = with_disk(12, folder.path(), CAPACITY).queue_capacity(64);
    let cache = Cache::open(settings, engine_layout()).unwrap();
    let start = Instant::now();
    let mut warm = None;
    let mut round = 0;
    while start.elapsed() < seconds {
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let cache = &cache;
                scope.spawn(move || work(cache, thread, SEED + round));
            }
        });
        round += 1;
        assert!(folder_bytes(folder.path()) <= CAPACITY);
        if start.elapsed() > seconds / 3 && warm.is_none() {
            warm = Some((resident_bytes(), open_files()));
        }
    }
    cache.flush();
    cache.check_integrity();
    let (resident, files) = warm.unwrap();
    println!(
        "{round} rounds, {resident} bytes resident after a third, {} now",
        resident_bytes()
    );
    // Other tests run in this process; a leak per block would be far larger.
    assert!(resident_bytes() < resident + (64 << 20), "memory grows");
    assert!(open_files() < files + 32, "descriptors grow");
    assert!(cache.stats().pinned.values().all(|pins| *pins == 0));
}

fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = pages.split_whitespace().nth(1).unwrap().parse().unwrap();
    pages * 4096
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Each thread has sixteen engine blocks of its own.
fn work(cache: &Cache, thread: u64, seed: u64) {
    let mut numbers = Numbers::new(seed * 1000 + thread);
    let mut engine = Engine::new(cache);
    let first = usize::try_from(thread).unwrap() * 16;
    for _ in 0..150 {
        let keys = chain(numbers.below(10), 1 + numbers.index(6));
        let found = cache.lookup(&keys, &LookupOptions::default());
        let blocks: Vec<usize> = (first..first + found.blocks()).collect();
        let here = match cache.load(found, &blocks, &LoadOptions::default()) {
            Ok(load) => {
                if numbers.once_in(8) {
                    load.cancel();
                }
                load.wait().blocks
            }
            Err(TierError::Busy { .. }) => 0,
            Err(error) => panic!("{error}"),
        };
        for (index, key) in keys.iter().enumerate() {
            if index < here {
                assert!(engine.holds(key, first + index), "{key}");
            } else {
                engine.compute(key, first + index);
            }
        }
        let blocks: Vec<usize> = (first..first + keys.len()).collect();
        match cache.store(&keys, 0, &blocks, &StoreOptions::default()) {
            Ok(store) => {
                store.wait();
            }
            Err(TierError::Busy { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        if numbers.once_in(40) {
            cache.clear().unwrap();
        }
    }
}
