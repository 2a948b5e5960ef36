//! What a cache tells of itself.

use std::sync::{Mutex, PoisonError};

use kvtile_blocks::{
    events::Tier,
    pool::{BlockPool, PoolStats},
};

use super::Inner;
use crate::{
    disk::SlotStoreStats,
    metrics::{CacheStats, EvictionReason, Queue},
};

/// What the pools had counted when they were last looked at.
#[derive(Default)]
pub(super) struct Seen {
    host: Mutex<Evicted>,
    disk: Mutex<Evicted>,
}

#[derive(Clone, Copy, Default)]
struct Evicted {
    capacity: u64,
    quota: u64,
    removed: u64,
    damaged: u64,
}

impl Evicted {
    fn of(stats: &PoolStats, damaged: u64) -> Evicted {
        let removed = stats.evicted_on_request + stats.removed_blocks + stats.cleared_blocks;
        Evicted {
            capacity: stats.evicted_for_room,
            quota: stats.evicted_for_quota,
            removed: removed.saturating_sub(damaged),
            damaged,
        }
    }
}

impl Inner {
    /// The counters, after what the pools counted by themselves was added.
    pub(super) fn stats(&self) -> CacheStats {
        self.observe();
        self.metrics.stats()
    }

    /// Adds what the pools counted since the last time.
    pub(super) fn observe(&self) {
        self.observe_pool(Tier::Host, (&self.host.pool, 0), &self.seen.host);
        if let Some(disk) = &self.disk {
            // Counted first: what is damaged from here on is only counted the next time.
            let damaged = disk.damaged();
            self.observe_pool(Tier::Disk, (&disk.pool, damaged), &self.seen.disk);
        }
    }

    fn observe_pool(&self, tier: Tier, (pool, damaged): (&BlockPool, u64), seen: &Mutex<Evicted>) {
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        let stats = pool.stats();
        let now = Evicted::of(&stats, damaged);
        let gone = [
            (EvictionReason::Capacity, now.capacity, seen.capacity),
            (EvictionReason::Quota, now.quota, seen.quota),
            (EvictionReason::Removed, now.removed, seen.removed),
            (EvictionReason::Damaged, now.damaged, seen.damaged),
        ];
        for (reason, now, before) in gone {
            self.metrics
                .evicted(tier, reason, now.saturating_sub(before));
        }
        *seen = now;
        let (present, room) = (stats.cached as u64, stats.blocks as u64);
        self.metrics.filled(tier, present, room);
    }

    pub(super) fn pool_stats(&self, tier: Tier) -> Option<PoolStats> {
        match tier {
            Tier::Host => Some(self.host.pool.stats()),
            Tier::Disk => self.disk.as_ref().map(|disk| disk.pool.stats()),
            _ => None,
        }
    }

    pub(super) fn store_stats(&self) -> Option<SlotStoreStats> {
        self.disk.as_ref().map(|disk| disk.store.stats())
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
