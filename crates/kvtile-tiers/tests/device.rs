//! A cache whose engine is in memory of a device, under the stand-in driver: blocks go to host memory and to the disk and
//! come back, bit for bit. Not run on hardware.
#![expect(clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]

use kvtile_blocks::{BlockKey, events::TierId};
use kvtile_layout::{Axis, GroupRule, Plane, Shape, Unit, identity::Identity};
use kvtile_standin::{Standin, StandinLeaks, StandinOptions};
use kvtile_tiers::cache::{Cache, CacheSettings, LoadMarks, LoadOptions, StoreOptions};
use kvtile_tiers::groups::{
    CacheGroup, GroupCache, GroupCacheSettings, GroupStoreOptions, LoadBlocks, StoreBlocks,
};
use kvtile_tiers::{RequestError, TierError};
use kvtile_transfer::{FillPattern, PhysicalLayout, TransferManager};
use std::{fs, path::Path, sync::Arc, time::Duration};

fn keys(chain: u8, blocks: u8) -> Vec<BlockKey> {
    let key =
        |block| BlockKey::from_bytes([chain, block, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    (0..blocks).map(key).collect()
}

fn settings_of(shape: &Shape) -> CacheSettings {
    let identity = Identity::new("a-model", "main", shape).unwrap();
    CacheSettings::new(identity).host_bytes(1 << 20)
}

#[test]
fn a_cache_over_a_device_keeps_blocks_in_registered_memory_and_on_the_disk() {
    for seed in 0..2 {
        let standin = Standin::start(StandinOptions::seeded(seed));
        let device = standin.driver().unwrap().device(0).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let shape = Shape::key_value(16, 3, 8, 2, 16, "bf16").unwrap();
        let open = || {
            let engine = PhysicalLayout::builder().with_shape(shape.clone());
            let engine = engine.layout("L|BH(kCN,vNC)").allocate_device(&device);
            let settings = settings_of(&shape).disk(folder.path(), 4 << 20);
            Cache::open(settings, engine.build().unwrap()).unwrap()
        };
        let cache = open();
        assert_eq!(
            standin.leaks().registrations,
            1,
            "host memory is registered"
        );
        let keys = keys(1, 6);
        let blocks = [0, 1, 2, 3, 4, 5];
        let pattern = FillPattern::Distinct { seed };
        cache
            .manager()
            .fill(cache.engine(), &blocks, pattern)
            .unwrap();
        let digest = |cache: &Cache, block| {
            let digest = cache.manager().block_digest(cache.engine(), block);
            digest.unwrap().to_string()
        };
        let expected: Vec<String> = blocks.map(|block| digest(&cache, block)).to_vec();
        assert_eq!(cache.store(&keys, &blocks).unwrap().wait().stored, 6);
        let load = |cache: &Cache, to: [usize; 6]| {
            let nothing = FillPattern::Constant(1);
            cache.manager().fill(cache.engine(), &to, nothing).unwrap();
            let found = cache.lookup(&keys);
            assert_eq!(found.blocks(), 6);
            let load = cache.load(found, &to).unwrap();
            for layer in 0..3 {
                assert!(load.wait_layer(layer).is_ok());
            }
            assert_eq!(load.wait().blocks, 6);
            let loaded: Vec<String> = to.map(|block| digest(cache, block)).to_vec();
            assert_eq!(loaded, expected, "seed {seed}");
        };
        load(&cache, [9, 7, 10, 15, 8, 6]);
        cache.flush();
        cache.check_integrity();
        drop(cache);
        // After a restart the blocks come from the disk, verified in host memory.
        let cache = open();
        load(&cache, [1, 0, 3, 2, 5, 4]);
        assert!(cache.tier_stats(TierId::DISK).is_some());
        drop((cache, device));
        assert_eq!(standin.complaints(), []);
        assert_eq!(standin.leaks(), StandinLeaks::default());
    }
}

/// A copy of a folder, with one bit of its file of blocks flipped.
fn with_a_flipped_bit(kept: &Path, at: usize) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in fs::read_dir(kept).unwrap() {
        let file = file.unwrap();
        let mut bytes = fs::read(file.path()).unwrap();
        if file.file_name().to_string_lossy().starts_with("slots") {
            let written: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
            bytes[written[at * 7919 % written.len()]] ^= 1 << (at % 8);
        }
        fs::write(folder.path().join(file.file_name()), bytes).unwrap();
    }
    folder
}

#[test]
fn a_flipped_bit_of_the_disk_never_reaches_memory_of_the_device() {
    let standin = Standin::start(StandinOptions::seeded(3));
    let device = standin.driver().unwrap().device(0).unwrap();
    let shape = Shape::key_value(16, 3, 8, 2, 16, "bf16").unwrap();
    let open = |folder: &Path| {
        let engine = PhysicalLayout::builder().with_shape(shape.clone());
        let engine = engine.layout("L|BH(kCN,vNC)").allocate_device(&device);
        let settings = settings_of(&shape).disk(folder, 4 << 20);
        Cache::open(settings, engine.build().unwrap()).unwrap()
    };
    let kept = tempfile::tempdir().unwrap();
    let (keys, blocks, targets) = (keys(1, 6), [0, 1, 2, 3, 4, 5], [9, 7, 10, 15, 8, 6]);
    let digest = |cache: &Cache, block| {
        let digest = cache.manager().block_digest(cache.engine(), block);
        digest.unwrap().to_string()
    };
    let fill = |cache: &Cache, blocks: &[usize], pattern| {
        let filled = cache.manager().fill(cache.engine(), blocks, pattern);
        filled.unwrap();
    };
    let cache = open(kept.path());
    fill(&cache, &blocks, FillPattern::Distinct { seed: 6 });
    let expected = blocks.map(|block| digest(&cache, block));
    assert_eq!(cache.store(&keys, &blocks).unwrap().wait().stored, 6);
    assert!(cache.flush().durable);
    drop(cache);
    let mut lost = 0;
    for at in 0..16 {
        let folder = with_a_flipped_bit(kept.path(), at);
        let cache = open(folder.path());
        fill(&cache, &targets, FillPattern::Constant(9));
        let untouched = digest(&cache, targets[0]);
        let found = cache.lookup(&keys);
        let count = found.blocks();
        let report = cache.load(found, &targets[..count]).unwrap().wait();
        for (index, (target, expected)) in targets.into_iter().zip(&expected).enumerate() {
            let found = digest(&cache, target);
            if index < report.blocks {
                assert_eq!(found, *expected, "flip {at}, block {index}");
            } else {
                assert!(
                    found == untouched || found == *expected,
                    "flip {at}: other bytes in block {index}"
                );
            }
        }
        lost += 6 - report.blocks;
    }
    assert!(lost > 0, "no flip has cost a block");
    drop(device);
    assert_eq!(standin.complaints(), []);
    assert_eq!(standin.leaks(), StandinLeaks::default());
}

/// An engine's steps with a stream: it writes blocks that a store reads, reads blocks that a load then writes, and reads each
/// layer behind the load. The stream waits for layers, and no thread for the device. The third step loads from the disk.
/// Returns whether all bytes are right.
fn steps_of_a_stream(standin: &Standin, turns: u8) -> bool {
    let device = standin.driver().unwrap().device(0).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let shape = Shape::key_value(16, 3, 8, 2, 16, "bf16").unwrap();
    let engine = PhysicalLayout::builder().with_shape(shape.clone());
    let engine = engine.layout("L|BH(kCN,vNC)").allocate_device(&device);
    let engine = engine.build().unwrap();
    let regions = engine.memory_regions();
    let half = regions[0].size() / 2;
    let layers: Vec<u64> = regions.iter().map(|region| region.addr() as u64).collect();
    let settings = match turns {
        3.. => settings_of(&shape).disk(folder.path(), 4 << 20),
        _ => settings_of(&shape),
    };
    let cache = Cache::open(settings, engine).unwrap();
    let (stream, keys) = (device.queue().unwrap(), keys(7, 4));
    let mut is_right = true;
    for turn in 0..turns {
        for &start in &layers {
            // SAFETY: the memory lives until the stream is idle, and the cache waits for it.
            unsafe { stream.fill(start, 5 + turn, half) }.unwrap();
        }
        cache.clear().unwrap();
        let store = StoreOptions::new().after(stream.record().unwrap());
        let stored = cache.store_with(&keys, &[0, 1, 2, 3], &store).unwrap();
        let stored = stored.wait();
        assert_eq!(stored.stored, 4, "{stored:?}");
        if turn == 2 {
            cache.flush();
            cache.evict(TierId::HOST, 4).unwrap();
        }
        for &start in &layers {
            // SAFETY: as above.
            unsafe { stream.fill(start + half as u64, 0, half) }.unwrap();
        }
        let marks = LoadMarks::new();
        let load = LoadOptions::new().after(stream.record().unwrap());
        let load = load.marks(marks.clone());
        let found = cache.lookup(&keys);
        let loaded = cache.load_with(found, &[8, 9, 10, 11], &load).unwrap();
        for (layer, &start) in layers.iter().enumerate() {
            let behind = marks
                .wait_timeout(layer, 4, Duration::from_secs(60))
                .unwrap();
            for mark in behind.unwrap().unwrap() {
                stream.wait(&mark).unwrap();
            }
            // SAFETY: as above.
            unsafe { stream.copy(start, start + half as u64, half / 2) }.unwrap();
        }
        assert_eq!(loaded.wait().blocks, 4);
        stream.synchronize().unwrap();
        for &start in &layers {
            let mut bytes = vec![0; half / 2];
            is_right &= standin.peek(start, &mut bytes) && bytes == vec![5 + turn; half / 2];
        }
    }
    is_right
}

#[test]
fn stores_and_loads_are_ordered_with_a_stream_in_both_directions() {
    for seed in 0..2 {
        let standin = Standin::start(StandinOptions::seeded(seed));
        assert!(steps_of_a_stream(&standin, 3), "seed {seed}");
        assert_eq!(standin.complaints(), [], "seed {seed}");
        assert_eq!(standin.leaks(), StandinLeaks::default());
    }
}

/// Each wait of a stream in `scenario` does nothing once: in some order of the device's work the checker complains. There are
/// `waits` of them.
fn each_wait_is_needed(waits: u64, scenario: fn(&Standin)) {
    let standin = Standin::start(StandinOptions::seeded(0));
    scenario(&standin);
    assert_eq!(standin.complaints(), []);
    assert_eq!(standin.calls()["cuStreamWaitEvent"], waits);
    drop(standin);
    for nth in 1..=waits {
        let is_found = (0..50).any(|seed| {
            let standin = Standin::start(StandinOptions::seeded(seed));
            // It returns success and does nothing.
            standin.fail("cuStreamWaitEvent", nth, 0);
            scenario(&standin);
            !standin.complaints().is_empty()
        });
        assert!(is_found, "wait {nth} of {waits}");
    }
}

/// One behind the stream for the store and one for the load, and one of the stream for each layer.
#[test]
fn each_wait_of_a_store_and_a_load_with_a_stream_is_needed() {
    each_wait_is_needed(5, |standin| {
        let _may_be_wrong = steps_of_a_stream(standin, 1);
    });
}

/// One behind the stream for the group's store, and one for its load.
#[test]
fn each_wait_of_a_group_with_a_stream_is_needed() {
    each_wait_is_needed(2, |standin| {
        let _may_be_wrong = groups_with_a_stream(standin);
    });
}

#[test]
fn a_cache_over_host_memory_refuses_work_of_a_device() {
    let standin = Standin::start(StandinOptions::seeded(1));
    let device = standin.driver().unwrap().device(0).unwrap();
    let shape = Shape::key_value(4, 1, 8, 2, 16, "bf16").unwrap();
    let engine = PhysicalLayout::builder().with_shape(shape.clone());
    let engine = engine.layout("BLKNHC").allocate_system().build().unwrap();
    let cache = Cache::open(settings_of(&shape), engine).unwrap();
    let queue = device.queue().unwrap();
    let mark = || queue.record().unwrap();
    let refused = |error: TierError| {
        let is_it = matches!(error, TierError::Request(RequestError::NoDeviceToWait));
        assert!(is_it, "{error}");
    };
    let keys = keys(3, 1);
    let store = StoreOptions::new().after(mark());
    refused(cache.store_with(&keys, &[0], &store).unwrap_err());
    assert_eq!(cache.store(&keys, &[0]).unwrap().wait().stored, 1);
    let load = LoadOptions::new().after(mark());
    refused(
        cache
            .load_with(cache.lookup(&keys), &[1], &load)
            .unwrap_err(),
    );
}

#[test]
fn the_marks_of_a_load_end_with_it() {
    let shape = Shape::key_value(4, 2, 8, 2, 16, "bf16").unwrap();
    let engine = PhysicalLayout::builder().with_shape(shape.clone());
    let engine = engine.layout("L|BKNHC").allocate_system().build().unwrap();
    let cache = Cache::open(settings_of(&shape), engine).unwrap();
    let keys = keys(4, 2);
    assert_eq!(cache.store(&keys, &[0, 1]).unwrap().wait().stored, 2);
    let long = Duration::from_secs(60);
    let load = |blocks: &[usize]| {
        let marks = LoadMarks::new();
        let options = LoadOptions::new().marks(marks.clone());
        let loaded = cache.load_with(cache.lookup(&keys), blocks, &options);
        (loaded.unwrap(), marks)
    };
    // Layers that arrive on the host have no marks to wait for.
    let (loaded, marks) = load(&[2, 3]);
    for layer in 0..2 {
        let behind = marks.wait_timeout(layer, 2, long).unwrap();
        assert!(behind.unwrap().unwrap().is_empty());
    }
    assert_eq!(loaded.wait().blocks, 2);
    // More blocks than the load has never come, and neither does a layer that no block has.
    assert!(marks.wait_timeout(0, 3, long).unwrap().unwrap().is_none());
    assert!(marks.wait_timeout(2, 2, long).unwrap().unwrap().is_none());
    let (loaded, marks) = load(&[]);
    assert_eq!(loaded.wait().blocks, 0);
    assert!(marks.wait_timeout(0, 1, long).unwrap().unwrap().is_none());
    let unused = LoadMarks::new();
    let waited = unused.wait_timeout(0, 1, Duration::from_millis(1));
    assert!(waited.unwrap().is_none());
}

/// A group with full attention on the device and states in host memory: the first waits for the stream, and calls with
/// states alone are refused. Returns whether all bytes are right.
fn groups_with_a_stream(standin: &Standin) -> bool {
    let device = standin.driver().unwrap().device(0).unwrap();
    let full = Shape::key_value(8, 2, 8, 2, 16, "bf16").unwrap();
    let plane = Plane::new("state", Unit::new("f32", 4, 1).unwrap());
    let plane = plane.unwrap().extent(Axis::C, 24).per_page();
    let state = Shape::new(8, 1, 8, vec![plane]).unwrap();
    let engine = PhysicalLayout::builder().with_shape(full.clone());
    let engine = engine.layout("L|BKNHC").allocate_device(&device);
    let engine = engine.build().unwrap();
    let regions = engine.memory_regions();
    let layers: Vec<u64> = regions.iter().map(|region| region.addr() as u64).collect();
    let quarter = regions[0].size() / 4;
    let host = PhysicalLayout::builder().with_shape(state.clone());
    let host = host.layout("L|BC").allocate_system().build().unwrap();
    let manager = Arc::new(TransferManager::new());
    let engines = [engine, host].map(|layout| manager.register(layout).unwrap());
    let group = |name: &str, rule, shape| {
        CacheGroup::new(name, rule, Identity::new("a-model", "main", shape).unwrap())
    };
    let groups = vec![
        group("full", GroupRule::Full, &full),
        group("state", GroupRule::Stop, &state),
    ];
    let settings = GroupCacheSettings::new(groups).host_bytes(1 << 20);
    let cache = GroupCache::builder(settings);
    let cache = cache.open_registered(manager, &engines).unwrap();
    let (stream, keys) = (device.queue().unwrap(), keys(5, 2));
    let refused = |error: TierError| {
        let is_it = matches!(error, TierError::Request(RequestError::NoDeviceToWait));
        assert!(is_it, "{error}");
    };
    let store = || GroupStoreOptions::new().stops([16]);
    let alone = [StoreBlocks::new("state", 1, &[1])];
    let late = store().after(stream.record().unwrap());
    refused(cache.store_with(&keys, &alone, &late).err().unwrap());
    drop(late);

    for &start in &layers {
        // SAFETY: the memory lives until the stream is idle, and the cache waits for it.
        unsafe { stream.fill(start, 9, quarter) }.unwrap();
    }
    let after = store().after(stream.record().unwrap());
    let both = [StoreBlocks::new("full", 0, &[0, 1]), alone[0]];
    let stored = cache.store_with(&keys, &both, &after).unwrap().wait();
    assert_eq!(stored.stored(), 3, "{stored:?}");
    for &start in &layers {
        // SAFETY: as above.
        unsafe { stream.copy(start + quarter as u64, start + 2 * quarter as u64, quarter) }
            .unwrap();
    }
    let load = LoadOptions::new().after(stream.record().unwrap());
    let into = [
        LoadBlocks::new("full", &[4, 5]),
        LoadBlocks::new("state", &[6]),
    ];
    let loaded = cache.load_with(cache.lookup(&keys), &into, &load).unwrap();
    assert_eq!(loaded.wait().tokens, 16);
    stream.synchronize().unwrap();
    layers.iter().all(|&start| {
        let mut bytes = vec![0; quarter];
        standin.peek(start + 2 * quarter as u64, &mut bytes) && bytes == vec![9; quarter]
    })
}

#[test]
fn groups_on_a_device_wait_for_a_stream_and_those_in_host_memory_do_not() {
    let standin = Standin::start(StandinOptions::seeded(3));
    assert!(groups_with_a_stream(&standin));
    assert_eq!(standin.complaints(), []);
    assert_eq!(standin.leaks(), StandinLeaks::default());
}
