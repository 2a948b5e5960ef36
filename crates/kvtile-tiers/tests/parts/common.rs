//! Caches of the ranks of a small model, over a folder.

use std::{path::Path, time::Instant};

use kvtile_layout::Shard;
use kvtile_tiers::{
    cache::{Cache, TierWrites},
    parts::{PartFolderName, PartsTier},
    tier::Tier,
};

pub(crate) use crate::model::{HEADS, LAYERS, Rank, chain, grid, shard};

/// The longest wait for another rank's blocks.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);

impl Rank {
    pub(crate) fn open(folder: &Path, shard: Shard) -> Rank {
        Rank::open_with(folder, shard, 1 << 20)
    }

    /// A rank whose own part has at most `disk_bytes`.
    pub(crate) fn open_with(folder: &Path, shard: Shard, disk_bytes: u64) -> Rank {
        Rank::of(shard, |settings, engine| {
            let settings = settings
                .disk(folder, disk_bytes)
                .disk_writes(TierWrites::AtOnce)
                // Blocks of other parts are not written to the own one at the end.
                .close_within(std::time::Duration::ZERO);
            Cache::open(settings, engine).unwrap()
        })
    }

    /// Stores the first `blocks` blocks of a prompt, durably.
    pub(crate) fn store(&self, number: u32, blocks: u32) {
        self.put(number, blocks);
        assert!(self.cache.flush().durable);
    }

    /// Waits until the cache has `wanted` leading blocks of a prompt.
    pub(crate) fn until_there(&self, number: u32, blocks: u32, wanted: usize) {
        let keys = chain(self.shard, number, blocks);
        let start = Instant::now();
        loop {
            let found = self.cache.seek(&keys, PATIENCE).wait();
            if found.blocks() == wanted {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "{found:?}, not {wanted}");
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }

    /// Loads a prompt and compares every byte. Returns the number of leading blocks that came.
    pub(crate) fn load(&self, number: u32, blocks: u32) -> usize {
        let keys = chain(self.shard, number, blocks);
        self.load_found(self.cache.lookup(&keys), &keys)
    }

    /// The tier of the other parts.
    pub(crate) fn parts(&self) -> Option<&PartsTier> {
        let parts = self.cache.parts()?;
        parts.check_integrity();
        Some(parts)
    }

    /// How many blocks were assembled from other parts.
    pub(crate) fn assembled(&self) -> u64 {
        let parts = self.parts();
        parts.map_or(0, |parts| parts.parts_stats().assembled)
    }
}

/// Flips a bit in every 64 bytes of the blocks of a part.
pub(crate) fn damage(folder: &Path, part: &Shard) {
    let slots = folder
        .join(PartFolderName::of(part).to_string())
        .join("slots");
    let mut bytes = std::fs::read(&slots).unwrap();
    bytes.iter_mut().step_by(64).for_each(|byte| *byte ^= 0x10);
    std::fs::write(&slots, bytes).unwrap();
}

/// The ranks of a grid, which store a prompt and close.
pub(crate) fn written(folder: &Path, shards: &[Shard], number: u32, blocks: u32) {
    for &shard in shards {
        let rank = Rank::open(folder, shard);
        rank.store(number, blocks);
        assert!(rank.cache.close().durable);
    }
}
