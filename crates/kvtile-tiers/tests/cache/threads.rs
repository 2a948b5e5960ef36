//! Many threads on one cache: every loaded byte is right, and nothing is held at the end.

use std::time::{Duration, Instant};

use kvtile_blocks::events::TierId;
use kvtile_testkit::disk::SplitMix64;
use kvtile_tiers::{RequestError, TierError};

use super::{
    bounds::folder_bytes,
    common::{TestEngine, chain, engine_layout, number, with_disk},
    keeper::{self, TestCache},
};

#[test]
fn random_work_of_several_threads_gives_no_wrong_byte_and_leaks_nothing() {
    const SEED: u64 = 4;
    println!("seed {SEED}");
    let folder = tempfile::tempdir().unwrap();
    let settings = with_disk(12, folder.path(), 300_000).queue_capacity(64);
    let cache = keeper::open(settings, engine_layout()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let cache = &cache;
            scope.spawn(move || work(cache, thread, SEED));
        }
    });
    ended(&cache);
    let stats = cache.stats();
    assert!(
        stats.hit_ratio().is_some_and(|ratio| ratio > 0.1),
        "{stats:?}"
    );
    let host = cache.pool_stats(TierId::HOST).unwrap();
    assert_eq!(cache.evict(TierId::HOST, 12).unwrap(), host.cached);
    assert!(
        cache
            .stats()
            .checksum_failures
            .values()
            .all(|failures| *failures == 0)
    );
}

/// Pitfall 35: memory, descriptors or disk use that grows without bounds.
#[test]
fn a_mixed_load_grows_nothing() {
    const SEED: u64 = 5;
    const CAPACITY: u64 = 300_000;
    const ROUNDS_PER_RESTART: u64 = 16;
    println!("seed {SEED}");
    let asked = number("KVTILE_CACHE_SECONDS");
    // With the variable set, the test has the process to itself; otherwise other tests run
    // concurrently. A leak of one block a round would exceed either limit within minutes.
    let slack_bytes = if asked.is_some() { 8 << 20 } else { 64 << 20 };
    let seconds = Duration::from_secs(asked.unwrap_or(3));
    let folder = tempfile::tempdir().unwrap();
    let open = || {
        let settings = with_disk(12, folder.path(), CAPACITY).queue_capacity(64);
        keeper::open(settings, engine_layout()).unwrap()
    };
    let mut cache = open();
    let start = Instant::now();
    // The peak use in the first, second and last third of the time.
    let mut peaks = [UsedResources::default(); 3];
    let (mut round, mut restarts) = (0, 0);
    while start.elapsed() < seconds {
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let cache = &cache;
                scope.spawn(move || work(cache, thread, SEED + round));
            }
        });
        round += 1;
        if round % ROUNDS_PER_RESTART == 0 {
            ended(&cache);
            let before = cache.pool_stats(TierId::DISK).unwrap().cached;
            drop(cache);
            cache = open();
            let after = cache.pool_stats(TierId::DISK).unwrap().cached;
            assert_eq!(after, before, "blocks on disk before and after a restart");
            restarts += 1;
        }
        assert!(folder_bytes(folder.path()) <= CAPACITY);
        let third = (3 * start.elapsed().as_millis() / seconds.as_millis()).min(2);
        let peak = &mut peaks[usize::try_from(third).unwrap()];
        *peak = peak.most(UsedResources::now());
    }
    ended(&cache);
    println!("{round} rounds, {restarts} restarts, at most {peaks:?}");
    assert!(restarts > 0 || round < ROUNDS_PER_RESTART);
    let [first, second, now] = peaks;
    let before = first.most(second);
    assert!(now.bytes < before.bytes + slack_bytes, "memory grows");
    assert!(now.files < before.files + 32, "descriptors grow");
}

/// Waits until no operation is in flight, and checks that nothing is held.
fn ended(cache: &TestCache) {
    let start = Instant::now();
    while cache.stats().pinned.values().any(|pins| *pins > 0) {
        cache.step();
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "{:?}",
            cache.stats()
        );
    }
    assert!(cache.flush().durable);
    cache.check_integrity();
}

/// The resources of the process that may run out.
#[derive(Clone, Copy, Debug, Default)]
struct UsedResources {
    bytes: u64,
    files: usize,
}

impl UsedResources {
    fn now() -> UsedResources {
        UsedResources {
            bytes: resident_bytes(),
            files: open_files(),
        }
    }

    fn most(self, other: UsedResources) -> UsedResources {
        UsedResources {
            bytes: self.bytes.max(other.bytes),
            files: self.files.max(other.files),
        }
    }
}

fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = pages.split_whitespace().nth(1).unwrap().parse().unwrap();
    pages * 4096
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Each thread uses sixteen engine blocks of its own.
fn work(cache: &TestCache, thread: u64, seed: u64) {
    let mut numbers = SplitMix64::new(seed * 1000 + thread);
    let mut engine = TestEngine::new(cache);
    let first = usize::try_from(thread).unwrap() * 16;
    for _ in 0..150 {
        let keys = chain(numbers.below(10), 1 + numbers.index(6));
        let found = cache.lookup(&keys);
        let blocks: Vec<usize> = (first..first + found.blocks()).collect();
        let here = match cache.load(found, &blocks) {
            Ok(load) => {
                if numbers.once_in(8) {
                    load.cancel();
                }
                load.wait().blocks
            }
            Err(TierError::Request(RequestError::Busy { .. })) => 0,
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
        match cache.store(&keys, &blocks) {
            Ok(store) => {
                store.wait();
            }
            Err(TierError::Request(RequestError::Busy { .. })) => {}
            Err(error) => panic!("{error}"),
        }
        if numbers.once_in(10) {
            match cache.prefetch(&chain(numbers.below(10), 1 + numbers.index(6))) {
                Ok(prefetch) if numbers.once_in(2) => drop(prefetch.wait()),
                Ok(_) | Err(TierError::Request(RequestError::Busy { .. })) => {}
                Err(error) => panic!("{error}"),
            }
        }
        if numbers.once_in(20) {
            let tier = if numbers.once_in(2) {
                TierId::HOST
            } else {
                TierId::DISK
            };
            cache.evict(tier, 1 + numbers.index(4)).unwrap();
        }
        if numbers.once_in(40) {
            cache.clear().unwrap();
        }
    }
}
