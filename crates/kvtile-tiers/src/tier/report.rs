//! What tiers report.

use std::{sync::Arc, time::Duration};

use kvtile_blocks::pool::PoolStats;

use crate::error::TierError;

/// A block that was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Came {
    /// The checksum that was written with it, where the tier does not verify by itself.
    pub checksum: Option<u64>,
}

/// Why a block was not read. What the host memory holds then must not be used.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TierMiss {
    /// The tier does not have it, or not any more.
    #[error("the tier does not have the block")]
    Absent,
    /// Its bytes are not those that were written. The tier has given it up.
    #[error("the block is damaged: {what}")]
    Damaged {
        /// What is wrong with it.
        what: String,
    },
    /// It could not be read.
    #[error(transparent)]
    Failed(TierError),
}

/// What became of a batch of reads.
#[derive(Clone, Debug)]
pub struct ReadReport {
    /// For each block, in the order of the batch.
    pub blocks: Arc<[Result<Came, TierMiss>]>,
    /// How long the reading took, without waiting for its turn.
    pub elapsed: Duration,
}

/// A block that a tier has after a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrote {
    /// It was written.
    New,
    /// It was there already.
    Present,
}

/// Why a block was not written.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotWritten {
    /// The block before it is not on the tier.
    #[error("the block before it is not on the tier")]
    NoParent,
    /// All of the tier's room holds its ancestors, or blocks in use; or the block before it in the batch has no
    /// room.
    #[error("the tier has no room")]
    NoRoom,
    /// The write failed.
    #[error(transparent)]
    Failed(TierError),
}

/// What became of a batch of writes.
#[derive(Clone, Debug)]
pub struct WriteReport {
    /// For each block, in the order of the batch.
    pub blocks: Arc<[Result<Wrote, NotWritten>]>,
    /// How long the writing took, without waiting for its turn.
    pub elapsed: Duration,
}

/// What became of a sync.
#[derive(Clone, Debug, Default)]
pub struct SyncReport {
    /// Blocks that were written and are lost. They cannot be found any more.
    pub lost: usize,
    /// Why not everything else is durable.
    pub failure: Option<TierError>,
}

/// What a tier answered.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// Leading blocks that it has.
    pub leading: usize,
    /// Why it could not say.
    pub failure: Option<TierError>,
}

impl Answer {
    /// It has so many leading blocks.
    #[must_use]
    pub fn of(leading: usize) -> Answer {
        Answer {
            leading,
            failure: None,
        }
    }
}

/// What a tier counted since it was opened, and what it holds.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct TierStats {
    /// Blocks that can be found.
    pub present: u64,
    /// Blocks that it has room for; 0 where nothing bounds them.
    pub capacity: u64,
    /// Blocks that left for others.
    pub evicted_for_room: u64,
    /// Blocks that left because their tenant had too many.
    pub evicted_for_quota: u64,
    /// Blocks that were evicted on request, forgotten or cleared.
    pub removed: u64,
    /// Blocks that were given up because they were damaged, lost, or could not be read.
    pub damaged: u64,
    /// What its pool counted, where it has one.
    pub pool: Option<PoolStats>,
}

impl TierStats {
    /// From what a pool counted; `damaged` of the removed blocks were damaged.
    #[must_use]
    pub fn of_pool(pool: PoolStats, damaged: u64) -> TierStats {
        let removed = pool.evicted_on_request + pool.removed_blocks + pool.cleared_blocks;
        TierStats {
            present: pool.cached as u64,
            capacity: pool.blocks as u64,
            evicted_for_room: pool.evicted_for_room,
            evicted_for_quota: pool.evicted_for_quota,
            // Counted at different times, so more may be damaged than removed.
            removed: removed.saturating_sub(damaged),
            damaged,
            pool: Some(pool),
        }
    }
}
