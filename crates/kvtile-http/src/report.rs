//! The numbers of caches, as plain data. Their JSON is `/stats.json`.

use std::collections::BTreeMap;

use kvtile::{
    TierId,
    identity::Identity,
    tiers::{TierHealth, metrics::CacheStats},
};
use serde::{Deserialize, Serialize};

/// All caches of a server at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Observation {
    /// The version of kvtile.
    pub kvtile: String,
    /// Seconds since the start of the server.
    pub seconds: f64,
    /// The caches.
    pub caches: Vec<CacheReport>,
}

/// One cache, or one block store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CacheReport {
    /// Its name, unique among the caches of a server.
    pub name: String,
    /// What its blocks mean; one for each group of blocks.
    pub identities: Vec<IdentityReport>,
    /// Payload bytes of a block; `None` where the groups differ in size.
    pub block_bytes: Option<u64>,
    /// Its counters.
    pub stats: CacheStats,
    /// Its tiers, in lookup order.
    pub tiers: Vec<TierReport>,
}

/// What the blocks of a group mean, in short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct IdentityReport {
    /// The model.
    pub model: String,
    /// Its revision.
    pub revision: String,
    /// Tokens of a block.
    pub page_size: u64,
    /// The fingerprint of the whole identity, in hexadecimal digits.
    pub fingerprint: String,
}

/// One tier of a cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TierReport {
    /// Its name.
    pub tier: TierId,
    /// Blocks that lookups can find. Of a shared tier: those that this cache knows.
    pub present: u64,
    /// Its capacity in blocks; `None` if it is unbounded.
    pub capacity: Option<u64>,
    /// Whether its synced blocks outlive the process.
    pub is_durable: bool,
    /// Whether other caches write to it too.
    pub is_shared: bool,
    /// Which operations are in a backoff.
    pub health: TierHealth,
    /// The expected seconds to read one block; `None` before the first measurement.
    pub read_seconds: Option<f64>,
    /// The store of a shared tier.
    pub shared: Option<SharedStoreReport>,
}

/// The store of a shared tier.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SharedStoreReport {
    /// Its name, without secrets.
    pub store: String,
    /// Blocks of a bundle, by group.
    pub bundle_blocks: Vec<u32>,
    /// The state of the breaker of reads and queries: `closed`, `open` or `trial`.
    pub reads: String,
    /// The state of the breaker of writes.
    pub writes: String,
    /// The most calls at a time.
    pub calls_max: u64,
    /// Its counters, by name.
    pub counters: BTreeMap<String, u64>,
}

impl IdentityReport {
    /// The short form of an identity.
    #[must_use]
    pub fn of(identity: &Identity) -> IdentityReport {
        IdentityReport {
            model: identity.model().to_owned(),
            revision: identity.revision().to_owned(),
            page_size: identity.page_size(),
            fingerprint: identity.fingerprint().to_string(),
        }
    }
}
