//! The worker threads of a cache: the jobs of its queue, and its periodic work.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
    time::Duration,
};

use super::{CacheParts, counts, job::BoxedCacheJob};
use crate::queue::NextJob;

/// How long a worker waits for a job before it runs the periodic work.
const PATIENCE: Duration = Duration::from_millis(200);

/// Runs a job. A panic drops the job, which completes it, and is the result.
pub(super) fn run(inner: &CacheParts, job: BoxedCacheJob<CacheParts>) -> thread::Result<()> {
    inner.metrics.unqueued(job.label());
    let ran = catch_unwind(AssertUnwindSafe(|| job.run(inner)));
    inner.queue.done();
    ran
}

/// Runs the jobs of the queue until it is closed.
pub(super) fn work(inner: &CacheParts) {
    loop {
        let ran = match inner.queue.next(PATIENCE) {
            NextJob::Job(job) => run(inner, job),
            NextJob::Idle => catch_unwind(AssertUnwindSafe(|| look_after(inner))),
            NextJob::Closed => return,
        };
        if ran.is_err() {
            log::error!(
                "a job of the cache panicked and was given up; this is a defect; the cache goes on"
            );
        }
    }
}

/// The periodic work: counters, and maintenance of the policies.
pub(super) fn look_after(inner: &CacheParts) {
    counts::observe(inner);
    inner.host.pool.maintain();
    for below in &inner.below {
        below.tier.maintain();
    }
}
