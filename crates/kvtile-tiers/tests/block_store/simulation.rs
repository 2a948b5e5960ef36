//! The whole store on a disk that fails, tears and loses power, from seeds.
//!
//! A failing seed is printed. `KVTILE_STORE_SEED=n` runs only that seed, `KVTILE_STORE_SEEDS=n`
//! runs n seeds.

use std::{collections::HashSet, path::Path, sync::Arc, time::Duration};

use kvtile_testkit::disk::{DiskFaults, SimulatedDisk, SplitMix64};
use kvtile_tiers::{
    block_store::BlockStore,
    disk::{DiskSettings, medium::Medium},
};
use kvtile_transfer::TransferManager;

use super::common::{DIRECT, PERMUTED, TestRows, key, keys, manager, number, settings};

const SEEDS: u64 = 150;
const KEYS: u64 = 24;

#[test]
fn a_store_on_a_bad_disk_gives_no_wrong_byte_and_keeps_what_was_durable() {
    let seeds = number("KVTILE_STORE_SEEDS").unwrap_or(SEEDS);
    let one = number("KVTILE_STORE_SEED");
    for seed in one.map_or(0..seeds, |seed| seed..seed + 1) {
        let played = std::panic::catch_unwind(|| play(seed));
        assert!(
            played.is_ok(),
            "seed {seed} failed: KVTILE_STORE_SEED={seed} runs it alone"
        );
    }
}

fn open(disk: &SimulatedDisk, manager: &Arc<TransferManager>) -> BlockStore {
    let folder = Path::new("simulated");
    let settings = settings(folder)
        .disk(DiskSettings::new(folder, 1 << 20))
        .stage_within(Duration::from_millis(20));
    let medium: Arc<dyn Medium> = Arc::new(disk.clone());
    BlockStore::builder(settings)
        .manager(Arc::clone(manager))
        .medium(medium)
        .open()
        .unwrap()
}

fn play(seed: u64) {
    let mut numbers = SplitMix64::new(seed);
    let disk = SimulatedDisk::new(seed);
    let manager = manager();
    let mut flipped = false;
    for _ in 0..3 {
        disk.set_faults(DiskFaults::default());
        disk.set_read_only(false);
        let store = open(&disk, &manager);
        let word = if numbers.once_in(2) { DIRECT } else { PERMUTED };
        let rows = TestRows::new(&store, &manager, word);
        let durable = live(&store, &rows, &disk, &mut numbers);
        flipped |= numbers.once_in(4) && disk.flip("slots");
        match numbers.once_in(2) {
            true => disk.crash(),
            false => disk.kill(),
        }
        drop(rows);
        drop(store);
        disk.set_faults(DiskFaults::default());
        disk.set_read_only(false);
        let store = open(&disk, &manager);
        let rows = TestRows::new(&store, &manager, word);
        for number in durable {
            let loaded = rows.load(&store, &keys([number]), 0);
            assert!(
                loaded == ["ok"] || flipped,
                "block {number} is {loaded:?} and was durable"
            );
        }
        disk.kill();
    }
}

/// Random operations. Returns the blocks that a flush reported as durable and that were there then.
fn live(
    store: &BlockStore,
    rows: &TestRows,
    disk: &SimulatedDisk,
    numbers: &mut SplitMix64,
) -> HashSet<u64> {
    let group = rows.rows.group();
    for _ in 0..25 {
        let first = numbers.below(KEYS);
        let some = keys(first..first + 1 + numbers.below(6));
        match numbers.below(10) {
            0..=3 => {
                rows.store(store, &some, 0);
            }
            4..=6 => {
                rows.load(store, &some, 20);
            }
            7 => {
                store.forget(group, &some).unwrap();
            }
            8 => {
                disk.set_faults(DiskFaults {
                    read: 7 * numbers.below(2),
                    write: 7 * numbers.below(2),
                    full: 9 * numbers.below(2),
                    sync: 5 * numbers.below(2),
                });
                disk.set_read_only(numbers.once_in(5));
            }
            _ => {
                store.flush(Some(Duration::from_millis(5)));
            }
        }
    }
    disk.set_faults(DiskFaults::default());
    disk.set_read_only(false);
    // The first flush may report earlier failures.
    store.flush(None);
    let flushed = store.flush(None);
    assert!(flushed.durable, "{flushed:?}");
    let there = |number: &u64| store.contains(group, &[key(*number)]).unwrap() == [true];
    (0..KEYS + 6).filter(there).collect()
}
