//! The jobs in the queue of a cache.

use super::QueueLabel;

/// A job for a worker thread of a cache with the parts `P`. Dropping a job that did not complete
/// completes it with the reason.
pub(super) trait CacheJob<P>: Send {
    /// The kind of job in the metrics.
    fn label(&self) -> QueueLabel;

    /// Runs the job.
    fn run(self: Box<Self>, parts: &P);
}

/// A queued job.
pub(super) type BoxedCacheJob<P> = Box<dyn CacheJob<P>>;
