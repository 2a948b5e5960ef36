//! The writes of a cache's tiers that are due: blocks of their spill lists.

use kvtile_blocks::BlockKey;

use super::{CacheParts, QueueLabel, below::CacheTier, demote};
use crate::below;

/// Serves a tier until the cache closes.
pub(super) fn serve_tier(inner: &CacheParts, tier: &CacheTier) {
    below::serve_tier(tier, &*inner.clock, |keys| write(inner, tier, &keys));
}

/// Runs the operation that is due at a tier; false if there is none.
pub(super) fn step_tier(inner: &CacheParts, tier: &CacheTier) -> bool {
    below::step_tier(tier, &*inner.clock, |keys| write(inner, tier, &keys))
}

fn write(inner: &CacheParts, tier: &CacheTier, keys: &[BlockKey]) {
    for _ in keys {
        inner.metrics.unqueued(QueueLabel::Spill);
    }
    if tier.takes_blocks(inner.clock.now()) {
        // A block that is not written now is written at its eviction, if the tier takes blocks
        // then.
        let _ = demote::write_keys(inner, tier, keys);
    } else {
        tier.writes.left_out(keys.len() as u64);
    }
}

/// Queues host blocks for the thread of a tier to write.
pub(super) fn spill(inner: &CacheParts, tier: &CacheTier, keys: &[BlockKey]) {
    for _ in keys {
        inner.metrics.queued(QueueLabel::Spill);
    }
    let is_there = |key: &BlockKey| inner.host.pool.has(key);
    let keys = keys.iter().copied();
    for _ in 0..tier.spill.push(keys, inner.spill_keys_max(), is_there) {
        inner.metrics.unqueued(QueueLabel::Spill);
    }
}
