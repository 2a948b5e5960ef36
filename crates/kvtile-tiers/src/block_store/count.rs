//! Counts the jobs that use a resource, so that its owner can wait until none does.

use std::{cell::RefCell, sync::Arc, time::Duration};

use parking_lot::{Condvar, Mutex};

thread_local! {
    /// The counts of the jobs that this thread is executing, by address. The end of a job wakes its
    /// waiters on this thread, and their code may wait for the other jobs.
    static RUNNING: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// Marks this thread as executing jobs, until it is dropped.
pub(super) struct RunningJob {
    counts: usize,
}

impl RunningJob {
    /// Marks a job with its counts.
    pub(super) fn begin(counted: &[CountedJob]) -> RunningJob {
        RUNNING.with_borrow_mut(|running| running.extend(counted.iter().map(CountedJob::address)));
        RunningJob {
            counts: counted.len(),
        }
    }
}

impl Drop for RunningJob {
    fn drop(&mut self) {
        RUNNING.with_borrow_mut(|running| {
            running.truncate(running.len().saturating_sub(self.counts));
        });
    }
}

/// The number of jobs that use something.
#[derive(Debug, Default)]
pub(super) struct JobCount {
    jobs: Mutex<usize>,
    changed: Condvar,
}

/// One job of a [`JobCount`], until it is dropped.
#[derive(Debug)]
pub(super) struct CountedJob(Arc<JobCount>);

impl CountedJob {
    fn address(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }
}

impl JobCount {
    /// The number of its jobs that this thread is executing.
    fn own(&self) -> usize {
        let address = std::ptr::from_ref(self).addr();
        RUNNING.with_borrow(|running| running.iter().filter(|one| **one == address).count())
    }

    pub(super) fn enter(self: &Arc<Self>) -> CountedJob {
        *self.jobs.lock() += 1;
        CountedJob(Arc::clone(self))
    }

    /// Waits until no job is counted, apart from those that this thread is executing.
    pub(super) fn wait(&self) {
        let own = self.own();
        let mut jobs = self.jobs.lock();
        self.changed.wait_while(&mut jobs, |jobs| *jobs > own);
    }

    /// As [`wait`](JobCount::wait), at most for `time`.
    pub(super) fn wait_for(&self, time: Duration) {
        let own = self.own();
        let mut jobs = self.jobs.lock();
        self.changed
            .wait_while_for(&mut jobs, |jobs| *jobs > own, time);
    }

    /// Number of jobs.
    pub(super) fn jobs(&self) -> usize {
        *self.jobs.lock()
    }
}

impl Drop for CountedJob {
    fn drop(&mut self) {
        let mut jobs = self.0.jobs.lock();
        *jobs -= 1;
        self.0.changed.notify_all();
    }
}
