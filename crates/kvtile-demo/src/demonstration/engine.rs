//! A small engine: its blocks, and the cache that stores and loads them. It does not know the
//! computation on the blocks.

use std::path::Path;
use std::time::Instant;

use kvtile::TokenHasher;
use kvtile::blocks::BlockKey;
use kvtile::blocks::events::TierId;
use kvtile::blocks::key::ExtraKeys;
use kvtile::blocks::sequence::TokenSequence;
use kvtile::tiers::cache::{Cache, CacheSettings, LoadReport};

use super::store::{BlockKv, EngineBlocks};
use super::{FlushedReport, OpenReport, StoreSettings, StoredReport};
use crate::DemoError;
use crate::kv::{KvOrder, KvShape};

/// Alignment of host memory and of the disk's slots, in bytes.
pub(super) const SLOT_ALIGNMENT: u64 = 4096;
/// Bytes of the disk tier besides its slots: room for manifest, records and lock.
const FOLDER_BYTES: u64 = 1 << 20;

/// The blocks of a process behind its cache.
pub(super) struct DemoEngine {
    cache: Cache,
    hasher: TokenHasher,
    stored_layout: String,
    block_bytes: u64,
    pub(super) kv_shape: KvShape,
    pub(super) order: KvOrder,
}

impl DemoEngine {
    /// Opens the cache for these blocks. It sets no compute rate, so the cache loads every hit and
    /// the demonstration can time both ways.
    ///
    /// # Errors
    /// A folder of another model, layout or page size, or one that is in use; an order in which a
    /// block is not contiguous.
    pub(super) fn open(
        blocks: EngineBlocks,
        store: &StoreSettings,
    ) -> Result<(Self, OpenReport), DemoError> {
        let started = Instant::now();
        let EngineBlocks {
            layout,
            kv_shape,
            identity,
            order,
            ..
        } = blocks;
        let block_bytes = layout.shape().block_bytes()?;
        let fingerprint = identity.fingerprint();
        let hasher = TokenHasher::new(&identity)?;
        let slot = block_bytes.next_multiple_of(SLOT_ALIGNMENT);
        let kept = store.blocks.get() as u64;
        // The disk keeps one slot in 64 erased.
        let slots = kept + kept / 32 + 2;
        let settings = CacheSettings::new(identity)
            .host_bytes(kept.saturating_mul(slot))
            .disk(&store.folder, slots.saturating_mul(slot) + FOLDER_BYTES)
            .storage_word(store.layout.clone());
        let cache = Cache::open(settings, layout)?;
        let stats = cache.stats();
        let count = |tier| stats.capacity.get(&tier).copied().unwrap_or_default();
        let report = OpenReport {
            folder: store.folder.clone(),
            layout: store.layout.to_string(),
            fingerprint: fingerprint.to_string(),
            host_blocks: count(TierId::HOST),
            disk_blocks: count(TierId::DISK),
            found_blocks: stats
                .present
                .get(&TierId::DISK)
                .copied()
                .unwrap_or_default(),
            seconds: started.elapsed().as_secs_f64(),
        };
        let engine = Self {
            cache,
            hasher,
            stored_layout: report.layout.clone(),
            block_bytes,
            kv_shape,
            order,
        };
        Ok((engine, report))
    }

    /// Bytes of a block.
    pub(super) fn block_bytes(&self) -> u64 {
        self.block_bytes
    }

    /// The keys of the full blocks of `tokens`.
    pub(super) fn keys(&self, tokens: &[u32]) -> Result<TokenSequence, DemoError> {
        let mut sequence = self.hasher.sequence(ExtraKeys::NONE)?;
        sequence.reserve(tokens.len());
        sequence.extend(tokens);
        Ok(sequence)
    }

    /// Loads the longest cached prefix of `keys` into the first of `blocks`, which must not be
    /// leased.
    ///
    /// # Errors
    /// [`DemoError::PrefixElsewhere`] unless the prefix has exactly `expected` blocks, all in
    /// `tier`; [`DemoError::PrefixLost`] where the load stops early.
    pub(super) fn load(
        &self,
        number: usize,
        keys: &[BlockKey],
        (expected, tier): (usize, TierId),
        blocks: &[usize],
    ) -> Result<LoadReport, DemoError> {
        let found = self.cache.lookup(keys);
        let (all, there) = (found.blocks(), found.blocks_in(tier));
        if all != expected || there != expected {
            return Err(DemoError::PrefixElsewhere {
                number,
                tier,
                expected,
                found: there,
                elsewhere: all - there,
            });
        }
        let into = blocks.get(..expected).unwrap_or(blocks);
        let load = self.cache.load(found, into)?;
        let report = load.wait();
        if report.blocks != expected {
            return Err(DemoError::PrefixLost {
                number,
                loaded: report.blocks,
                wanted: expected,
                stopped: report.stopped,
            });
        }
        Ok(report)
    }

    /// Stores the blocks of `keys`, which are the first of `blocks`. They must not be leased.
    ///
    /// # Errors
    /// [`DemoError::NotStored`] where the cache refused one of them.
    pub(super) fn store(
        &self,
        number: usize,
        keys: &[BlockKey],
        blocks: &[usize],
    ) -> Result<StoredReport, DemoError> {
        let started = Instant::now();
        let blocks = blocks.get(..keys.len()).unwrap_or(blocks);
        let store = self.cache.store(keys, blocks)?;
        let report = store.wait();
        if report.dropped > 0 || report.stopped.is_some() {
            return Err(DemoError::NotStored {
                number,
                dropped: report.dropped,
                stopped: report.stopped,
            });
        }
        Ok(StoredReport {
            layout: self.stored_layout.clone(),
            blocks: report.stored,
            present: report.present,
            bytes: report.bytes,
            seconds: started.elapsed().as_secs_f64(),
        })
    }

    /// Leases the blocks exclusively and returns them in the form that the model uses.
    pub(super) fn lease(&self, blocks: &[usize]) -> Result<BlockKv, DemoError> {
        let (manager, handle) = (self.cache.manager(), self.cache.engine());
        BlockKv::lease(manager, handle, blocks, (self.kv_shape, self.order))
    }

    /// Flushes the cache to disk and ends: the cache, its host memory and the engine's blocks are
    /// freed, and the folder is free for another process.
    ///
    /// # Errors
    /// [`DemoError::NotFlushed`] where a block is not durable.
    pub(super) fn flush(self, folder: &Path) -> Result<FlushedReport, DemoError> {
        let started = Instant::now();
        let flushed = self.cache.flush();
        if !flushed.durable {
            return Err(DemoError::NotFlushed {
                failed: flushed.no_tier + flushed.no_room + flushed.late + flushed.failed,
                folder: folder.to_owned(),
            });
        }
        Ok(FlushedReport {
            blocks: flushed.written,
            bytes: flushed.written as u64 * self.block_bytes,
            seconds: started.elapsed().as_secs_f64(),
        })
    }
}
