//! Layered loads from disk: the first layers are at the engine while the later ones are being read.
//! Layers arrive in order with the right bytes, and no layer is reported before it has arrived.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use kvtile_blocks::events::TierId;
use kvtile_tiers::cache::{Completion, LoadReport, LoadStop};
use parking_lot::Mutex;

use super::{
    common::TestEngine,
    hooked::HookedOperation,
    large::{
        BLOCK_BYTES, BLOCKS, LAYER_BYTES, LAYERS, layers_there, on_disk, settings, shape, start,
        start_of,
    },
};

/// The number of layers at the engine before each read of the disk.
#[derive(Default)]
struct ReadWatch {
    load: Mutex<Option<Completion<LoadReport>>>,
    seen: Mutex<Vec<usize>>,
}

impl ReadWatch {
    fn look(&self, operation: HookedOperation) {
        let load = self.load.lock();
        if let (HookedOperation::Read, Some(load)) = (operation, &*load) {
            self.seen.lock().push(layers_there(load));
        }
    }
}

#[test]
fn the_first_layers_are_at_the_engine_while_the_last_are_being_read() {
    let folder = tempfile::tempdir().unwrap();
    let watch = Arc::new(ReadWatch::default());
    let hook = Arc::clone(&watch);
    let settings = settings(BLOCKS as u64, folder.path()).workers(0);
    let (cache, keys) = on_disk(settings, folder.path(), move |operation| {
        hook.look(operation);
    });
    let mut engine = TestEngine::of(&cache, shape(1));
    let load = start(&cache, &engine, &keys);
    *watch.load.lock() = Some(load.clone());
    while cache.step() {}
    *watch.load.lock() = None;
    let report = load.wait();
    assert_eq!(
        (report.blocks, report.from_below),
        (BLOCKS, vec![(TierId::DISK, BLOCKS)])
    );
    assert_eq!(report.bytes, BLOCKS as u64 * BLOCK_BYTES);
    for (at, key) in keys.iter().enumerate() {
        assert!(engine.holds(key, BLOCKS + at), "block {at}");
    }
    // Each layer of each block is read once. Two reads are in flight, so the third begins after the
    // first has ended, and the last after one layer is at the engine.
    let seen = watch.seen.lock();
    assert_eq!(seen.len(), LAYERS * BLOCKS);
    assert!(
        seen[..2 * BLOCKS].iter().all(|layers| *layers == 0),
        "{seen:?}"
    );
    assert!(
        seen[3 * BLOCKS..].iter().all(|layers| *layers == 1),
        "{seen:?}"
    );
    drop(seen);
    // The whole blocks are in host memory now.
    let found = cache.lookup(&keys);
    assert_eq!(found.blocks_in(TierId::HOST), BLOCKS);
    drop(found);
    assert_eq!(engine.load(&keys, BLOCKS), BLOCKS);
    let stats = cache.stats();
    assert!(!stats.checksum_failures.contains_key(&TierId::DISK));
    cache.check_integrity();
}

/// Flips a bit of layer `layer` of the block in slot `place`.
fn damage(folder: &Path, place: u64, layer: u64) {
    use std::os::unix::fs::FileExt;
    let path = folder.join("slots");
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let offset = place * BLOCK_BYTES + layer * LAYER_BYTES + 77;
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
    file.sync_all().unwrap();
}

/// Slots are allocated in the order of the chain, so block `n` is in slot `n`.
#[test]
fn a_damaged_layer_ends_the_load_at_its_block_and_reaches_no_engine() {
    for (block, layer) in [(0, 0), (5, 0), (5, 3), (63, 3), (31, 1), (0, 3)] {
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(BLOCKS as u64, folder.path()).workers(0);
        let (cache, keys) = on_disk(settings, folder.path(), |_| {});
        damage(folder.path(), block as u64, layer);
        let mut engine = TestEngine::of(&cache, shape(1));
        let load = start(&cache, &engine, &keys);
        while cache.step() {}
        let report = load.wait();
        let what = format!("block {block}, layer {layer}: {report:?}");
        assert_eq!(report.blocks, block, "{what}");
        assert!(matches!(report.stopped, Some(LoadStop::Lost)), "{what}");
        // All layers before the damaged one arrived, for every block.
        assert_eq!(layers_there(&load) as u64, layer, "{what}");
        for (at, key) in keys.iter().enumerate().take(block) {
            assert!(engine.holds(key, BLOCKS + at), "block {at}, {what}");
        }
        let stats = cache.stats();
        assert_eq!(stats.checksum_failures[&TierId::DISK], 1, "{what}");
        // The chain ends at the damaged block; the blocks before it are in host memory.
        let found = cache.lookup(&keys);
        assert_eq!(
            (found.blocks(), found.blocks_in(TierId::HOST)),
            (block, block),
            "{what}"
        );
        drop(found);
        cache.check_integrity();
    }
}

/// Blocks in host memory before a damaged block arrive with all of their layers, including those
/// after the damaged layer.
#[test]
fn blocks_in_host_memory_arrive_whole_before_a_damaged_block() {
    for (there, behind) in [(10, 0), (10, 3), (1, 0)] {
        for layer in 0..LAYERS as u64 {
            let folder = tempfile::tempdir().unwrap();
            let settings = settings(BLOCKS as u64, folder.path()).workers(0);
            let (cache, keys) = on_disk(settings, folder.path(), |_| {});
            let mut engine = TestEngine::of(&cache, shape(1));
            // The lookup finds the blocks on disk; another load copies some to host memory before
            // this load begins.
            let found = cache.lookup(&keys);
            assert_eq!(engine.load(&keys[..there], BLOCKS), there);
            let block = there + behind;
            damage(folder.path(), block as u64, layer);
            let load = start_of(&cache, &engine, found);
            while cache.step() {}
            let report = load.wait();
            let what = format!("{there} there, block {block}, layer {layer}: {report:?}");
            assert_eq!(report.blocks, block, "{what}");
            assert!(matches!(report.stopped, Some(LoadStop::Lost)), "{what}");
            for (at, key) in keys.iter().enumerate().take(block) {
                assert!(engine.holds(key, BLOCKS + at), "block {at}, {what}");
            }
            cache.check_integrity();
        }
    }
}

#[test]
fn a_load_that_is_cancelled_between_two_layers_ends_there() {
    let folder = tempfile::tempdir().unwrap();
    let load: Arc<Mutex<Option<Completion<LoadReport>>>> = Arc::default();
    let reads = Arc::new(AtomicUsize::new(0));
    let (cancelled, counted) = (Arc::clone(&load), Arc::clone(&reads));
    let settings = settings(BLOCKS as u64, folder.path()).workers(0);
    let (cache, keys) = on_disk(settings, folder.path(), move |operation| {
        if let (HookedOperation::Read, Some(load)) = (operation, &*cancelled.lock())
            && counted.fetch_add(1, Ordering::Relaxed) == 3 * BLOCKS
        {
            load.cancel();
        }
    });
    let mut engine = TestEngine::of(&cache, shape(1));
    let under_way = start(&cache, &engine, &keys);
    *load.lock() = Some(under_way.clone());
    while cache.step() {}
    *load.lock() = None;
    let report = under_way.wait();
    assert_eq!(report.blocks, 0, "{report:?}");
    assert!(
        matches!(report.stopped, Some(LoadStop::Cancelled)),
        "{report:?}"
    );
    // Nothing is held, and the next load gets all blocks.
    cache.check_integrity();
    assert_eq!(engine.load(&keys, BLOCKS), BLOCKS);
}
