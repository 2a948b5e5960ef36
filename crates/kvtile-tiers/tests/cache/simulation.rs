//! The whole cache on a misbehaving disk and a jumping clock, from seeds.
//!
//! A failing seed is printed. `KVTILE_CACHE_SEED=n` runs only that seed, `KVTILE_CACHE_SEEDS=n`
//! runs n seeds.

use std::{sync::Arc, time::Duration};

use kvtile_blocks::events::TierId;
use kvtile_testkit::disk::{DiskFaults, SimulatedDisk, SplitMix64};
use kvtile_tiers::{
    cache::{Clock, StoreStop, TierWrites},
    disk::medium::Medium,
};

use super::{
    bounds::VirtualClock,
    common::{TestEngine, chain, engine_layout, number, with_disk},
    keeper::{self, TestCache},
};

const SEEDS: u64 = 1000;
const CHAINS: u64 = 5;

#[test]
fn a_cache_on_a_bad_disk_gives_no_wrong_byte_and_keeps_what_was_durable() {
    let seeds = number("KVTILE_CACHE_SEEDS").unwrap_or(SEEDS / keeper::SLOWER);
    let one = number("KVTILE_CACHE_SEED");
    for seed in one.map_or(0..seeds, |seed| seed..seed + 1) {
        let played = std::panic::catch_unwind(|| play(seed));
        assert!(
            played.is_ok(),
            "seed {seed} failed: KVTILE_CACHE_SEED={seed} runs it alone"
        );
    }
}

fn open(
    disk: &SimulatedDisk,
    clock: &Arc<VirtualClock>,
    numbers: &mut SplitMix64,
) -> Option<TestCache> {
    let writes = [
        TierWrites::OnEviction,
        TierWrites::AtOnce,
        TierWrites::AfterUses(2),
    ];
    let writes = writes[numbers.index(3)];
    let settings = with_disk(3, std::path::Path::new("simulated"), 68_192)
        .disk_writes(writes)
        .workers(0)
        .queue_capacity(8);
    let medium: Arc<dyn Medium> = Arc::new(disk.clone());
    let builder = keeper::builder(settings).medium(medium);
    let builder = builder.clock(Arc::clone(clock) as Arc<dyn Clock>);
    builder.open(engine_layout()).ok()
}

fn play(seed: u64) {
    let mut numbers = SplitMix64::new(seed);
    let disk = SimulatedDisk::new(seed);
    let clock = Arc::new(VirtualClock::default());
    let mut flipped = false;
    for _ in 0..3 {
        disk.set_faults(DiskFaults::default());
        disk.set_read_only(false);
        let cache = open(&disk, &clock, &mut numbers).unwrap();
        let durable = live(&cache, &disk, &clock, &mut numbers);
        // A flipped bit stays until its block is read.
        flipped |= numbers.once_in(4) && disk.flip("slots");
        match numbers.once_in(2) {
            true => disk.crash(),
            false => disk.kill(),
        }
        drop(cache);
        disk.set_faults(DiskFaults::default());
        disk.set_read_only(false);
        let cache = open(&disk, &clock, &mut numbers).unwrap();
        cache.check_integrity();
        let mut engine = TestEngine::new(&cache);
        for (number, blocks) in durable {
            let keys = chain(number, blocks);
            let loaded = engine.load(&keys, 0);
            assert!(
                loaded == blocks || flipped,
                "chain {number}: {loaded} of {blocks}"
            );
        }
        disk.kill();
    }
}

/// Random operations. Returns the chains that were durable at the end, with their numbers of
/// blocks.
fn live(
    cache: &TestCache,
    disk: &SimulatedDisk,
    clock: &VirtualClock,
    numbers: &mut SplitMix64,
) -> Vec<(u64, usize)> {
    let mut engine = TestEngine::new(cache);
    for _ in 0..30 {
        let keys = chain(numbers.below(CHAINS), 1 + numbers.index(5));
        match numbers.below(12) {
            0..=3 => {
                // If the disk takes nothing, a chain longer than host memory keeps its head.
                let report = engine.store_from(&keys, 0, 0);
                let stopped = report.stopped.as_ref();
                assert!(
                    stopped.is_none_or(|stop| matches!(stop, StoreStop::HostFull)),
                    "{report:?}"
                );
                assert_eq!(report.stored + report.present + report.dropped, keys.len());
            }
            4..=6 => {
                engine.load(&keys, 20);
            }
            7 => cancelled(cache, &keys, numbers),
            8 => {
                let faults = DiskFaults {
                    read: 7 * numbers.below(2),
                    write: 7 * numbers.below(2),
                    full: 9 * numbers.below(2),
                    sync: 5 * numbers.below(2),
                };
                disk.set_faults(faults);
                disk.set_read_only(numbers.once_in(5));
            }
            9 => {
                clock.advance(Duration::from_millis(numbers.below(100)));
                cache.look_after();
            }
            10 => drop(cache.prefetch(&keys)),
            _ => {
                cache.flush();
            }
        }
        for _ in 0..numbers.below(4) {
            cache.step();
        }
        cache.check_integrity();
    }
    while cache.step() {}
    disk.set_faults(DiskFaults::default());
    disk.set_read_only(false);
    let flushed = cache.flush();
    assert!(flushed.durable, "{flushed:?}");
    cache.check_integrity();
    let on_disk = |number| {
        let found = cache.lookup(&chain(number, 5));
        let keys = chain(number, found.blocks());
        let listed = cache.snapshot().blocks;
        let is_there = |key| {
            let mut blocks = listed.iter();
            blocks.any(|block| block.tier == TierId::DISK && block.key == key)
        };
        let blocks = keys.iter().take_while(|key| is_there(**key)).count();
        (number, blocks)
    };
    (0..CHAINS).map(on_disk).collect()
}

fn cancelled(cache: &TestCache, keys: &[kvtile_blocks::BlockKey], numbers: &mut SplitMix64) {
    let found = cache.lookup(keys);
    let blocks: Vec<usize> = (40..40 + found.blocks()).collect();
    let Ok(load) = cache.load(found, &blocks) else {
        return;
    };
    if numbers.once_in(2) {
        cache.step();
    }
    load.cancel();
    while cache.step() {}
    assert!(load.is_complete());
    let nothing = cache.store(&[], &[]);
    assert_eq!(nothing.unwrap().wait().stored, 0);
}
