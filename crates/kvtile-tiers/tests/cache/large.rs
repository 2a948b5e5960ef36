//! Large blocks on disk: loads that are larger than host memory, at once, and of a disk that hangs.

use std::{path::Path, sync::Arc, time::Duration};

use kvtile_blocks::{BlockKey, events::TierId};
use kvtile_layout::{Shape, Unit, identity::Identity};
use kvtile_tiers::cache::{CacheSettings, Completion, LoadReport, LoadStop, Match};
use kvtile_transfer::PhysicalLayout;
use parking_lot::{Condvar, Mutex};

use super::{
    common::{ENGINE_WORD, TestEngine, chain},
    hooked::{HookedFolder, HookedOperation},
    keeper::{self, TestCache},
};

pub(crate) const LAYERS: usize = 4;

/// 64 blocks are 16 MiB: four reads, one for each layer.
pub(crate) const BLOCKS: usize = 64;

/// Bytes of one layer of one block.
pub(crate) const LAYER_BYTES: u64 = 64 << 10;

pub(crate) const BLOCK_BYTES: u64 = LAYERS as u64 * LAYER_BYTES;

pub(crate) fn shape(blocks: u64) -> Shape {
    let unit = Unit::new("f32", 4, 1).unwrap();
    let shape = Shape::key_value(blocks, LAYERS as u64, 16, 4, 128, &unit).unwrap();
    assert_eq!(shape.block_bytes().unwrap(), BLOCK_BYTES * blocks.min(1));
    shape
}

pub(crate) fn settings(host_blocks: u64, folder: &Path) -> CacheSettings {
    let identity = Identity::new("a-model", "main", &shape(1)).unwrap();
    CacheSettings::new(identity)
        .storage_word("BLHKNC".parse().unwrap())
        .host_bytes(host_blocks * BLOCK_BYTES)
        .disk(folder, 64 << 20)
}

pub(crate) fn engine_layout() -> PhysicalLayout {
    PhysicalLayout::builder()
        .with_shape(shape(2 * BLOCKS as u64))
        .layout(ENGINE_WORD.parse::<kvtile_layout::Word>().unwrap())
        .allocate_system()
        .build()
        .unwrap()
}

/// A cache with a chain of [`BLOCKS`] blocks on disk only; `hook` runs before each access to a
/// file.
pub(crate) fn on_disk(
    settings: CacheSettings,
    folder: &Path,
    hook: impl Fn(HookedOperation) + Send + Sync + 'static,
) -> (TestCache, Vec<BlockKey>) {
    let medium = Arc::new(HookedFolder::new(folder, hook));
    let cache = keeper::builder(settings).medium(medium);
    let cache = cache.open(engine_layout()).unwrap();
    let keys = chain(1, BLOCKS);
    let engine = TestEngine::of(&cache, shape(1));
    for first in (0..BLOCKS).step_by(8) {
        let stored = engine.store_from(&keys[..first + 8], first, first);
        assert_eq!(stored.stored, 8, "{stored:?}");
    }
    drop(engine);
    cache.evict(TierId::HOST, BLOCKS).unwrap();
    let found = cache.lookup(&keys);
    assert_eq!(found.blocks_in(TierId::DISK), BLOCKS);
    drop(found);
    (cache, keys)
}

pub(crate) fn start(
    cache: &TestCache,
    engine: &TestEngine<'_>,
    keys: &[BlockKey],
) -> Completion<LoadReport> {
    start_of(cache, engine, cache.lookup(keys))
}

pub(crate) fn start_of(
    cache: &TestCache,
    engine: &TestEngine<'_>,
    found: Match,
) -> Completion<LoadReport> {
    let blocks: Vec<usize> = (BLOCKS..BLOCKS + found.blocks()).collect();
    blocks.iter().for_each(|&block| engine.poison(block));
    cache.load(found, &blocks).unwrap()
}

pub(crate) fn layers_there(load: &Completion<LoadReport>) -> usize {
    let there = |layer: &usize| {
        let waited = load.wait_layer_timeout(*layer, Duration::ZERO);
        waited.is_some_and(|end| end.is_ok())
    };
    (0..LAYERS).take_while(there).count()
}

