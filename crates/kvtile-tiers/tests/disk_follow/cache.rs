//! A cache in one process finds and loads what the cache of another process stored.

use std::{path::Path, sync::Arc, time::Instant};

use kvtile_blocks::events::TierId;
use kvtile_tiers::{
    cache::{Cache, TierWrites},
    disk::{DiskFollower, DiskSettings},
    tier::{Tier, TierSettings},
};

use crate::{
    common::PATIENCE,
    engine::{TestEngine, chain, engine_layout, settings},
    process::{TestChild, followed, say},
};

const DISK_BYTES: u64 = 16 << 20;

/// Blocks of each stored chain.
const BLOCKS: usize = 20;

/// A cache that writes the folder.
fn writing(folder: &Path) -> Cache {
    let settings = settings(64).disk(folder, DISK_BYTES);
    let settings = settings.disk_writes(TierWrites::AtOnce).workers(2);
    Cache::open(settings, engine_layout()).unwrap()
}

/// A cache that follows the folder.
fn following(folder: &Path, host_blocks: u64, writes: TierSettings) -> Cache {
    let disk = DiskSettings::new(folder, DISK_BYTES);
    Cache::builder(settings(host_blocks).workers(2))
        .tier(writes, move |context| {
            let tier = DiskFollower::open(&disk, context)?;
            Ok(Arc::new(tier) as Arc<dyn Tier>)
        })
        .open(engine_layout())
        .unwrap()
}

fn reads_only() -> TierSettings {
    DiskSettings::new("anywhere", 0).follower()
}

/// Waits until a question finds `blocks` leading blocks.
fn until_there(cache: &Cache, number: u64, blocks: usize) {
    let start = Instant::now();
    loop {
        let found = cache.seek(&chain(number, blocks), PATIENCE).wait();
        if found.blocks() == blocks {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{found:?}");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn the_cache_of_another_process_loads_what_this_one_stores() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("kv");
    // The reader is there first.
    let mut child = TestChild::run("cache::the_process_that_loads", &folder);
    child.line("opened");
    let cache = writing(&folder);
    let engine = TestEngine::new(&cache);
    for number in 0..3 {
        assert_eq!(engine.store(&chain(number, BLOCKS), 0), BLOCKS);
        // The cache is open and writes; its folder is locked.
        assert_eq!(child.line("loaded"), format!("{number} {BLOCKS}"));
    }
    child.end();
    let report = cache.close();
    assert!(report.durable, "{report:?}");
}

/// Not a test: the process that loads. Without the variable it does nothing.
#[test]
fn the_process_that_loads() {
    let Some(folder) = followed() else {
        return;
    };
    let cache = following(&folder, 8, reads_only());
    let mut engine = TestEngine::new(&cache);
    say("opened");
    for number in 0..3 {
        until_there(&cache, number, BLOCKS);
        // Checks every byte.
        let loaded = engine.load(&chain(number, BLOCKS), 0);
        say(&format!("loaded {number} {loaded}"));
        assert_eq!(loaded, BLOCKS);
    }
}

/// The cache does not try to write to a tier that only reads: neither at evictions nor at a flush.
#[test]
fn a_cache_over_a_followed_folder_keeps_its_own_blocks_in_host_memory_only() {
    let folder = tempfile::tempdir().unwrap();
    let writer = writing(folder.path());
    let stored = chain(1, 10);
    TestEngine::new(&writer).store(&stored, 0);
    assert!(writer.flush().durable);
    let cache = following(folder.path(), 64, reads_only());
    let mut engine = TestEngine::new(&cache);
    assert_eq!(engine.load(&stored, 0), 10);
    // Behind a block of the other process, and a chain of its own.
    let longer = chain(1, 14);
    assert_eq!(engine.store_from(&longer, 10, 20).stored, 4);
    assert_eq!(engine.store(&chain(2, 12), 30), 12);
    assert_eq!(engine.load(&longer, 0), 14);
    let flushed = cache.flush();
    assert_eq!(
        (flushed.written, flushed.tiers.len()),
        (0, 0),
        "{flushed:?}"
    );
    assert!(cache.evict(TierId::HOST, 100).unwrap() > 0);
    assert_eq!(engine.load(&longer, 0), 10, "the own blocks are evicted");
    assert_eq!(engine.load(&chain(2, 12), 0), 0);
    assert_eq!(cache.evict(TierId::DISK, 100).unwrap(), 0);
    let failures = |cache: &Cache| {
        let stats = cache.stats();
        let moves = stats.moves.iter();
        let written = moves.filter(|moves| moves.destination == TierId::DISK);
        written.map(|moves| moves.failures).sum::<u64>()
    };
    assert_eq!(failures(&cache), 0, "the cache does not try");
    let tier = cache.tier(TierId::DISK).unwrap();
    let follower = tier.as_any().downcast_ref::<DiskFollower>().unwrap();
    assert_eq!(follower.follower_stats().misses_damaged, 0);
    assert_eq!(writer.lookup(&longer).blocks(), 10);
    cache.close();
    // With the settings of an ordinary tier the writes fail, and nothing else does.
    let cache = following(folder.path(), 64, TierSettings::default());
    let mut engine = TestEngine::new(&cache);
    engine.store(&chain(3, 20), 0);
    assert_eq!(engine.load(&stored, 30), 10);
    assert!(cache.evict(TierId::HOST, 100).unwrap() > 0);
    assert_eq!(engine.load(&stored, 30), 10);
    assert_eq!(engine.load(&chain(3, 20), 0), 0);
    assert!(failures(&cache) > 0);
}
