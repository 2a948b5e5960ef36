//! The jobs in the queue of a cache.

use super::QueueLabel;

/// A job for a worker thread of a cache with the parts `P`. Dropping a job that did not complete
/// completes it with the reason.
pub(super) trait Work<P>: Send {
    /// The kind of job in the metrics.
    fn label(&self) -> QueueLabel;

    /// Runs the job.
    fn run(self: Box<Self>, parts: &P);
}

/// A queued job.
pub(super) type Job<P> = Box<dyn Work<P>>;
