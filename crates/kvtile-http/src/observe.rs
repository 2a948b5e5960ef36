//! What is read from a cache. Nothing here waits for I/O or changes a cache.

use std::sync::Arc;

use kvtile::{
    BlockStore, Cache, TierId,
    shared::tier::SharedTier,
    tiers::{
        TierHealth,
        metrics::CacheStats,
        tier::{GroupId, Tier, TierStats},
    },
};

use crate::report::{CacheReport, IdentityReport, SharedStoreReport, TierReport};

/// What a page can show: a cache, a block store, or another owner of tiers.
pub trait ObservedCache {
    /// What the blocks of each group mean.
    fn identities(&self) -> Vec<IdentityReport>;

    /// Payload bytes of a block; `None` where the groups differ in size.
    fn block_bytes(&self) -> Option<u64>;

    /// The counters.
    fn stats(&self) -> CacheStats;

    /// The tiers, in lookup order.
    fn tiers(&self) -> Vec<TierId>;

    /// The counters and contents of a tier.
    fn tier_stats(&self, tier: TierId) -> Option<TierStats>;

    /// Which operations of a tier are in a backoff.
    fn tier_health(&self, tier: TierId) -> Option<TierHealth>;

    /// A tier below host memory.
    fn tier(&self, tier: TierId) -> Option<&Arc<dyn Tier>>;
}

impl ObservedCache for Cache {
    fn identities(&self) -> Vec<IdentityReport> {
        vec![IdentityReport::of(self.identity())]
    }

    fn block_bytes(&self) -> Option<u64> {
        Some(Cache::block_bytes(self))
    }

    fn stats(&self) -> CacheStats {
        Cache::stats(self)
    }

    fn tiers(&self) -> Vec<TierId> {
        Cache::tiers(self)
    }

    fn tier_stats(&self, tier: TierId) -> Option<TierStats> {
        Cache::tier_stats(self, tier)
    }

    fn tier_health(&self, tier: TierId) -> Option<TierHealth> {
        Cache::tier_health(self, tier)
    }

    fn tier(&self, tier: TierId) -> Option<&Arc<dyn Tier>> {
        Cache::tier(self, tier)
    }
}

impl ObservedCache for BlockStore {
    fn identities(&self) -> Vec<IdentityReport> {
        let groups = (0..).map(GroupId).zip(self.groups());
        let identities = groups.filter_map(|(group, _)| self.identity(group).ok());
        identities.map(IdentityReport::of).collect()
    }

    fn block_bytes(&self) -> Option<u64> {
        let groups = (0..).map(GroupId).zip(self.groups());
        let mut sizes = groups.map(|(group, _)| self.shape(group).ok()?.block_bytes().ok());
        let first = sizes.next()??;
        sizes.all(|size| size == Some(first)).then_some(first)
    }

    fn stats(&self) -> CacheStats {
        BlockStore::stats(self)
    }

    fn tiers(&self) -> Vec<TierId> {
        BlockStore::tiers(self)
    }

    fn tier_stats(&self, tier: TierId) -> Option<TierStats> {
        BlockStore::tier_stats(self, tier)
    }

    fn tier_health(&self, tier: TierId) -> Option<TierHealth> {
        BlockStore::tier_health(self, tier)
    }

    fn tier(&self, tier: TierId) -> Option<&Arc<dyn Tier>> {
        BlockStore::tier(self, tier)
    }
}

impl CacheReport {
    /// The current numbers of a cache. `name` is unique among the caches of a server.
    #[must_use]
    pub fn of(name: &str, cache: &dyn ObservedCache) -> CacheReport {
        let tiers = cache.tiers();
        CacheReport {
            name: name.to_owned(),
            identities: cache.identities(),
            block_bytes: cache.block_bytes(),
            stats: cache.stats(),
            tiers: tiers.iter().map(|tier| report_of(cache, *tier)).collect(),
        }
    }
}

fn report_of(cache: &dyn ObservedCache, id: TierId) -> TierReport {
    let stats = cache.tier_stats(id).unwrap_or_default();
    let tier = cache.tier(id);
    let abilities = tier.map(|tier| tier.abilities());
    let read = tier.and_then(|tier| tier.estimate(GroupId(0), 1));
    TierReport {
        tier: id,
        present: stats.present,
        capacity: (stats.capacity > 0).then_some(stats.capacity),
        is_durable: abilities.is_some_and(|abilities| abilities.is_durable),
        is_shared: abilities.is_some_and(|abilities| abilities.is_shared),
        health: cache.tier_health(id).unwrap_or_default(),
        read_seconds: read.map(|time| time.as_secs_f64()),
        shared: tier
            .and_then(|tier| tier.as_any().downcast_ref::<SharedTier>())
            .map(|tier| shared_report(tier, cache.identities().len())),
    }
}

fn shared_report(tier: &SharedTier, groups: usize) -> SharedStoreReport {
    let status = tier.status();
    let counters = tier.counters().fields();
    let groups = (0..).map(GroupId).take(groups.max(1));
    SharedStoreReport {
        store: status.store,
        bundle_blocks: groups
            .filter_map(|group| tier.bundle_blocks(group))
            .collect(),
        reads: status.reads.name().to_owned(),
        writes: status.writes.name().to_owned(),
        calls_max: status.calls_max as u64,
        counters: counters
            .into_iter()
            .map(|(name, count)| (name.to_owned(), count))
            .collect(),
    }
}
