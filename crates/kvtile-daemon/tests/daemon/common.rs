//! A daemon, clients with small engines, and blocks whose content follows from their keys.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use kvtile_blocks::BlockKey;
use kvtile_daemon::{Daemon, DaemonSettings};
use kvtile_layout::{
    Shape, Unit,
    identity::{Identity, Rope},
};
use kvtile_tiers::cache::{Cache, ConnectSettings, LoadReport, StoreReport};
use kvtile_transfer::{FillPattern, PhysicalLayout};
use tempfile::TempDir;

pub(crate) const ENGINE_BLOCKS: u64 = 64;

pub(crate) fn shape(blocks: u64) -> Shape {
    let unit = Unit::new("f32", 4, 1).unwrap();
    Shape::key_value(blocks, 3, 4, 2, 8, &unit).unwrap()
}

pub(crate) fn identity() -> Identity {
    identity_of(10_000.0)
}

/// Identities that differ in the base of their rotary embedding.
pub(crate) fn identity_of(base: f64) -> Identity {
    let rope = Rope::new("default", base).unwrap();
    Identity::new("a-model", "main", &shape(1))
        .unwrap()
        .with_rope(rope)
}

pub(crate) fn stride() -> u64 {
    shape(1).block_bytes().unwrap().next_multiple_of(4096)
}

pub(crate) fn engine_layout() -> PhysicalLayout {
    PhysicalLayout::builder()
        .with_shape(shape(ENGINE_BLOCKS))
        .layout("L|BH(kCN,vNC)")
        .allocate_system()
        .build()
        .unwrap()
}

/// The keys of a chain.
pub(crate) fn chain(chain: u64, blocks: usize) -> Vec<BlockKey> {
    let key = |block| {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&chain.to_le_bytes());
        bytes[8..].copy_from_slice(&(block as u64).to_le_bytes());
        BlockKey::from_bytes(bytes)
    };
    (0..blocks).map(key).collect()
}

fn seed(key: &BlockKey) -> u64 {
    let bytes = key.as_bytes();
    let half = |range: std::ops::Range<usize>| {
        u64::from_le_bytes(bytes[range].try_into().unwrap()).wrapping_add(1)
    };
    half(0..8).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ half(8..16)
}

/// A folder with the socket of a daemon.
pub(crate) struct Node {
    pub(crate) folder: TempDir,
}

impl Node {
    pub(crate) fn new() -> Node {
        Node {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("daemon.sock")
    }

    /// The settings of a daemon with `blocks` host blocks.
    pub(crate) fn settings(&self, blocks: u64) -> DaemonSettings {
        DaemonSettings::new(self.socket(), blocks * stride())
    }

    pub(crate) fn start(&self, blocks: u64) -> Daemon {
        Daemon::start(self.settings(blocks)).unwrap()
    }

    pub(crate) fn connect(&self) -> Cache {
        self.connect_with(connect_settings())
    }

    pub(crate) fn connect_with(&self, settings: ConnectSettings) -> Cache {
        Cache::connect(self.socket(), settings, engine_layout()).unwrap()
    }
}

pub(crate) fn connect_settings() -> ConnectSettings {
    ConnectSettings::new(identity())
        .answer_within(Duration::from_secs(20))
        .retry_after(Duration::from_millis(10))
}

fn fill(cache: &Cache, key: &BlockKey, block: usize) {
    let pattern = FillPattern::Distinct { seed: seed(key) };
    cache
        .manager()
        .fill(cache.engine(), &[block], pattern)
        .unwrap();
}

/// Computes a chain into the blocks from `block` on and stores it.
pub(crate) fn store(cache: &Cache, keys: &[BlockKey], block: usize) -> StoreReport {
    let blocks: Vec<usize> = (block..block + keys.len()).collect();
    for (key, &block) in keys.iter().zip(&blocks) {
        fill(cache, key, block);
    }
    cache.store(keys, &blocks).unwrap().wait()
}

/// Whether `block` has the content of `key`. It uses block 63 of the engine.
pub(crate) fn holds(cache: &Cache, key: &BlockKey, block: usize) -> bool {
    let manager = cache.manager();
    fill(cache, key, 63);
    manager.block_digest(cache.engine(), block).unwrap()
        == manager.block_digest(cache.engine(), 63).unwrap()
}

/// Loads the stored prefix of `keys` to the blocks from `block` on, and checks every byte.
pub(crate) fn load(cache: &Cache, keys: &[BlockKey], block: usize) -> LoadReport {
    let found = cache.lookup(keys);
    let blocks: Vec<usize> = (block..block + found.blocks()).collect();
    for &block in &blocks {
        let pattern = FillPattern::Constant(0xa5);
        cache
            .manager()
            .fill(cache.engine(), &[block], pattern)
            .unwrap();
    }
    let report = cache.load(found, &blocks).unwrap().wait();
    for (key, &block) in keys.iter().zip(&blocks).take(report.blocks) {
        assert!(
            holds(cache, key, block),
            "block {block} is not that of {key}"
        );
    }
    report
}

/// Waits until `is_true`, at most 30 seconds.
pub(crate) fn eventually(what: &str, is_true: impl Fn() -> bool) {
    let begin = Instant::now();
    while !is_true() {
        assert!(begin.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Whether no client of the daemon pins or does anything.
pub(crate) fn is_idle(daemon: &Daemon) -> bool {
    let status = daemon.status();
    let sessions = status.sessions.iter();
    let is_still = sessions
        .map(|one| one.matches + one.holds + one.in_progress)
        .all(|count| count == 0);
    let mut pins = status
        .caches
        .iter()
        .flat_map(|one| one.stats.pinned.values());
    is_still && pins.all(|count| *count == 0)
}
