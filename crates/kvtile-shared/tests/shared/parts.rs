//! Ranks of a model share a store: what any number of them wrote is read by any other number.

use std::{fs, path::Path, sync::Arc, time::Duration};

use kvtile_blocks::events::TierId;
use kvtile_layout::Shard;
use kvtile_random::SplitMix64;
use kvtile_shared::{
    folder::{FolderStore, FolderStoreSettings},
    parts::SharedParts,
    store::{Deadline, SharedStore, ValueName, ValueWritten},
    survey::{SurveySettings, clear, survey},
    sweep::{SweepSettings, sweep},
    tier::{SharedTier, SharedTierSettings},
};
use kvtile_testkit::shared::{SimulatedStore, StoreFaults};
use kvtile_tiers::{
    cache::Cache,
    tier::{Tier, TierSettings, TierWrites},
};

use crate::model::{HEADS, LAYERS, Rank, STORAGE_WORD, chain, grid, identity, model, shard};

const PATIENCE: Duration = Duration::from_secs(60);

/// Blocks of a prompt: three bundles of two blocks.
const BLOCKS: u32 = 6;

fn opened(folder: &Path) -> Arc<dyn SharedStore> {
    Arc::new(FolderStore::open(folder, FolderStoreSettings::new()).unwrap())
}

/// A rank over a store, which lists all parts at every query.
fn rank(store: &Arc<dyn SharedStore>, shard: Shard) -> Rank {
    rank_with(store, shard, Duration::from_secs(20))
}

fn rank_with(store: &Arc<dyn SharedStore>, shard: Shard, read_within: Duration) -> Rank {
    Rank::of(shard, |settings, engine| {
        let shape = model(1).of_shard(shard).unwrap();
        let of_blocks = (shape, STORAGE_WORD.parse().unwrap());
        let tier = SharedTierSettings::new()
            .bundle_blocks(2)
            .read_within(read_within)
            .absent_for(Duration::ZERO)
            .list_parts_after(Duration::ZERO);
        let own = SharedTier::opener(TierId::SHARED, Arc::clone(store), tier.clone());
        let parts = SharedParts::opener(Arc::clone(store), tier, of_blocks);
        let writes = |writes| TierSettings::default().writes(writes);
        Cache::builder(settings)
            .tier(writes(TierWrites::AtOnce), own)
            .tier(writes(TierWrites::Never), parts)
            .open(engine)
            .unwrap()
    })
}

impl Rank {
    /// Loads what a query of a prompt finds. Returns the number of leading blocks that came.
    fn seek(&self, number: u32) -> usize {
        let keys = chain(self.shard, number, BLOCKS);
        let found = self.cache.seek(&keys, PATIENCE).wait();
        let came = self.load_found(found, &keys);
        self.cache.parts().unwrap().check_integrity();
        came
    }

    fn assembled(&self) -> u64 {
        self.cache.parts().unwrap().parts_stats().assembled
    }
}

/// Ranks that store the leading blocks of a prompt.
fn write(store: &Arc<dyn SharedStore>, shards: &[Shard], (number, blocks): (u32, u32)) {
    for &shard in shards {
        let rank = rank(store, shard);
        rank.put(number, blocks);
        let flushed = rank.cache.flush();
        assert!(flushed.durable, "{flushed:?}");
    }
}

/// Changes all bundles of a part.
fn damage(folder: &Path, part: Shard) {
    let mut folders = vec![
        folder
            .join("kvt1")
            .join(identity(part).fingerprint().to_string()),
    ];
    let mut damaged = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.extension() {
                _ if path.is_dir() => folders.push(path),
                Some(blocks) if blocks == "2" => {
                    let mut bytes = fs::read(&path).unwrap();
                    bytes[4096 + 100] ^= 4;
                    fs::write(&path, bytes).unwrap();
                    damaged += 1;
                }
                _ => {}
            }
        }
    }
    assert_eq!(damaged, BLOCKS / 2);
}

