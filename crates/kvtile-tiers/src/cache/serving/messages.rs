//! The messages that are JSON inside a frame.

use kvtile_blocks::events::TierId;
use kvtile_layout::{
    Shape,
    identity::{Fingerprint, Identity},
};
use serde::{Deserialize, Serialize};

use crate::{below::TierHealth, cache::FlushReport, metrics::CacheStats, tier::TierStats};

/// The version in a hello, which is read before anything else of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelloVersion {
    /// The version of the protocol.
    pub version: u32,
}

/// The first message of a client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HelloMessage {
    /// The version of the protocol.
    pub version: u32,
    /// What the blocks mean, in full.
    pub identity: Identity,
    /// The shape of one block of the engine.
    pub shape: Shape,
    /// A name for people: it appears in the daemon's status.
    pub name: String,
}

/// The daemon's reply to a hello.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WelcomeMessage {
    /// The number of the session.
    pub session: u64,
    /// The fingerprint of the identity that the daemon serves to this session.
    pub identity: Fingerprint,
    /// Blocks of host memory, spare blocks included.
    pub blocks: u64,
    /// Blocks of the pool.
    pub pool_blocks: u64,
    /// The order of a block in host memory.
    pub storage_word: String,
    /// The fingerprint of the layout of one block in host memory.
    pub block_layout: Fingerprint,
    /// The tiers in lookup order: host memory, then the tiers below it.
    pub tiers: Vec<TierId>,
    /// How long a hold is valid, in milliseconds.
    pub lease_ms: u64,
    /// The largest staging memory, in blocks.
    pub staging_blocks_max: u64,
}

/// A call that is not worth a frame of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum CallMessage {
    /// [`Cache::evict`](crate::cache::Cache::evict).
    Evict {
        /// The tier.
        tier: TierId,
        /// Number of blocks.
        blocks: usize,
    },
    /// [`Cache::clear`](crate::cache::Cache::clear).
    Clear,
    /// [`Cache::flush`](crate::cache::Cache::flush).
    Flush,
    /// [`Cache::stats`](crate::cache::Cache::stats).
    Stats,
    /// [`Cache::tier_stats`](crate::cache::Cache::tier_stats).
    TierStats {
        /// The tier.
        tier: TierId,
    },
    /// [`Cache::tier_health`](crate::cache::Cache::tier_health).
    TierHealth {
        /// The tier.
        tier: TierId,
    },
    /// [`Cache::overdue`](crate::cache::Cache::overdue).
    Overdue,
}

/// Pins held past a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinMessage {
    /// The holder.
    pub owner: u64,
    /// When they were due, in ticks of the daemon's cache.
    pub deadline: u64,
    /// Number of blocks.
    pub blocks: usize,
    /// When they were pinned.
    pub since: u64,
}

/// The answer to a call.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub enum CallAnswer {
    /// A number of blocks.
    Blocks(usize),
    /// The outcome of a flush.
    Flushed(FlushReport),
    /// The counters of the cache.
    Stats(Box<CacheStats>),
    /// The counters of a tier; `None` if the cache has no such tier.
    TierStats(Option<Box<TierStats>>),
    /// The health of a tier; `None` if the cache has no such tier.
    TierHealth(Option<TierHealth>),
    /// Pins held past their deadline.
    Overdue(Vec<PinMessage>),
}
