//! The threads of a block store.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use super::{parts::BlockStoreParts, write};
use crate::{
    below,
    metrics::{Queue, observe_tier},
    queue::{JobQueue, NextJob},
};

/// How long a thread waits for a job before it runs the periodic work.
const PATIENCE: Duration = Duration::from_millis(200);

/// Executes loads until their queue is closed.
pub(super) fn load(parts: &BlockStoreParts) {
    serve(parts, (&parts.loads, Queue::Load), |job| job.run(parts));
}

/// Executes stores until their queue is closed.
pub(super) fn store(parts: &BlockStoreParts) {
    serve(parts, (&parts.stores, Queue::Store), |job| job.run(parts));
}

/// Writes and syncs the blocks of a tier until its spill list is closed.
pub(super) fn serve_tier(parts: &BlockStoreParts, tier: usize) {
    if let Some(tier) = parts.below.get(tier) {
        below::serve_tier(tier, &*parts.clock, |blocks| {
            write::write(parts, tier, blocks);
        });
    }
}

fn serve<J>(parts: &BlockStoreParts, (queue, label): (&JobQueue<J>, Queue), run: impl Fn(J)) {
    loop {
        let ran = match queue.next(PATIENCE) {
            NextJob::Job(job) => {
                parts.metrics.unqueued(label);
                let ran = catch_unwind(AssertUnwindSafe(|| run(job)));
                queue.done();
                ran
            }
            NextJob::Idle => catch_unwind(AssertUnwindSafe(|| look_after(parts))),
            NextJob::Closed => return,
        };
        if ran.is_err() {
            log::error!(
                "a job of the block store panicked and was given up; this is a defect; the store goes on"
            );
        }
    }
}

/// The periodic work: counters, and maintenance of the policies.
pub(super) fn look_after(parts: &BlockStoreParts) {
    observe(parts);
    for below in &parts.below {
        below.tier.maintain();
    }
}

/// Adds the growth of the tiers' counters since the last call.
pub(super) fn observe(parts: &BlockStoreParts) {
    for (below, seen) in parts.below.iter().zip(&parts.seen) {
        observe_tier(&parts.metrics, below.id, seen, || below.tier.stats());
    }
}