/// The announcements of all parts of the model.
fn announced(folder: &Path) -> Vec<String> {
    let model = identity(Shard::whole(LAYERS, HEADS)).fingerprint();
    let folder = folder.join("kvt1").join(model.to_string()).join("parts");
    let entries = fs::read_dir(folder).map_or(Vec::new(), |entries| entries.collect());
    let names = entries.into_iter();
    let mut names: Vec<String> = names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn put(store: &Arc<dyn SharedStore>, name: &str) {
    let model = identity(Shard::whole(LAYERS, HEADS)).fingerprint();
    let name = ValueName::new(format!("kvt1/{model}/parts/{name}")).unwrap();
    let by = Deadline::within(PATIENCE);
    let written = store.write(&name, &[b"a lie\n"], None, by).unwrap();
    assert_eq!(written, ValueWritten::New);
}

#[test]
fn all_grids_of_ranks_read_each_others_blocks() {
    let grids = [(1, 1), (1, 2), (1, 4), (2, 1), (2, 2)];
    for writers in grids {
        let folder = tempfile::tempdir().unwrap();
        let store = opened(folder.path());
        let written = grid(writers.0, writers.1);
        write(&store, &written, (1, BLOCKS));
        assert_eq!(announced(folder.path()).len(), written.len());
        for readers in grids {
            for shard in grid(readers.0, readers.1) {
                let rank = rank(&store, shard);
                // Compares every byte.
                assert_eq!(rank.seek(1), 6, "{shard:?} of {writers:?}");
                let from_parts = if written.contains(&shard) { 0 } else { 6 };
                assert_eq!(rank.assembled(), from_parts, "{shard:?} of {writers:?}");
                assert_eq!(rank.seek(2), 0);
            }
        }
    }
}

#[test]
fn a_block_is_there_exactly_if_its_parts_cover_the_reader() {
    let has = |shard: &Shard, layer: u64, head: u64| {
        let layers = shard.layers.start..shard.layers.start + shard.layers.count;
        let heads = shard.heads.start..shard.heads.start + shard.heads.count;
        layers.contains(&layer) && heads.contains(&head)
    };
    let mut hits = 0;
    for seed in 0..4 {
        println!("seed {seed}");
        let mut random = SplitMix64::new(seed);
        let folder = tempfile::tempdir().unwrap();
        let store = opened(folder.path());
        let mut written: Vec<(Shard, u32)> = Vec::new();
        for grid in [grid(1, 2), grid(2, 2), grid(1, 4)] {
            for shard in grid {
                let bundles = random.below(4) as u32;
                if bundles > 0 {
                    write(&store, &[shard], (1, 2 * bundles));
                    written.push((shard, 2 * bundles));
                }
            }
        }
        for reader in [grid(1, 1), grid(2, 1), grid(2, 4)].concat() {
            let is_there = |block: u32| {
                let cells = (0..LAYERS).flat_map(|layer| (0..HEADS).map(move |head| (layer, head)));
                cells
                    .filter(|&(layer, head)| has(&reader, layer, head))
                    .all(|(layer, head)| {
                        let mut parts = written.iter();
                        parts.any(|(part, blocks)| *blocks > block && has(part, layer, head))
                    })
            };
            let expected = (0..BLOCKS).take_while(|block| is_there(*block)).count();
            assert_eq!(rank(&store, reader).seek(1), expected, "{reader:?}");
            hits += expected;
        }
    }
    assert!(hits > 20, "{hits} blocks");
}

#[test]
fn the_parts_of_a_block_are_read_at_the_same_time() {
    let folder = tempfile::tempdir().unwrap();
    let store = opened(folder.path());
    // One bundle of two blocks for each part.
    write(&store, &grid(1, 4), (1, 2));
    let slow = SimulatedStore::new(Arc::clone(&store), 1);
    let as_store = Arc::clone(&slow) as Arc<dyn SharedStore>;
    let reader = rank(&as_store, Shard::whole(LAYERS, HEADS));
    let keys = chain(reader.shard, 1, 2);
    let found = reader.cache.seek(&keys, PATIENCE).wait();
    assert_eq!(found.blocks(), 2);
    std::thread::scope(|scope| {
        let shut = slow.gate().shut(4);
        let came = scope.spawn(|| reader.load_found(found, &keys));
        // All four have begun, and none has ended.
        shut.wait_until_stopped(4);
        shut.open();
        assert_eq!(came.join().unwrap(), 2);
    });
    assert_eq!(reader.cache.parts().unwrap().staged_blocks(), 0);
}

#[test]
fn a_reader_keeps_the_announcement_of_a_part_that_it_reads() {
    let folder = tempfile::tempdir().unwrap();
    let store = opened(folder.path());
    write(&store, &grid(1, 2), (1, BLOCKS));
    let counting = SimulatedStore::new(Arc::clone(&store), 1);
    let as_store = Arc::clone(&counting) as Arc<dyn SharedStore>;
    let reader = rank(&as_store, Shard::whole(LAYERS, HEADS));
    let keys = chain(reader.shard, 1, BLOCKS);
    let found = reader.cache.seek(&keys, PATIENCE).wait();
    assert_eq!(found.blocks(), 6);
    // A server evicts what is read seldom.
    let model = identity(Shard::whole(LAYERS, HEADS)).fingerprint();
    let parts = folder.path().join("kvt1").join(model.to_string());
    fs::remove_dir_all(parts.join("parts")).unwrap();
    assert_eq!(reader.load_found(found, &keys), 6);
    let start = std::time::Instant::now();
    while announced(folder.path()).len() < 2 {
        assert!(start.elapsed() < PATIENCE, "not announced again");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_part_that_appears_later_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let store = opened(folder.path());
    let whole = rank(&store, Shard::whole(LAYERS, HEADS));
    assert_eq!(whole.seek(1), 0);
    write(&store, &[shard(0..LAYERS, 0..4)], (1, BLOCKS));
    assert_eq!(whole.seek(1), 0);
    write(&store, &[shard(0..LAYERS, 4..8)], (1, 4));
    assert_eq!(whole.seek(1), 4);
    assert_eq!(whole.cache.parts().unwrap().parts().len(), 2);
}

#[test]
fn a_damaged_part_is_a_miss_unless_other_parts_take_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let store = opened(folder.path());
    write(&store, &grid(1, 2), (1, BLOCKS));
    damage(folder.path(), shard(0..LAYERS, 4..8));
    let reader = rank(&store, Shard::whole(LAYERS, HEADS));
    assert_eq!(reader.seek(1), 0);
    let stats = reader.cache.parts().unwrap().parts_stats();
    assert!(stats.damaged > 0 && stats.assembled == 0, "{stats:?}");
    // A reader that needs only undamaged heads gets them.
    assert_eq!(rank(&store, shard(0..LAYERS, 2..4)).seek(1), 6);
    write(&store, &grid(1, 4), (1, BLOCKS));
    assert_eq!(rank(&store, Shard::whole(LAYERS, HEADS)).seek(1), 6);
}

/// The name of an announcement of some part, with the fingerprints of that part and bundles of two blocks.
fn of_part(folder: &Path, part: &str) -> String {
    let names = announced(folder);
    let mut names = names.iter();
    names.find(|name| name.ends_with(part)).unwrap().clone()
}

#[test]
fn announcements_that_lie_cost_nothing_but_a_query() {
    let folder = tempfile::tempdir().unwrap();
    let store = opened(folder.path());
    write(&store, &grid(1, 2), (1, BLOCKS));
    let half = of_part(folder.path(), "heads-0-4");
    // A part of which the store has no bundle, in its right name: what a writer leaves whose bundles were swept.
    write(&store, &[shard(0..2, 0..8)], (2, BLOCKS));
    let stages = of_part(folder.path(), "layers-0-2.heads-0-8");
    let bundles = identity(shard(0..2, 0..8)).fingerprint().to_string();
    fs::remove_dir_all(folder.path().join("kvt1").join(bundles)).unwrap();
    // Names of one part with the fingerprints of another, or of another size of bundles or order of blocks.
    for (from, to) in [
        ("heads-0-4", "heads-1-5"),
        ("heads-0-4", "heads-2-6"),
        (".2.layers", ".4.layers"),
    ] {
        put(&store, &half.replace(from, to));
    }
    let (first, rest) = half.split_once('.').unwrap();
    put(
        &store,
        &format!("{first}.{}{}", "0".repeat(32), &rest[32..]),
    );
    let reader = rank(&store, Shard::whole(LAYERS, HEADS));
    assert_eq!(reader.seek(1), 6);
    assert_eq!(reader.seek(2), 0);
    let parts = reader.cache.parts().unwrap();
    let mut followed: Vec<String> = parts
        .parts()
        .iter()
        .map(|one| one.part.to_string())
        .collect();
    followed.sort();
    let expected = [
        "layers-0-2.heads-0-8",
        "layers-0-4.heads-0-4",
        "layers-0-4.heads-4-8",
    ];
    assert_eq!(followed, expected, "{stages}");
    let stats = parts.parts_stats();
    assert_eq!((stats.misses, stats.damaged), (0, 0), "{stats:?}");
}

#[test]
fn hostile_names_and_thousands_of_them_are_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let store = opened(folder.path());
    write(&store, &grid(1, 2), (1, BLOCKS));
    let half = of_part(folder.path(), "heads-0-4");
    let (head, _) = half.split_at(half.find("layers").unwrap());
    for rectangle in [
        "layers-0-4.heads-0-9",
        "layers-0-99.heads-0-8",
        "layers-4-4.heads-0-8",
        "layers-3-1.heads-0-8",
        "layers-0-18446744073709551615.heads-0-18446744073709551615",
        "layers-18446744073709551614-18446744073709551615.heads-0-8",
        "layers-0-99999999999999999999999.heads-0-8",
        "layers-0-4.heads-0-4.replica-1",
        "layers-00-4.heads-0-4",
        "layers--4.heads-0-4",
        "layers-0-4",
        "",
    ] {
        put(&store, &format!("{head}x{rectangle}"));
        if !rectangle.is_empty() {
            put(&store, &format!("{head}{rectangle}"));
        }
    }
    let directory = folder.path().join("kvt1");
    let model = identity(Shard::whole(LAYERS, HEADS)).fingerprint();
    let directory = directory.join(model.to_string()).join("parts");
    for number in 0..3000 {
        let (start, end) = (number % 7, number % 7 + 1);
        let name = format!("{number:032x}.{number:032x}.2.layers-0-4.heads-{start}-{end}");
        fs::write(directory.join(name), "").unwrap();
    }
    let reader = rank(&store, Shard::whole(LAYERS, HEADS));
    assert_eq!(reader.seek(1), 6);
    assert_eq!(reader.cache.parts().unwrap().parts().len(), 2);
}

