//! The thread of each tier: it writes the blocks that are due, and syncs in time.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use kvtile_blocks::BlockKey;

use super::{CacheParts, QueueLabel, below::CacheTier, demote, spill::SpillDue};
use crate::error::{RequestError, TierError};

/// How long the thread of a tier sleeps if even its clock panics.
const AFTER_PANIC: Duration = Duration::from_millis(50);

/// Serves a tier until the cache closes.
pub(super) fn serve_tier(inner: &CacheParts, below: &CacheTier) {
    loop {
        let turn = || {
            let due = below.spill.wait(|| inner.clock.now(), below.pauses());
            let is_end = due == SpillDue::Closed;
            serve(inner, below, due);
            is_end
        };
        match catch_unwind(AssertUnwindSafe(turn)) {
            Ok(true) => return,
            Ok(false) => {}
            // If the clock panics, `wait` cannot return `Closed`, so the thread checks the flag
            // here.
            Err(_) if below.spill.is_closed() => return,
            Err(_) => tier_panicked(inner, below),
        }
    }
}

/// Handles a panic on a tier's thread like a failure: the operation pauses, and a sync stays due.
/// On a durable tier the syncs pause and hold back the writes; on another tier only the writes
/// pause.
fn tier_panicked(inner: &CacheParts, below: &CacheTier) {
    let error = TierError::Request(RequestError::Panicked {
        what: "the thread of a tier",
    });
    log::error!("{error}; this is a defect; the cache goes on");
    let noted = catch_unwind(AssertUnwindSafe(|| {
        let now = inner.clock.now();
        match below.abilities.is_durable {
            true => below.syncs.failed(now, &error),
            false => below.writes.failed(now, &error),
        }
        below.spill.touched(now);
    }));
    if noted.is_err() {
        std::thread::sleep(AFTER_PANIC);
    }
}

/// Runs the operation that is due at a tier; false if there is none.
pub(super) fn step_tier(inner: &CacheParts, below: &CacheTier) -> bool {
    let due = below.spill.due(inner.clock.now(), below.pauses());
    let is_something = matches!(due, SpillDue::Write(_) | SpillDue::Sync);
    serve(inner, below, due);
    is_something
}

fn serve(inner: &CacheParts, below: &CacheTier, due: SpillDue) {
    match due {
        SpillDue::Write(keys) => {
            for _ in &keys {
                inner.metrics.unqueued(QueueLabel::Spill);
            }
            if below.takes_blocks(inner.clock.now()) {
                // A block that is not written now is written at its eviction, if the tier takes
                // blocks then.
                let _ = demote::write_keys(inner, below, &keys);
            } else {
                below.writes.left_out(keys.len() as u64);
            }
        }
        SpillDue::Sync => {
            // `allows` admits one attempt after a pause.
            if below.syncs.allows(inner.clock.now()) {
                below.sync(&*inner.clock);
            }
        }
        SpillDue::Nothing | SpillDue::Closed => {}
    }
}

/// Queues host blocks for the thread of a tier to write.
pub(super) fn spill(inner: &CacheParts, below: &CacheTier, keys: &[BlockKey]) {
    for _ in keys {
        inner.metrics.queued(QueueLabel::Spill);
    }
    let is_there = |key: &BlockKey| inner.host.pool.has(key);
    for _ in 0..below.spill.push(keys, inner.spill_keys_max(), is_there) {
        inner.metrics.unqueued(QueueLabel::Spill);
    }
}
