//! The same blocks through a whole cache: eviction demotes them from host memory to disk, prefetch
//! promotes them.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use kvtile::{
    blocks::{BlockKey, events::TierId},
    identity::Identity,
    layout::{LayoutError, PhysicalLayout, Shape, Unit, Word},
    tiers::cache::{Cache, CacheSettings},
    transfer::FillPattern,
};

use crate::error::BenchError;

/// Tokens per block.
const PAGE_SIZE: u64 = 16;

/// Keys and values of a head, in bytes per token and element.
const ELEMENT_BYTES: u64 = 2 * 2;

/// A cache with host memory for the blocks of a round, and a disk for twice as many.
pub(super) struct CacheUnderTest {
    cache: Cache,
    blocks: usize,
    block_bytes: u64,
    /// Number of written chains: each round writes blocks that are not on disk.
    chains: u64,
}

impl CacheUnderTest {
    /// A cache in `folder` for blocks of `block_bytes` bytes, `bytes` bytes in all.
    pub(super) fn new(
        folder: &Path,
        block_bytes: u64,
        bytes: u64,
    ) -> Result<CacheUnderTest, BenchError> {
        let blocks = (bytes / block_bytes.max(1)).max(1);
        let head_size = block_bytes / (PAGE_SIZE * ELEMENT_BYTES);
        let unit = Unit::new("bf16", 2, 1)?;
        let shape = Shape::key_value(blocks, 1, PAGE_SIZE, 1, head_size, &unit)?;
        let word: Word = "BLKNHC".parse().map_err(LayoutError::from)?;
        let engine = PhysicalLayout::builder()
            .with_shape(shape.clone())
            .layout(word)
            .allocate_system()
            .build()?;
        let identity = Identity::new("benchmark", "none", &shape)?;
        let capacity = (2 * blocks + 64) * (block_bytes + 64) * 33 / 32 + (1 << 20);
        let settings = CacheSettings::new(identity)
            .host_bytes(blocks * block_bytes)
            .prefault()
            .disk(folder.join("cache"), capacity);
        let cache = Cache::open(settings, engine)?;
        let blocks = usize::try_from(blocks).map_err(|_| BenchError::TooManyBytes {
            bytes,
            needed: bytes,
            available: usize::MAX as u64,
        })?;
        let tested = CacheUnderTest {
            cache,
            blocks,
            block_bytes,
            chains: 0,
        };
        let ids: Vec<usize> = (0..blocks).collect();
        let pattern = FillPattern::Distinct { seed: block_bytes };
        tested
            .cache
            .manager()
            .fill(tested.cache.engine(), &ids, pattern)?;
        Ok(tested)
    }

    pub(super) fn block_bytes(&self) -> u64 {
        self.block_bytes
    }

    /// Bytes of a round.
    pub(super) fn bytes(&self) -> u64 {
        self.blocks as u64 * self.block_bytes
    }

    fn keys(&self) -> Vec<BlockKey> {
        let key = |block: usize| {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&self.chains.to_le_bytes());
            bytes[8..].copy_from_slice(&(block as u64).to_le_bytes());
            BlockKey::from_bytes(bytes)
        };
        (0..self.blocks).map(key).collect()
    }

    fn ids(&self) -> Vec<usize> {
        (0..self.blocks).collect()
    }

    /// Stores a new chain and evicts it from host memory to the disk. Returns the time of the
    /// eviction.
    pub(super) fn write(&mut self) -> Result<Duration, BenchError> {
        self.cache.clear()?;
        self.chains += 1;
        let stored = self.cache.store(&self.keys(), &self.ids())?;
        self.check("store", stored.wait().stored)?;
        let begun = Instant::now();
        let evicted = self.cache.evict(TierId::HOST, self.blocks)?;
        let elapsed = begun.elapsed();
        self.check("evict", evicted)?;
        Ok(elapsed)
    }

    /// Prefetches the chain from the disk to host memory and returns the time. With `compared`, it
    /// loads the blocks to the engine and compares them with the stored ones.
    pub(super) fn read(&self, compared: bool) -> Result<Duration, BenchError> {
        let begun = Instant::now();
        let report = self.cache.prefetch(&self.keys())?.wait();
        let elapsed = begun.elapsed();
        self.check("read", report.blocks_from(TierId::DISK))?;
        if compared {
            self.compare()?;
        }
        // Blocks that are on disk already are not written again.
        self.cache.evict(TierId::HOST, self.blocks)?;
        Ok(elapsed)
    }

    fn compare(&self) -> Result<(), BenchError> {
        let (manager, engine) = (self.cache.manager(), self.cache.engine());
        let ids = self.ids();
        let digest = |block: &usize| manager.block_digest(engine, *block);
        let expected: Vec<_> = ids.iter().map(digest).collect::<Result<_, _>>()?;
        let other = FillPattern::Distinct {
            seed: !self.block_bytes,
        };
        manager.fill(engine, &ids, other)?;
        let found = self.cache.lookup(&self.keys());
        let loaded = self.cache.load(found, &ids)?;
        self.check("load", loaded.wait().blocks)?;
        for (block, expected) in ids.iter().zip(expected) {
            if digest(block)? != expected {
                return Err(BenchError::WrongCopy {
                    row: "disk".to_owned(),
                    method: "kvtile",
                    block: *block as u64,
                });
            }
        }
        Ok(())
    }

    fn check(&self, operation: &'static str, came: usize) -> Result<(), BenchError> {
        match came == self.blocks {
            true => Ok(()),
            false => Err(BenchError::CacheFellShort {
                operation,
                came,
                wanted: self.blocks,
            }),
        }
    }
}
