//! A replay target with bytes: the cache itself, with an engine that computes nothing.
//!
//! The engine fills blocks with bytes that follow from their keys, stores them, and compares every byte after a
//! load.

use kvtile_blocks::{BlockKey, policy::EvictionHints};
use kvtile_layout::{Shape, Unit, Word, identity::Identity};
use kvtile_transfer::{LeaseMode, PhysicalLayout};

use super::{
    run::ReplayTarget,
    trace::{Trace, TraceRequest},
};
use crate::{
    BatchError, SettingsError, TierError,
    cache::{Cache, CacheSettings, LookupOptions, StoreOptions},
};

/// The cache, and an engine with as many blocks as the longest request has.
#[derive(Debug)]
pub struct RealCache {
    cache: Cache,
    keys: Vec<BlockKey>,
    block: Vec<u8>,
    /// Blocks that were loaded and compared.
    compared: u64,
}

/// Bytes of the largest block.
const BLOCK_BYTES_MAX: u64 = 1 << 40;

/// The identity of blocks that stand for those of a trace.
fn shape(blocks: u64, block_bytes: u64) -> Result<Shape, TierError> {
    let unit = Unit::new("u8", 1, 1)?;
    Ok(Shape::key_value(blocks, 1, 1, 1, block_bytes / 2, &unit)?)
}

impl RealCache {
    /// An empty cache for the requests of `trace`. `adjust` adds settings such as a disk or a policy.
    ///
    /// # Errors
    /// Block sizes that are odd, 0 or above 1 TiB, and what [`Cache::open`] refuses.
    pub fn open(
        trace: &Trace,
        (block_bytes, host_blocks): (u64, u32),
        adjust: impl FnOnce(CacheSettings) -> CacheSettings,
    ) -> Result<RealCache, TierError> {
        if block_bytes == 0 || !block_bytes.is_multiple_of(2) {
            return Err(TierError::Settings(SettingsError::OddBlockBytes {
                block_bytes,
            }));
        }
        if block_bytes > BLOCK_BYTES_MAX {
            return Err(TierError::Settings(SettingsError::BlockBytes {
                block_bytes,
            }));
        }
        let longest = trace.requests().map(|request| request.blocks.len()).max();
        let blocks = longest.unwrap_or(0).max(1) as u64;
        let shape = shape(blocks, block_bytes)?;
        let word = Word::parse("L|BKNHC").map_err(kvtile_layout::LayoutError::from)?;
        let engine = PhysicalLayout::builder()
            .with_shape(shape.clone())
            .layout(word)
            .allocate_system()
            .build()?;
        let identity = Identity::new("a trace", "1", &shape)?;
        let stride = block_bytes.next_multiple_of(4096);
        let host_bytes = stride.saturating_mul(u64::from(host_blocks));
        let settings = CacheSettings::new(identity).host_bytes(host_bytes);
        Ok(RealCache {
            cache: Cache::open(adjust(settings), engine)?,
            keys: Vec::new(),
            block: vec![0; usize::try_from(block_bytes).unwrap_or(usize::MAX)],
            compared: 0,
        })
    }

    /// The cache.
    #[must_use]
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Blocks that were loaded with the bytes that were stored.
    #[must_use]
    pub fn compared(&self) -> u64 {
        self.compared
    }

    /// Writes the bytes of a key's block to `self.block`.
    fn content(&mut self, key: &BlockKey) {
        let key = u128::from_le_bytes(*key.as_bytes());
        for (index, chunk) in self.block.chunks_mut(16).enumerate() {
            let word = key.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
            let word = (word ^ index as u128).to_le_bytes();
            for (to, from) in chunk.iter_mut().zip(word) {
                *to = from;
            }
        }
    }

    /// Compares the first `blocks` blocks of the engine with the bytes of their keys.
    fn compare(&mut self, blocks: usize) -> Result<(), TierError> {
        let ids: Vec<usize> = (0..blocks).collect();
        let manager = self.cache.manager().clone();
        let lease = manager.lease(self.cache.engine(), &ids, LeaseMode::Read)?;
        for index in ids {
            let Some(key) = self.keys.get(index).copied() else {
                break;
            };
            self.content(&key);
            if lease.block(index as u64)? != self.block {
                return Err(TierError::Batch(BatchError::WrongBytes { key }));
            }
            self.compared += 1;
        }
        Ok(())
    }

    /// Writes the blocks from `first` on in place of an engine.
    fn compute(&mut self, first: usize) -> Result<Vec<usize>, TierError> {
        let ids: Vec<usize> = (first..self.keys.len()).collect();
        let manager = self.cache.manager().clone();
        let mut lease = manager.lease(self.cache.engine(), &ids, LeaseMode::Write)?;
        for &index in &ids {
            if let Some(key) = self.keys.get(index).copied() {
                self.content(&key);
            }
            lease.block_mut(index as u64)?.copy_from_slice(&self.block);
        }
        Ok(ids)
    }
}

impl ReplayTarget for RealCache {
    fn request(&mut self, request: &TraceRequest<'_>) -> Result<usize, TierError> {
        self.keys.clear();
        let ids = request.blocks.iter();
        self.keys
            .extend(ids.map(|id| BlockKey::from_opaque(&u128::from(*id).to_le_bytes())));
        let mut hints = EvictionHints::default();
        hints.output_tokens = request.output_tokens;
        hints.partial_tail = request.partial_tail;
        let lookup = LookupOptions::new().hints(hints);
        let found = self.cache.lookup_with(&self.keys, &lookup);
        let destinations: Vec<usize> = (0..found.blocks()).collect();
        let load = self.cache.load(found, &destinations)?;
        let loaded = load.wait().blocks;
        self.compare(loaded)?;
        if loaded < self.keys.len() {
            let ids = self.compute(loaded)?;
            let store = StoreOptions::new().hints(hints);
            let stored = self
                .cache
                .store_with(&self.keys, &ids, &store.first(loaded))?;
            // The next request computes blocks without room again.
            drop(stored.wait());
        }
        self.cache.look_after();
        Ok(loaded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::TraceLimits;

    #[test]
    fn a_block_that_comes_back_with_other_bytes_is_an_error() {
        let line =
            r#"{"timestamp": 0, "input_length": 1024, "output_length": 1, "hash_ids": [1, 2]}"#;
        let trace = Trace::read(line.as_bytes(), &TraceLimits::default()).unwrap();
        let mut cache = RealCache::open(&trace, (64, 8), |settings| settings).unwrap();
        let request = trace.requests().next().unwrap();
        assert_eq!(cache.request(&request).unwrap(), 0);
        assert_eq!((cache.request(&request).unwrap(), cache.compared()), (2, 2));
        let manager = cache.cache.manager().clone();
        let mut lease = manager
            .lease(cache.cache.engine(), &[1], LeaseMode::Write)
            .unwrap();
        lease.block_mut(1).unwrap()[63] ^= 1;
        drop(lease);
        let error = cache.compare(2).unwrap_err();
        let key = cache.keys[1];
        assert!(
            matches!(error, TierError::Batch(BatchError::WrongBytes { key: bad }) if bad == key)
        );
    }
}
