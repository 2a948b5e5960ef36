//! The messages that are JSON inside a frame.

use std::time::Duration;

use kvtile_blocks::events::TierId;
use kvtile_layout::{
    GroupRule, Shape,
    identity::{Fingerprint, GroupRole, Identity},
};
use serde::{Deserialize, Serialize};

use crate::{below::TierHealth, cache::FlushReport, metrics::CacheStats, tier::TierStats};

/// The version in a hello, which is read before anything else of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelloVersion {
    /// The version of the protocol.
    pub version: u32,
}

/// What a client requests of the daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum HelloBlocks {
    /// The blocks of one group of layers with full attention.
    Plain {
        /// What the blocks mean, in full.
        identity: Box<Identity>,
        /// The shape of one block of the engine.
        shape: Box<Shape>,
    },
    /// The groups of a model.
    Groups {
        /// The chain of the model, if keys are made with it.
        chain: Option<Fingerprint>,
        /// The groups, in the order of their names.
        groups: Vec<HelloGroup>,
    },
}

/// A group of a model in a hello.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HelloGroup {
    /// Its name.
    pub name: String,
    /// What a hit needs of it.
    pub rule: GroupRule,
    /// Whose layers it has.
    pub role: GroupRole,
    /// What its pages mean, in full.
    pub identity: Identity,
    /// Its share of memory. That of the first client counts.
    pub share: Option<f64>,
}

/// The first message of a client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HelloMessage {
    /// The version of the protocol.
    pub version: u32,
    /// What the daemon is to serve.
    pub blocks: HelloBlocks,
    /// A name for people: it appears in the daemon's status.
    pub name: String,
}

/// The daemon's reply to a hello. The host memory of each group follows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WelcomeMessage {
    /// The number of the session.
    pub session: u64,
    /// The groups in the order of the hello; one for blocks without groups.
    pub groups: Vec<WelcomeGroup>,
    /// The tiers in lookup order: host memory, then the tiers below it.
    pub tiers: Vec<TierId>,
    /// How long a hold is valid, in milliseconds.
    pub lease_ms: u64,
    /// The largest staging memory, in bytes over all groups.
    pub staging_bytes_max: u64,
}

/// A group in a welcome.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WelcomeGroup {
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
    /// [`Cache::estimate`](crate::cache::Cache::estimate).
    Estimate {
        /// The tier.
        tier: TierId,
        /// Number of blocks.
        blocks: usize,
    },
    /// [`Cache::overdue`](crate::cache::Cache::overdue).
    Overdue,
    /// The counters of the lookups of [`GroupCache::stats`](crate::groups::GroupCache::stats).
    StopStats,
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
    /// Of [`CallMessage::Estimate`].
    Estimate(Option<Duration>),
    /// Pins held past their deadline.
    Overdue(Vec<PinMessage>),
    /// The counters of lookups of stops.
    StopStats(StopCountsMessage),
}

/// The counters of the lookups of a cache over groups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopCountsMessage {
    /// Lookups.
    pub lookups: u64,
    /// Lookups that found a stop.
    pub hits: u64,
    /// Tokens of the stops that lookups found.
    pub found_tokens: u64,
    /// Stops that are known to be stored.
    pub known_stops: u64,
    /// How often events were read to keep stops whole.
    pub keeper_turns: u64,
}
