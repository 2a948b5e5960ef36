//! Any page of any group disappears from any place at any time, from seeds.
//!
//! Each lookup is compared with a fold over the listing of all stored pages, each loaded byte with the
//! content of its key. A failing seed is printed. `KVTILE_GROUPS_SEED=n` runs only that seed,
//! `KVTILE_GROUPS_SEEDS=n` runs n seeds.

use std::{path::Path, sync::Arc};

use kvtile_blocks::{BlockKey, events::TierId};
use kvtile_testkit::disk::{DiskFaults, SimulatedDisk, SplitMix64};
use kvtile_tiers::{
    cache::TierWrites,
    disk::medium::Medium,
    groups::{GroupMatch, StopOptions},
};

use super::{
    common::{GroupEngine, NAMES, chain, number, page, settings, settle, with_disk},
    keeper::{SLOWER, TestGroups},
};

const SEEDS: u64 = 150;
const CHAINS: u64 = 3;
const UNITS: usize = 12;

#[test]
fn whatever_disappears_a_hit_is_a_stop_and_its_bytes_are_right() {
    let seeds = number("KVTILE_GROUPS_SEEDS").unwrap_or(SEEDS / SLOWER);
    let one = number("KVTILE_GROUPS_SEED");
    let mut hits = 0;
    for seed in one.map_or(0..seeds, |seed| seed..seed + 1) {
        let played = std::panic::catch_unwind(|| play(seed));
        match played {
            Ok(loaded) => hits += loaded,
            Err(_) => panic!("seed {seed} failed: KVTILE_GROUPS_SEED={seed} runs it alone"),
        }
    }
    assert!(hits > seeds.min(1) * 3, "{hits} hits of {seeds} seeds");
}

fn open(engine: &GroupEngine, disk: &SimulatedDisk, numbers: &mut SplitMix64) -> TestGroups {
    let pages: Vec<u64> = engine
        .groups
        .iter()
        .map(|_| 1 + numbers.below(12))
        .collect();
    let mut settings = with_disk(settings(&engine.groups, &pages), Path::new("simulated"));
    let disk_settings = settings.disk.as_mut().unwrap();
    let writes = [
        TierWrites::OnEviction,
        TierWrites::AtOnce,
        TierWrites::AfterUses(2),
    ];
    disk_settings.writes = writes[numbers.index(3)];
    // Some hundred slots, so that the disk evicts too.
    disk_settings.capacity_bytes = 1_000_000;
    let medium: Arc<dyn Medium> = Arc::new(disk.clone());
    engine.try_open(settings, Some(medium)).unwrap()
}

/// Returns the number of loads that brought a stop.
fn play(seed: u64) -> u64 {
    let mut numbers = SplitMix64::new(seed);
    let sets = [
        &[0, 3][..],
        &[0, 1],
        &[0, 1, 2, 3],
        &[1, 3],
        &[3],
        &[0, 2, 3],
    ];
    let engine = GroupEngine::new(sets[numbers.index(sets.len())]);
    let disk = SimulatedDisk::new(seed);
    let mut hits = 0;
    for _ in 0..2 {
        disk.set_faults(DiskFaults::default());
        let cache = open(&engine, &disk, &mut numbers);
        cache.check_integrity();
        hits += live(&engine, &cache, &disk, &mut numbers);
        match numbers.below(3) {
            0 => disk.crash(),
            1 => disk.kill(),
            _ => {}
        }
        drop(cache);
    }
    hits
}

fn request(numbers: &mut SplitMix64) -> Vec<BlockKey> {
    let common = 2 * numbers.index(UNITS / 2);
    let units = 2 + numbers.index(UNITS - 1);
    chain(
        numbers.below(CHAINS),
        numbers.below(2),
        common.min(4),
        units,
    )
}

