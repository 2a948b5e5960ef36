//! A small engine and its cache. The content of each block is derived from its key.

use std::{collections::HashMap, path::Path};

use kvtile_blocks::BlockKey;
use kvtile_layout::{
    Shape, Unit, Word,
    identity::{Fingerprint, Identity, Rope},
};
use kvtile_tiers::cache::{CacheSettings, StoreOptions, StoreReport};
use kvtile_transfer::{FillPattern, LayoutHandle, PhysicalLayout, TransferManager};

use super::keeper::{self, TestCache};

/// Number of blocks of the test engine.
pub(crate) const ENGINE_BLOCKS: u64 = 64;

/// The layout of the engine, which differs from every storage order.
pub(crate) const ENGINE_WORD: &str = "L|BH(kCN,vNC)";

pub(crate) fn shape(blocks: u64) -> Shape {
    let unit = Unit::new("f32", 4, 1).unwrap();
    Shape::key_value(blocks, 3, 4, 2, 8, &unit).unwrap()
}

pub(crate) fn identity() -> Identity {
    identity_with_base(10_000.0)
}

pub(crate) fn identity_with_base(base: f64) -> Identity {
    let rope = Rope::new("default", base).unwrap();
    Identity::new("a-model", "main", &shape(1))
        .unwrap()
        .with_rope(rope)
}

/// Bytes that one block takes in host memory.
pub(crate) fn stride() -> u64 {
    shape(1).block_bytes().unwrap().next_multiple_of(4096)
}

pub(crate) fn engine_layout() -> PhysicalLayout {
    let word: Word = ENGINE_WORD.parse().unwrap();
    let layout = PhysicalLayout::builder().with_shape(shape(ENGINE_BLOCKS));
    keeper::engine(layout.layout(word))
}

/// Settings with `host_blocks` host blocks.
pub(crate) fn settings(host_blocks: u64) -> CacheSettings {
    CacheSettings::new(identity()).host_bytes(host_blocks * stride())
}

/// Settings with `host_blocks` host blocks and a disk of `capacity_bytes`.
pub(crate) fn with_disk(host_blocks: u64, folder: &Path, capacity_bytes: u64) -> CacheSettings {
    settings(host_blocks).disk(folder, capacity_bytes)
}

/// The keys of a chain: block `i` of chain `chain`.
pub(crate) fn chain(chain: u64, blocks: usize) -> Vec<BlockKey> {
    let key = |block| {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&chain.to_le_bytes());
        bytes[8..].copy_from_slice(&(block as u64).to_le_bytes());
        BlockKey::from_bytes(bytes)
    };
    (0..blocks).map(key).collect()
}

/// The content of the block of `key`, as the seed of a fill pattern.
fn seed(key: &BlockKey) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for &byte in key.as_bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash
}

/// The test engine: it fills blocks with the content of their keys, and checks that content.
pub(crate) struct TestEngine<'a> {
    cache: &'a TestCache,
    reference: TransferManager,
    handle: LayoutHandle,
    known: HashMap<BlockKey, Fingerprint>,
}

impl<'a> TestEngine<'a> {
    pub(crate) fn new(cache: &'a TestCache) -> TestEngine<'a> {
        TestEngine::of(cache, shape(1))
    }

    /// An engine for blocks of the shape `one`, a shape of one block.
    pub(crate) fn of(cache: &'a TestCache, one: Shape) -> TestEngine<'a> {
        let reference = TransferManager::new();
        let word: Word = "BHLKNC".parse().unwrap();
        let layout = PhysicalLayout::builder()
            .with_shape(one)
            .layout(word)
            .allocate_system()
            .build()
            .unwrap();
        let handle = reference.register(layout).unwrap();
        TestEngine {
            cache,
            reference,
            handle,
            known: HashMap::new(),
        }
    }

    /// Computes the block of `key` into `block`.
    pub(crate) fn compute(&self, key: &BlockKey, block: usize) {
        let pattern = FillPattern::Distinct { seed: seed(key) };
        let manager = self.cache.manager();
        manager
            .fill(self.cache.engine(), &[block], pattern)
            .unwrap();
    }

    /// Overwrites a block with content of no key.
    pub(crate) fn poison(&self, block: usize) {
        let manager = self.cache.manager();
        let pattern = FillPattern::Constant(0xa5);
        manager
            .fill(self.cache.engine(), &[block], pattern)
            .unwrap();
    }

    fn expected(&mut self, key: &BlockKey) -> Fingerprint {
        let (reference, handle) = (&self.reference, self.handle);
        *self.known.entry(*key).or_insert_with(|| {
            let pattern = FillPattern::Distinct { seed: seed(key) };
            reference.fill(handle, &[0], pattern).unwrap();
            reference.block_digest(handle, 0).unwrap()
        })
    }

    /// Whether `block` has the content of `key`.
    pub(crate) fn holds(&mut self, key: &BlockKey, block: usize) -> bool {
        let manager = self.cache.manager();
        let found = manager.block_digest(self.cache.engine(), block).unwrap();
        found == self.expected(key)
    }

    /// Computes the whole chain into the blocks from `block` on and stores it. Returns the number
    /// of blocks stored.
    pub(crate) fn store(&self, keys: &[BlockKey], block: usize) -> usize {
        let report = self.store_from(keys, 0, block);
        assert!(report.stopped.is_none(), "{report:?}");
        report.stored
    }

    /// Computes the chain from its block `first` on into the blocks from `block` on, and stores
    /// these.
    pub(crate) fn store_from(&self, keys: &[BlockKey], first: usize, block: usize) -> StoreReport {
        let blocks: Vec<usize> = (block..block + keys.len() - first).collect();
        for (key, &block) in keys[first..].iter().zip(&blocks) {
            self.compute(key, block);
        }
        let options = StoreOptions::default();
        let completion = self
            .cache
            .store_with(keys, &blocks, &options.first(first))
            .unwrap();
        while self.cache.step() {}
        completion.wait()
    }

    /// Loads the stored prefix of `keys` to the blocks from `block` on, and checks every byte.
    /// Returns the number of blocks loaded.
    pub(crate) fn load(&mut self, keys: &[BlockKey], block: usize) -> usize {
        let found = self.cache.lookup(keys);
        let blocks: Vec<usize> = (block..block + found.blocks()).collect();
        blocks.iter().for_each(|&block| self.poison(block));
        let completion = self.cache.load(found, &blocks);
        let completion = completion.unwrap();
        while self.cache.step() {}
        let report = completion.wait();
        for (key, &block) in keys.iter().zip(&blocks).take(report.blocks) {
            assert!(self.holds(key, block), "block {block} is not that of {key}");
        }
        report.blocks
    }
}

/// A number from an environment variable.
pub(crate) fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}