#[test]
fn a_store_that_fails_or_hangs_costs_the_parts_and_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let store = opened(folder.path());
    write(&store, &grid(1, 2), (1, BLOCKS));
    let bad = SimulatedStore::new(Arc::clone(&store), 3);
    let as_store = Arc::clone(&bad) as Arc<dyn SharedStore>;
    bad.set_faults(StoreFaults {
        error: 1,
        ..StoreFaults::default()
    });
    let whole = Shard::whole(LAYERS, HEADS);
    let reader = rank_with(&as_store, whole, Duration::from_millis(300));
    assert_eq!(reader.seek(1), 0);
    // Blocks in host memory are there all the same.
    reader.put(2, BLOCKS);
    assert_eq!(reader.seek(2), 6);
    bad.set_faults(StoreFaults::default());
    let start = std::time::Instant::now();
    while reader.seek(1) < 6 {
        assert!(start.elapsed() < PATIENCE, "the breaker stays open");
        std::thread::sleep(Duration::from_millis(50));
    }
    // Reads that hang end by their time limit, and what they read is not served.
    let reader = rank_with(&as_store, whole, Duration::from_millis(300));
    let keys = chain(whole, 1, BLOCKS);
    let found = reader.cache.seek(&keys, PATIENCE).wait();
    assert_eq!(found.blocks(), 6);
    let shut = bad.gate().shut(1000);
    assert_eq!(reader.load_found(found, &keys), 0);
    drop(shut);
}

