//! The numbers of a cache at one moment, as plain data.

use super::{EvictionReason, MissReason, Queue};
use kvtile_blocks::events::TierId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a cache counted since it was built. Maps leave out zeros.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheStats {
    /// Lookups.
    pub lookups: u64,
    /// Blocks that were looked up: the sum of all hits and misses.
    pub lookup_blocks: u64,
    /// Blocks that were found, by the fastest tier that had them.
    pub hits: BTreeMap<TierId, u64>,
    /// Blocks that were not offered, by reason.
    pub misses: BTreeMap<MissReason, u64>,
    /// Hits that could not be loaded, by reason.
    pub lost_hits: BTreeMap<MissReason, u64>,
    /// What went from tier to tier.
    pub moves: Vec<MoveStats>,
    /// What waits.
    pub queues: Vec<QueueStats>,
    /// Pins now.
    pub pinned: BTreeMap<TierId, u64>,
    /// Pins that were ever taken.
    pub pins: BTreeMap<TierId, u64>,
    /// Pins that outlived their deadline.
    pub pins_overdue: BTreeMap<TierId, u64>,
    /// Blocks that were ever stored.
    pub stored: BTreeMap<TierId, u64>,
    /// Blocks that were to be stored and were not, because the tier has no room for them or fails, or
    /// because their ancestors are in no tier.
    pub left_out: BTreeMap<TierId, u64>,
    /// Blocks that are there now.
    pub present: BTreeMap<TierId, u64>,
    /// Blocks that have room.
    pub capacity: BTreeMap<TierId, u64>,
    /// Blocks that left, by tier and reason.
    pub evicted: BTreeMap<TierId, BTreeMap<EvictionReason, u64>>,
    /// Blocks whose checksum was compared.
    pub checked: BTreeMap<TierId, u64>,
    /// Blocks whose checksum did not match.
    pub checksum_failures: BTreeMap<TierId, u64>,
}

/// What went from one tier to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveStats {
    /// From here.
    pub source: TierId,
    /// To there.
    pub destination: TierId,
    /// Transfers, failed ones among them.
    pub moves: u64,
    /// Transfers that failed.
    pub failures: u64,
    /// Blocks that arrived.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How long the transfers took that arrived, together.
    pub nanoseconds: u64,
}

/// A queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueStats {
    /// Which.
    pub queue: Queue,
    /// What waits now.
    pub depth: u64,
    /// What may wait.
    pub capacity: u64,
    /// What was to be queued, refused or not.
    pub offered: u64,
    /// What was refused because the queue was full.
    pub refused: u64,
}

impl CacheStats {
    /// Hits of all tiers over blocks that were looked up; `None` before the first.
    #[must_use]
    pub fn hit_ratio(&self) -> Option<f64> {
        ratio(self.hits.values().sum(), self.lookup_blocks)
    }
}

impl MoveStats {
    /// Bytes that arrived over the time they took; `None` before the first.
    #[must_use]
    pub fn bytes_per_second(&self) -> Option<f64> {
        ratio(self.bytes, self.nanoseconds).map(|per_nanosecond| per_nanosecond * 1e9)
    }
}

fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}
