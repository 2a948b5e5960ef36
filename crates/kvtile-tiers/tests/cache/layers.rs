//! A layer is reported only after it has arrived for every block of the load, for every way in
//! which a load can fall short.

use std::{fs, path::Path, sync::Arc, time::Duration};

use kvtile_blocks::{BlockKey, events::TierId};
use kvtile_tiers::cache::{CacheSettings, Clock, Completion, LoadOptions, LoadReport, LoadStop};

use super::{
    bounds::VirtualClock,
    common::{TestEngine, chain, engine_layout, with_disk},
    keeper::{self, TestCache},
};

const BLOCKS: usize = 12;
const LAYERS: usize = 3;
const AT: usize = 30;

/// A cache whose chain is in host memory before `head`, on disk from `head` to `tail`, and in host
/// memory after that.
fn alternating(
    settings: CacheSettings,
    clock: &Arc<VirtualClock>,
    (head, tail): (usize, usize),
) -> TestCache {
    let builder = keeper::builder(settings.workers(0)).clock(Arc::clone(clock) as Arc<dyn Clock>);
    let cache = builder.open(engine_layout()).unwrap();
    let mut engine = TestEngine::new(&cache);
    let keys = chain(1, BLOCKS);
    engine.store(&keys[..tail], 0);
    cache.evict(TierId::HOST, BLOCKS).unwrap();
    assert_eq!(engine.load(&keys[..head], 0), head);
    assert_eq!(engine.store_from(&keys, tail, 0).stored, BLOCKS - tail);
    let found = cache.lookup(&keys);
    let tiers: Vec<bool> = found.tiers().map(|tier| tier == TierId::DISK).collect();
    let expected: Vec<bool> = (0..BLOCKS).map(|at| (head..tail).contains(&at)).collect();
    assert_eq!(tiers, expected);
    drop((found, engine));
    cache
}

/// Checks the reported layers against the bytes: a layer must not be reported before it has arrived
/// for all blocks.
fn check(
    load: &Completion<LoadReport>,
    engine: &mut TestEngine<'_>,
    keys: &[BlockKey],
    what: &str,
) {
    let said = (0..LAYERS).map(|layer| {
        let said = load.clone().wait_layer_timeout(layer, Duration::ZERO);
        said.is_some_and(|end| end.is_ok())
    });
    let said: Vec<bool> = said.collect();
    if said.iter().all(|said| *said) {
        for (at, key) in keys.iter().enumerate() {
            assert!(
                engine.holds(key, AT + at),
                "{what}: block {at} is reported and differs"
            );
        }
    }
    if let Some(report) = load.try_result() {
        let came = report.blocks == report.wanted;
        assert_eq!(said, [came; LAYERS], "{what}: {report:?}");
        assert_eq!(came, report.stopped.is_none(), "{what}: {report:?}");
        for (at, key) in keys.iter().enumerate().take(report.blocks) {
            assert!(engine.holds(key, AT + at), "{what}: block {at}: {report:?}");
        }
    }
}

/// The ways in which a load can fall short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LoadFault {
    Nothing,
    Cancelled,
    Deadline,
    Closed,
    Damaged,
    Cut,
}

const FAULTS: [LoadFault; 6] = [
    LoadFault::Nothing,
    LoadFault::Cancelled,
    LoadFault::Deadline,
    LoadFault::Closed,
    LoadFault::Damaged,
    LoadFault::Cut,
];

fn damage(folder: &Path, fault: LoadFault) {
    let path = folder.join("slots");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 4096 / 2 * 4096;
    match fault {
        LoadFault::Damaged => bytes.iter_mut().skip(middle).for_each(|byte| *byte ^= 1),
        _ => bytes.truncate(middle),
    }
    // In place, because the cache has the file open.
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
}

fn play(queue: usize, on_disk: (usize, usize), fault: LoadFault, after: usize) {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(VirtualClock::default());
    let settings = with_disk(16, folder.path(), 4 << 20).queue_capacity(queue);
    let cache = alternating(settings, &clock, on_disk);
    let keys = chain(1, BLOCKS);
    let mut engine = TestEngine::new(&cache);
    let blocks: Vec<usize> = (AT..AT + BLOCKS).collect();
    blocks.iter().for_each(|&block| engine.poison(block));
    let found = cache.lookup(&keys);
    let options = LoadOptions::new().within(Duration::from_millis(5));
    let load = cache.load_with(found, &blocks, &options).unwrap();
    let what = format!("queue of {queue}, on disk {on_disk:?}, {fault:?} after {after} steps");
    check(&load, &mut engine, &keys, &what);
    for _ in 0..after {
        cache.step();
        check(&load, &mut engine, &keys, &what);
    }
    match fault {
        LoadFault::Nothing => {}
        LoadFault::Cancelled => load.cancel(),
        LoadFault::Deadline => clock.advance(Duration::from_millis(6)),
        LoadFault::Closed => {
            drop(engine);
            drop(cache);
            let report = load.wait();
            let came = report.blocks == BLOCKS;
            assert!(
                came || matches!(report.stopped, Some(LoadStop::Closed)),
                "{what}: {report:?}"
            );
            for layer in 0..LAYERS {
                assert_eq!(load.wait_layer(layer).is_ok(), came, "{what}");
            }
            return;
        }
        LoadFault::Damaged | LoadFault::Cut => damage(folder.path(), fault),
    }
    while cache.step() {
        check(&load, &mut engine, &keys, &what);
    }
    check(&load, &mut engine, &keys, &what);
    assert!(load.is_complete(), "{what}");
    let report = load.wait();
    assert!(
        fault != LoadFault::Nothing || report.blocks == BLOCKS,
        "{what}: {report:?}"
    );
    cache.check_integrity();
}

#[test]
fn a_layer_is_reported_only_after_it_arrived_for_every_block() {
    for on_disk in [(4, 8), (1, 11), (0, 8), (4, 12), (0, 12), (12, 12)] {
        for queue in [1, 2, 3, 256] {
            for fault in FAULTS {
                for after in 0..4 {
                    play(queue, on_disk, fault, after);
                }
            }
        }
    }
}
