//! The counters of a cache at one moment, as plain data.

use super::{EvictionReason, MissReason, Queue};
use kvtile_blocks::events::TierId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The counters of a cache since it was built. Maps leave out zeros.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheStats {
    /// Lookups.
    pub lookups: u64,
    /// Blocks that were looked up: the sum of all hits and misses.
    pub lookup_blocks: u64,
    /// Blocks that were found, by the fastest tier that had them.
    pub hits: BTreeMap<TierId, u64>,
    /// Blocks that a lookup did not offer, by reason.
    pub misses: BTreeMap<MissReason, u64>,
    /// Hits that could not be loaded, by reason.
    pub lost_hits: BTreeMap<MissReason, u64>,
    /// Transfers between tiers.
    pub moves: Vec<MoveStats>,
    /// The queues.
    pub queues: Vec<QueueStats>,
    /// Current pins.
    pub pinned: BTreeMap<TierId, u64>,
    /// Pins taken.
    pub pins: BTreeMap<TierId, u64>,
    /// Pins that were held past their deadline.
    pub pins_overdue: BTreeMap<TierId, u64>,
    /// Blocks stored.
    pub stored: BTreeMap<TierId, u64>,
    /// Blocks that a tier did not store, because it has no room or fails, or because their
    /// ancestors are in no tier.
    pub left_out: BTreeMap<TierId, u64>,
    /// Blocks that the tier holds now.
    pub present: BTreeMap<TierId, u64>,
    /// The capacity of the tier, in blocks.
    pub capacity: BTreeMap<TierId, u64>,
    /// Blocks that left a tier, by tier and reason.
    pub evicted: BTreeMap<TierId, BTreeMap<EvictionReason, u64>>,
    /// Blocks whose checksum was compared.
    pub checked: BTreeMap<TierId, u64>,
    /// Blocks whose checksum did not match.
    pub checksum_failures: BTreeMap<TierId, u64>,
}

/// The transfers from one tier to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveStats {
    /// The tier read from.
    pub source: TierId,
    /// The tier written to.
    pub destination: TierId,
    /// Transfers, failed ones included.
    pub moves: u64,
    /// Failed transfers: batches that failed as a whole, and single blocks of other batches.
    pub failures: u64,
    /// Blocks that arrived.
    pub blocks: u64,
    /// Bytes of those blocks.
    pub bytes: u64,
    /// The total duration of the completed transfers.
    pub nanoseconds: u64,
}

/// The counters of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueStats {
    /// The queue.
    pub queue: Queue,
    /// Jobs in the queue now.
    pub depth: u64,
    /// The capacity of the queue, in jobs.
    pub capacity: u64,
    /// Jobs offered to the queue, refused ones included.
    pub offered: u64,
    /// Jobs refused because the queue was full.
    pub refused: u64,
}

impl CacheStats {
    /// Hits of all tiers over the blocks looked up; `None` before the first lookup.
    #[must_use]
    pub fn hit_ratio(&self) -> Option<f64> {
        ratio(self.hits.values().sum(), self.lookup_blocks)
    }
}

impl MoveStats {
    /// Transferred bytes over the duration of the transfers; `None` before the first one.
    #[must_use]
    pub fn bytes_per_second(&self) -> Option<f64> {
        ratio(self.bytes, self.nanoseconds).map(|per_nanosecond| per_nanosecond * 1e9)
    }
}

fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}
