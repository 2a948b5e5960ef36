//! What the threads of a cache do: the work of its queue, and what is due from time to time.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
    time::Duration,
};

use super::{Parts, counts, job::Job, queue::Next};

/// How long a worker waits for work before it looks after what is due.
const PATIENCE: Duration = Duration::from_millis(200);

/// Does a job. One that panics has ended its completion by then; what it panicked with is the result.
pub(super) fn run(inner: &Parts, job: Job<Parts>) -> thread::Result<()> {
    inner.metrics.unqueued(job.label());
    let ran = catch_unwind(AssertUnwindSafe(|| job.run(inner)));
    inner.queue.done();
    ran
}

/// Serves the queue until it is closed.
pub(super) fn work(inner: &Parts) {
    loop {
        let ran = match inner.queue.next(PATIENCE) {
            Next::Job(job) => run(inner, job),
            Next::Idle => catch_unwind(AssertUnwindSafe(|| look_after(inner))),
            Next::Closed => return,
        };
        if ran.is_err() {
            log::error!(
                "a job of the cache panicked and was given up; this is a defect; the cache goes on"
            );
        }
    }
}

/// What is due from time to time: counting and learning.
pub(super) fn look_after(inner: &Parts) {
    counts::observe(inner);
    inner.host.pool.maintain();
    for below in &inner.below {
        below.tier.maintain();
    }
}