fn live(
    engine: &GroupEngine,
    cache: &TestGroups,
    disk: &SimulatedDisk,
    numbers: &mut SplitMix64,
) -> u64 {
    let mut hits = 0;
    // Whether a lookup may pass over stored pages: reads pause after failures.
    let mut is_faulty = false;
    let mut waiting: Option<(Vec<BlockKey>, GroupMatch)> = None;
    let unit = cache.stop_unit();
    for _ in 0..30 {
        let keys = request(numbers);
        let tokens = keys.len() as u64 * cache.unit();
        match numbers.below(14) {
            0..=3 if tokens >= unit => {
                let stop = |numbers: &mut SplitMix64| unit * (1 + numbers.below(tokens / unit));
                let stops: Vec<u64> = (0..1 + numbers.below(2)).map(|_| stop(numbers)).collect();
                engine.store(cache, &keys, &stops);
            }
            4..=6 => {
                let found = look_up(engine, cache, &keys, (numbers, is_faulty));
                let report = engine.load(cache, &keys, found);
                is_faulty |= report.tokens != report.wanted;
                hits += u64::from(report.tokens > 0);
            }
            7 => {
                // Another operation comes between the lookup and the load.
                let found = look_up(engine, cache, &keys, (numbers, is_faulty));
                if let Some((keys, found)) = waiting.replace((keys, found)) {
                    let report = engine.load(cache, &keys, found);
                    is_faulty |= report.tokens != report.wanted;
                    hits += u64::from(report.tokens > 0);
                }
            }
            8 => {
                let group = numbers.index(engine.groups.len());
                let name = cache.groups()[group].name.clone();
                let tier = [TierId::HOST, TierId::DISK][numbers.index(2)];
                cache.evict(&name, tier, numbers.index(4)).unwrap();
            }
            9 => forget(engine, cache, &keys, numbers),
            10 => {
                is_faulty = true;
                disk.set_faults(DiskFaults {
                    read: 7 * numbers.below(2),
                    write: 7 * numbers.below(2),
                    full: 9 * numbers.below(2),
                    sync: 5 * numbers.below(2),
                });
            }
            11 => {
                is_faulty |= disk.flip(&format!("slots-{}", numbers.index(engine.groups.len())));
            }
            12 if numbers.once_in(4) => drop(cache.clear()),
            _ => drop(cache.flush()),
        }
        settle(cache);
        cache.check_integrity();
    }
    drop(waiting);
    hits
}

/// Looks up and compares with the fold over the listing.
fn look_up(
    engine: &GroupEngine,
    cache: &TestGroups,
    keys: &[BlockKey],
    (numbers, is_faulty): (&mut SplitMix64, bool),
) -> GroupMatch {
    let tokens = keys.len() as u64 * cache.unit();
    let at_most = numbers.once_in(2).then(|| numbers.below(tokens + 1));
    let found = cache.lookup_with(keys, &StopOptions::new().at_most(at_most));
    let naive: Vec<u64> = engine
        .naive(cache, keys)
        .into_iter()
        .filter(|stop| at_most.is_none_or(|most| *stop <= most))
        .collect();
    if is_faulty {
        let longest = naive.first().copied().unwrap_or(0);
        assert!(found.stop() <= longest, "{} of {naive:?}", found.stop());
    } else {
        let unlisted = engine.unlisted(cache, keys, found.stop());
        let naive_stop = naive.first().copied().unwrap_or(0);
        assert_eq!(found.stop(), naive_stop, "not listed: {unlisted:?}");
        assert_eq!(found.stops(), naive);
    }
    assert!(found.branch().is_none_or(|branch| branch > found.stop()));
    found
}

/// Removes one page of one group from the disk.
fn forget(engine: &GroupEngine, cache: &TestGroups, keys: &[BlockKey], numbers: &mut SplitMix64) {
    let at = numbers.index(engine.groups.len());
    let units = page(engine.groups[at]) / cache.unit();
    let end = units * (1 + numbers.below(keys.len() as u64 / units));
    let Some(key) = keys.get(usize::try_from(end).unwrap() - 1) else {
        return;
    };
    let name = NAMES[engine.groups[at]];
    let mut groups = cache.groups().iter();
    let group = groups.find(|group| group.name == name).unwrap().id;
    cache.tier(TierId::DISK).unwrap().forget(group, &[*key]);
}
