//! What a cache reports of itself.

use std::sync::{Mutex, PoisonError};

use kvtile_blocks::events::TierId;

use super::Inner;
use crate::{
    metrics::{CacheStats, EvictionReason, Queue},
    tier::TierStats,
};

/// What the tiers had counted when they were last looked at: host memory, then those below it.
pub(super) struct Seen(Vec<Mutex<TierStats>>);

impl Seen {
    /// Of so many tiers below host memory.
    pub(super) fn new(below: usize) -> Seen {
        Seen((0..=below).map(|_| Mutex::default()).collect())
    }
}

impl Inner {
    /// The counters, after what the tiers counted by themselves was added.
    pub(super) fn stats(&self) -> CacheStats {
        self.observe();
        self.metrics.stats()
    }

    /// Adds what the tiers counted since the last time.
    pub(super) fn observe(&self) {
        let host = || TierStats::of_pool(self.host.pool.stats(), 0);
        let mut seen = self.seen.0.iter();
        if let Some(seen) = seen.next() {
            self.observe_tier(TierId::HOST, seen, host);
        }
        for (below, seen) in self.below.iter().zip(seen) {
            self.observe_tier(below.id, seen, || below.tier.stats());
        }
    }

    fn observe_tier(
        &self,
        tier: TierId,
        seen: &Mutex<TierStats>,
        stats: impl FnOnce() -> TierStats,
    ) {
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = stats();
        let gone = [
            (
                EvictionReason::Capacity,
                now.evicted_for_room,
                seen.evicted_for_room,
            ),
            (
                EvictionReason::Quota,
                now.evicted_for_quota,
                seen.evicted_for_quota,
            ),
            (EvictionReason::Removed, now.removed, seen.removed),
            (EvictionReason::Damaged, now.damaged, seen.damaged),
        ];
        for (reason, now, before) in gone {
            self.metrics
                .evicted(tier, reason, now.saturating_sub(before));
        }
        self.metrics.filled(tier, now.present, now.capacity);
        *seen = now;
    }

    pub(super) fn tier_stats(&self, tier: TierId) -> Option<TierStats> {
        if tier == TierId::HOST {
            return Some(TierStats::of_pool(self.host.pool.stats(), 0));
        }
        let below = self.below.iter().find(|below| below.id == tier)?;
        Some(below.tier.stats())
    }

    /// All kinds of jobs wait in one queue, and blocks that are to be written in another.
    pub(super) fn count_queue_capacity(&self) {
        let capacity = self.settings.queue_capacity as u64;
        for &queue in Queue::ALL {
            self.metrics.queue_capacity(queue, capacity);
        }
        self.metrics
            .queue_capacity(Queue::Spill, self.spill_keys_max() as u64);
    }
}
