//! What the threads of a connected cache do: they run jobs.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use kvtile_layout::broken;
use kvtile_transfer::LayoutHandle;

use super::{BoxedConnectedJob, ConnectedParts, link::LinkError, session::DaemonSession};
use crate::{
    cache::{
        Priority,
        serving::{CallAnswer, CallMessage},
    },
    error::{RequestError, TierError},
    ids::check_ids,
    opening::check_identity,
    queue::{NextJob, QueueRefusal},
};

impl ConnectedParts {
    /// Whether the owner of the cache has closed it.
    pub(super) fn is_closed(&self) -> bool {
        self.connection.is_closed()
    }

    /// The session of the group, if the daemon is connected.
    pub(super) fn session(&self) -> Option<Arc<DaemonSession>> {
        self.connection.session(self.group)
    }

    /// The session of the group, if a call to it may be answered soon.
    pub(super) fn answering(&self) -> Result<Arc<DaemonSession>, LinkError> {
        let sessions = self.connection.answering()?;
        let session = sessions.get(usize::from(self.group));
        session.map(Arc::clone).ok_or(LinkError::Closed)
    }

    pub(super) fn work(&self) {
        loop {
            match self.queue.next(Duration::from_secs(1)) {
                NextJob::Job(job) => {
                    if self.run(job).is_err() {
                        log::error!("a job of a connected cache panicked; this is a defect");
                    }
                }
                NextJob::Idle => {}
                NextJob::Closed => return,
            }
        }
    }

    /// Runs a job that was taken from the queue. A panic drops the job, which completes it, and is the
    /// result.
    pub(super) fn run(&self, job: BoxedConnectedJob) -> std::thread::Result<()> {
        self.metrics.unqueued(job.label());
        let ran = catch_unwind(AssertUnwindSafe(|| job.run(self)));
        self.queue.done();
        ran
    }

    pub(super) fn push(&self, priority: Priority, job: BoxedConnectedJob) -> Result<(), TierError> {
        let label = job.label();
        // Counted before the push, because a worker may take the job at once.
        self.metrics.queued(label);
        let pushed = self.queue.push(priority, vec![job]);
        pushed.map_err(|(refused, jobs)| {
            drop(jobs);
            self.metrics.unqueued(label);
            TierError::Request(match refused {
                QueueRefusal::Full { waiting } => {
                    self.metrics.refused(label);
                    RequestError::Busy {
                        waiting,
                        capacity: self.settings.queue_capacity,
                    }
                }
                QueueRefusal::Closed => RequestError::Closed,
            })
        })
    }

    /// Completes all jobs that wait or are parked, as closed.
    pub(super) fn drop_jobs(&self) {
        drop(self.queue.close());
        drop(self.chains.close());
    }

    pub(in crate::cache) fn check_blocks(
        &self,
        layout: Option<LayoutHandle>,
        blocks: &[usize],
    ) -> Result<LayoutHandle, TierError> {
        let (handle, count) = match layout.or(self.engine) {
            // The cache over groups has refused a call without a layout.
            None => broken(format_args!("{} blocks of no layout", blocks.len())),
            Some(handle) => {
                let layout = self.manager.layout(handle)?;
                check_identity(&self.settings.identity, &layout)?;
                (handle, layout.shape().num_blocks())
            }
        };
        check_ids(blocks, count)?;
        Ok(handle)
    }

    /// Makes a call that does I/O, and waits for its answer.
    pub(super) fn io_call(&self, call: &CallMessage) -> Result<CallAnswer, TierError> {
        self.connection.io_call(self.group, call)
    }

    /// Makes a call and waits for its answer.
    pub(super) fn call(
        &self,
        call: &CallMessage,
        within: Duration,
    ) -> Result<CallAnswer, TierError> {
        self.connection.call(self.group, call, within)
    }
}
