//! Saved caches are restored in any order, in any process; damaged caches and those of another
//! model are refused; and a name never refers to an incomplete cache.
//!
//! | file | what it tests |
//! | --- | --- |
//! | `content` | saved blocks are restored: in any order, into any layout, in any process |
//! | `damage` | damage is detected, and costs no more than the damaged blocks |
//! | `refusals` | mismatches and other models are refused by name before a byte is copied |
//! | `names` | a name never refers to an incomplete cache: full disks, killed writers, leftover files |
#![expect(clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]

#[path = "../child/mod.rs"]
mod child;
#[path = "../common/mod.rs"]
mod common;
mod content;
mod damage;
mod names;
mod refusals;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use common::in_memory;
use kvtile_layout::{
    LayoutError, Shape, Unit, Word,
    identity::{Fingerprint, Identity, Rope},
};
use kvtile_transfer::{
    CopyError, FillPattern, LayoutHandle, LeaseError, LeaseMode, PhysicalLayout, SavedError,
    TransferError, TransferManager,
    saved::{BlockCheck, SaveOptions, SavedCache, save},
};

const SEED: u64 = 77;

fn shape(blocks: u64) -> Shape {
    Shape::key_value(blocks, 3, 8, 4, 16, Unit::raw(2).unwrap()).unwrap()
}

fn identity(rope_base: f64) -> Identity {
    let rope = Rope::new("default", rope_base).unwrap();
    Identity::new("tiny", "rev-1", &shape(1))
        .unwrap()
        .with_rope(rope)
}

/// A manager with a layout of `blocks` blocks, all filled.
fn filled(blocks: u64, word: &str) -> (TransferManager, LayoutHandle) {
    let manager = TransferManager::new();
    let handle = manager.register(in_memory(&shape(blocks), word)).unwrap();
    let ids: Vec<usize> = (0..usize::try_from(blocks).unwrap()).collect();
    let pattern = FillPattern::Distinct { seed: SEED };
    manager.fill(handle, &ids, pattern).unwrap();
    (manager, handle)
}

fn options(word: &str, tokens: u64) -> SaveOptions {
    let mut options = SaveOptions::new(identity(10_000.0), tokens).unwrap();
    options.word = Word::parse(word).unwrap();
    options
}

/// Saves three of six blocks, in the order 4, 0, 5.
fn saved(path: &Path) -> Vec<Fingerprint> {
    let (manager, handle) = filled(6, "L|BKNHC");
    let options = options("BHLKNC", 20);
    save(&manager, handle, &[4, 0, 5], path, &options).unwrap();
    [4, 0, 5]
        .map(|b| manager.block_digest(handle, b).unwrap())
        .to_vec()
}

fn good(checks: &[BlockCheck]) -> Vec<bool> {
    checks.iter().map(|check| check.result.is_ok()).collect()
}

fn files_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Loads all blocks of the cache at `path` into an empty layout of `word`, in reverse order, and
/// compares them.
fn loads(path: &Path, word: &str, expected: &[Fingerprint]) {
    let cache = SavedCache::open(path, &identity(10_000.0)).unwrap();
    assert_eq!(cache.num_blocks(), expected.len());
    let manager = TransferManager::new();
    let handle = manager.register(in_memory(&shape(5), word)).unwrap();
    let pairs: Vec<(usize, usize)> = (0..expected.len()).map(|b| (b, 4 - b)).collect();
    let checks = cache.load(&manager, handle, &pairs).unwrap();
    assert!(
        checks.iter().all(|check| check.result.is_ok()),
        "{checks:?}"
    );
    for (block, target) in pairs {
        assert_eq!(
            manager.block_digest(handle, target).unwrap(),
            expected[block]
        );
    }
    manager.unregister(handle).unwrap();
}

/// The end of header and checksums, and the start of the data.
fn bounds(bytes: &[u8]) -> (usize, usize) {
    let header = u64::from_le_bytes(bytes[16..24].try_into().unwrap());
    let blocks = u64::from_le_bytes(bytes[24..32].try_into().unwrap());
    let end = usize::try_from(64 + header + 8 * blocks).unwrap();
    (end, end.next_multiple_of(4096))
}
