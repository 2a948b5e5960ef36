//! What waits in the queue of a cache.

use super::{Inner, QueueLabel};

/// Work for a thread of the cache. Work that is dropped before it was done ends its completion with the reason.
pub(super) trait Work: Send {
    /// What it counts as while it waits.
    fn label(&self) -> QueueLabel;

    /// Does it.
    fn run(self: Box<Self>, inner: &Inner);
}

/// One piece of it.
pub(super) type Job = Box<dyn Work>;
