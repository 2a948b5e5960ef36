//! Counts the jobs that use a resource, so that its owner can wait until none does.

use std::{sync::Arc, time::Duration};

use parking_lot::{Condvar, Mutex};

/// The number of jobs that use something.
#[derive(Debug, Default)]
pub(super) struct JobCount {
    jobs: Mutex<usize>,
    changed: Condvar,
}

/// One job of a [`JobCount`], until it is dropped.
#[derive(Debug)]
pub(super) struct CountedJob(Arc<JobCount>);

impl JobCount {
    pub(super) fn enter(self: &Arc<Self>) -> CountedJob {
        *self.jobs.lock() += 1;
        CountedJob(Arc::clone(self))
    }

    /// Waits until no job is counted.
    pub(super) fn wait(&self) {
        let mut jobs = self.jobs.lock();
        self.changed.wait_while(&mut jobs, |jobs| *jobs > 0);
    }

    /// Waits until no job is counted, at most for `time`; returns whether that is so.
    pub(super) fn wait_for(&self, time: Duration) -> bool {
        let mut jobs = self.jobs.lock();
        let waited = self
            .changed
            .wait_while_for(&mut jobs, |jobs| *jobs > 0, time);
        !waited.timed_out()
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
        if *jobs == 0 {
            self.0.changed.notify_all();
        }
    }
}
