//! The growth of a tier's own counters.

use kvtile_blocks::events::TierId;
use parking_lot::Mutex;

use super::{CacheMetrics, EvictionReason};
use crate::tier::TierStats;

/// Adds the growth of a tier's counters since the last call.
pub(crate) fn observe_tier(
    metrics: &CacheMetrics,
    tier: TierId,
    seen: &Mutex<TierStats>,
    stats: impl FnOnce() -> TierStats,
) {
    let mut seen = seen.lock();
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
        metrics.evicted(tier, reason, now.saturating_sub(before));
    }
    metrics.filled(tier, now.present, now.capacity);
    *seen = now;
}
