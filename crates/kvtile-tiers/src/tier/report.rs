//! The reports of tiers.

use std::{sync::Arc, time::Duration};

use kvtile_blocks::pool::PoolStats;
use serde::{Deserialize, Serialize};

use crate::error::TierError;

/// A successful read of a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadSuccess {
    /// The checksum that was written with the block, if the tier does not verify by itself.
    pub checksum: Option<u64>,
}

/// Why a block was not read. The content of its host memory must not be used.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TierMiss {
    /// The tier does not have the block.
    #[error("the tier does not have the block")]
    Absent,
    /// The bytes differ from those written. The tier has removed the block.
    #[error("the block is damaged: {what}")]
    Damaged {
        /// What is wrong with the block.
        what: String,
    },
    /// The read failed.
    #[error(transparent)]
    Failed(TierError),
}

/// The outcome of a batch of reads.
#[derive(Clone, Debug)]
pub struct ReadReport {
    /// One outcome for each block, in the order of the batch.
    pub blocks: Arc<[Result<ReadSuccess, TierMiss>]>,
    /// The time of the reads, without the wait in the tier's queue.
    pub elapsed: Duration,
}

/// A successful write: the tier has the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteSuccess {
    /// The tier wrote it.
    New,
    /// The tier already had it.
    Present,
}

/// Why a block was not written.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotWritten {
    /// The parent of the block is not on the tier.
    #[error("the block before it is not on the tier")]
    NoParent,
    /// The tier's capacity is taken by the block's ancestors and by blocks in use; or its parent in
    /// the batch had no room.
    #[error("the tier has no room")]
    NoRoom,
    /// The block was removed during its write ([`Tier::forget`](super::Tier::forget),
    /// [`Tier::clear`](super::Tier::clear)).
    #[error("the block was removed during its write")]
    Removed,
    /// The write failed.
    #[error(transparent)]
    Failed(TierError),
}

/// The outcome of a batch of writes.
#[derive(Clone, Debug)]
pub struct WriteReport {
    /// One outcome for each block, in the order of the batch.
    pub blocks: Arc<[Result<WriteSuccess, NotWritten>]>,
    /// The time of the writes, without the wait in the tier's queue.
    pub elapsed: Duration,
}

/// The outcome of a sync.
#[derive(Clone, Debug, Default)]
pub struct SyncReport {
    /// Number of written blocks that were lost. Lookups do not find them.
    pub lost: usize,
    /// Why the other blocks are not durable.
    pub failure: Option<TierError>,
}

/// The answer of a tier to a query.
#[derive(Clone, Debug, Default)]
pub struct TierAnswer {
    /// Number of leading blocks that it has.
    pub leading: usize,
    /// Why the query failed.
    pub failure: Option<TierError>,
}

impl TierAnswer {
    /// An answer with `leading` blocks.
    #[must_use]
    pub fn of(leading: usize) -> TierAnswer {
        TierAnswer {
            leading,
            failure: None,
        }
    }
}

/// The counters of a tier since it was opened, and its contents.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TierStats {
    /// Number of blocks that lookups can find.
    pub present: u64,
    /// Capacity in blocks; 0 if the tier is unbounded.
    pub capacity: u64,
    /// Blocks evicted for other blocks.
    pub evicted_for_room: u64,
    /// Blocks evicted because their tenant exceeded its quota.
    pub evicted_for_quota: u64,
    /// Blocks evicted on request, removed or cleared.
    pub removed: u64,
    /// Blocks removed because they were damaged, lost or not readable.
    pub damaged: u64,
    /// Blocks that were written and that a failed sync lost; `damaged` includes them.
    #[serde(default)]
    pub lost: u64,
    /// The counters of the tier's pool, if it has one.
    pub pool: Option<PoolStats>,
}

impl TierStats {
    /// Statistics of a tier with a pool; `damaged` of the removed blocks were damaged.
    #[must_use]
    pub fn of_pool(pool: PoolStats, damaged: u64) -> TierStats {
        let removed = pool.evicted_on_request + pool.removed_blocks + pool.cleared_blocks;
        TierStats {
            present: pool.cached as u64,
            capacity: pool.blocks as u64,
            evicted_for_room: pool.evicted_for_room,
            evicted_for_quota: pool.evicted_for_quota,
            // The two counters are read at different times, so `damaged` may exceed `removed`.
            removed: removed.saturating_sub(damaged),
            damaged,
            lost: 0,
            pool: Some(pool),
        }
    }

    /// The sum over several groups of a tier, the counters of their pools included.
    #[must_use]
    pub fn sum(groups: impl IntoIterator<Item = TierStats>) -> TierStats {
        let mut sum = TierStats::default();
        for group in groups {
            sum.present += group.present;
            sum.capacity += group.capacity;
            sum.evicted_for_room += group.evicted_for_room;
            sum.evicted_for_quota += group.evicted_for_quota;
            sum.removed += group.removed;
            sum.damaged += group.damaged;
            sum.lost += group.lost;
            match (&mut sum.pool, group.pool) {
                (Some(sum), Some(pool)) => sum.add(&pool),
                (of_sum, Some(pool)) => *of_sum = Some(pool),
                (_, None) => {}
            }
        }
        sum
    }
}