#[test]
fn random_faults_serve_no_wrong_byte() {
    let (mut came, mut missed) = (0, 0);
    for seed in 0..3 {
        println!("seed {seed}");
        let folder = tempfile::tempdir().unwrap();
        let store = opened(folder.path());
        let bad = SimulatedStore::new(Arc::clone(&store), seed);
        let as_store = Arc::clone(&bad) as Arc<dyn SharedStore>;
        for shard in [grid(1, 4), grid(2, 2)].concat() {
            write(&store, &[shard], (1, BLOCKS));
        }
        for reader in [grid(1, 1), grid(1, 2), grid(2, 4)].concat() {
            bad.set_faults(StoreFaults::all(15));
            let rank = rank_with(&as_store, reader, Duration::from_millis(500));
            for _ in 0..4 {
                let blocks = rank.seek(1);
                came += blocks;
                missed += 6 - blocks;
                rank.cache.evict(TierId::HOST, 6).unwrap();
            }
        }
    }
    println!("{came} blocks came, {missed} did not");
    assert!(came > 50 && missed > 20, "{came} {missed}");
}

#[test]
fn sweeps_keep_announcements_of_bundles_and_clearing_removes_all() {
    let folder = tempfile::tempdir().unwrap();
    let store = opened(folder.path());
    write(&store, &grid(1, 2), (1, BLOCKS));
    let found = survey(&*store, &SurveySettings::new()).unwrap();
    assert_eq!((found.bundles(), found.foreign), (6, 0));
    let second = identity(shard(0..LAYERS, 4..8)).fingerprint().to_string();
    let layouts = fs::read_dir(folder.path().join("kvt1").join(second)).unwrap();
    for entry in layouts {
        let path = entry.unwrap().path();
        if path.is_dir() {
            fs::remove_dir_all(path).unwrap();
        }
    }
    // Too young to be a leftover, then old enough.
    let all = || SweepSettings::new(None);
    assert_eq!(sweep(&*store, &all()).unwrap().leftovers, 0);
    let report = sweep(&*store, &all().leftovers_after(Duration::ZERO)).unwrap();
    assert_eq!(
        (report.leftovers, report.removed, report.foreign),
        (2, 0, 0)
    );
    let left = announced(folder.path());
    assert!(
        left.len() == 1 && left[0].ends_with("heads-0-4"),
        "{left:?}"
    );
    clear(&*store, &SurveySettings::new()).unwrap();
    assert!(announced(folder.path()).is_empty());
}

#[test]
fn a_cache_with_the_whole_model_learns_whether_others_wrote_parts() {
    let folder = tempfile::tempdir().unwrap();
    let store = opened(folder.path());
    let whole = Shard::whole(LAYERS, HEADS);
    let settings = SharedTierSettings::new();
    let are_needed = || SharedParts::are_needed(&*store, &settings, &identity(whole));
    assert!(!are_needed());
    write(&store, &[whole], (1, BLOCKS));
    assert!(!are_needed());
    let half = shard(0..2, 0..8);
    assert!(SharedParts::are_needed(&*store, &settings, &identity(half)));
    write(&store, &[half], (1, BLOCKS));
    assert!(are_needed());
    let elsewhere = settings.clone().prefix("other");
    assert!(!SharedParts::are_needed(
        &*store,
        &elsewhere,
        &identity(whole)
    ));
}