#[test]
fn blocks_in_host_memory_and_loads_larger_than_it_come_with_the_right_bytes() {
    for (host, first, there) in [
        (64, 0, 0),
        (64, 10, 20),
        (64, 63, 1),
        (40, 0, 0),
        (40, 30, 8),
        (9, 0, 0),
        (1, 0, 0),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(host, folder.path()).workers(0);
        let (cache, keys) = on_disk(settings, folder.path(), |_| {});
        let mut engine = TestEngine::of(&cache, shape(1));
        if there > 0 {
            // An earlier load copies a part of the chain to host memory.
            assert_eq!(engine.load(&keys[..first + there], BLOCKS), first + there);
        }
        let load = start(&cache, &engine, &keys);
        while cache.step() {}
        let report = load.wait();
        let what = format!("{host} host blocks, {there} there: {report:?}");
        assert_eq!(report.blocks, BLOCKS, "{what}");
        assert_eq!(layers_there(&load), LAYERS, "{what}");
        for (at, key) in keys.iter().enumerate() {
            assert!(engine.holds(key, BLOCKS + at), "block {at}, {what}");
        }
        cache.check_integrity();
    }
}

/// A gate at which reads wait.
#[derive(Default)]
struct ReadGate {
    is_shut: Mutex<bool>,
    opened: Condvar,
}

impl ReadGate {
    fn pass(&self) {
        let mut shut = self.is_shut.lock();
        self.opened.wait_while(&mut shut, |shut| *shut);
    }

    fn set(&self, shut: bool) {
        *self.is_shut.lock() = shut;
        self.opened.notify_all();
    }
}

#[test]
fn a_disk_that_does_not_answer_keeps_its_memory_and_the_load_ends() {
    let folder = tempfile::tempdir().unwrap();
    let gate = Arc::new(ReadGate::default());
    let hook = Arc::clone(&gate);
    let mut settings = settings(BLOCKS as u64, folder.path()).workers(1);
    drop(on_disk(settings.clone(), folder.path(), |_| {}));
    if let Some(disk) = &mut settings.disk {
        disk.answer_within = Duration::from_secs(2);
    }
    let medium = HookedFolder::new(folder.path(), move |operation| {
        if operation == HookedOperation::Read {
            hook.pass();
        }
    });
    let cache = keeper::builder(settings).medium(Arc::new(medium));
    let cache = cache.open(engine_layout()).unwrap();
    let keys = chain(1, BLOCKS);
    let mut engine = TestEngine::of(&cache, shape(1));
    // Another load copies some of the blocks to host memory first; these arrive.
    let found = cache.lookup(&keys);
    assert_eq!(engine.load(&keys[..5], BLOCKS), 5);
    gate.set(true);
    let load = start_of(&cache, &engine, found);
    let report = load.wait_timeout(Duration::from_secs(60));
    // Opened before the assertions, because closing the cache waits for the reads.
    gate.set(false);
    let report = report.expect("the load ends though the disk does not answer");
    assert_eq!(report.blocks, 5, "{report:?}");
    for (at, key) in keys.iter().enumerate().take(5) {
        assert!(engine.holds(key, BLOCKS + at), "block {at}: {report:?}");
    }
    assert!(matches!(report.stopped, Some(LoadStop::Late)), "{report:?}");
    // After the disk has released the memory and the pause has ended, all blocks arrive.
    let end = std::time::Instant::now() + Duration::from_secs(120);
    while engine.load(&keys, BLOCKS) < BLOCKS {
        let in_time = std::time::Instant::now() < end;
        assert!(in_time, "the disk is not tried again");
        std::thread::sleep(Duration::from_millis(5));
    }
    cache.check_integrity();
}

/// Concurrent loads of overlapping parts of one chain with little host memory: each gets the bytes
/// of its keys.
#[test]
fn loads_of_the_same_blocks_at_once_have_the_right_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(70, folder.path()).workers(3);
    let (cache, keys) = on_disk(settings, folder.path(), |_| {});
    let mut engine = TestEngine::of(&cache, shape(1));
    for round in 0..6 {
        cache.evict(TierId::HOST, BLOCKS).unwrap();
        let half = BLOCKS / 2 + round;
        let found = [keys.as_slice(), &keys[..half]].map(|keys| cache.lookup(keys));
        let blocks: Vec<usize> = (0..2 * BLOCKS).collect();
        blocks.iter().for_each(|&block| engine.poison(block));
        let parts = [&blocks[..BLOCKS], &blocks[BLOCKS..BLOCKS + half]];
        let loads: Vec<Completion<LoadReport>> = found
            .into_iter()
            .zip(parts)
            .map(|(found, blocks)| cache.load(found, blocks).unwrap())
            .collect();
        for (load, blocks) in loads.iter().zip(parts) {
            let report = load.wait();
            assert_eq!(report.blocks, blocks.len(), "round {round}: {report:?}");
            for (key, &block) in keys.iter().zip(blocks) {
                assert!(engine.holds(key, block), "round {round}: block {block}");
            }
        }
        cache.check_integrity();
    }
}
