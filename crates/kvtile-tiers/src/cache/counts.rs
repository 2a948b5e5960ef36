//! The statistics of a cache and of its tiers.

use kvtile_blocks::events::TierId;

use super::CacheParts;
use crate::{
    below::TierHealth,
    metrics::{CacheStats, Queue, observe_tier},
    tier::TierStats,
};

/// The counters of the cache, including those of the tiers up to now.
pub(super) fn stats(inner: &CacheParts) -> CacheStats {
    observe(inner);
    inner.metrics.stats()
}

/// Adds the growth of the tiers' counters since the last call.
pub(super) fn observe(inner: &CacheParts) {
    let host = || TierStats::of_pool(inner.host.pool.stats(), 0);
    let mut seen = inner.seen.iter();
    if let Some(seen) = seen.next() {
        observe_tier(&inner.metrics, TierId::HOST, seen, host);
    }
    for (below, seen) in inner.below.iter().zip(seen) {
        observe_tier(&inner.metrics, below.id, seen, || below.tier.stats());
    }
}

pub(super) fn tier_stats(inner: &CacheParts, tier: TierId) -> Option<TierStats> {
    if tier == TierId::HOST {
        return Some(TierStats::of_pool(inner.host.pool.stats(), 0));
    }
    let below = inner.below.iter().find(|below| below.id == tier)?;
    Some(below.tier.stats())
}

pub(super) fn tier_health(inner: &CacheParts, tier: TierId) -> Option<TierHealth> {
    if tier == TierId::HOST {
        return Some(TierHealth::default());
    }
    let below = inner.below.iter().find(|below| below.id == tier)?;
    Some(below.health(inner.clock.now()))
}

/// Sets the capacities: all kinds of jobs share one queue; blocks to write to tiers have another.
pub(super) fn count_queue_capacity(inner: &CacheParts) {
    let capacity = inner.settings.queue_capacity as u64;
    for &queue in Queue::ALL {
        inner.metrics.queue_capacity(queue, capacity);
    }
    inner
        .metrics
        .queue_capacity(Queue::Spill, inner.spill_keys_max() as u64);
}
