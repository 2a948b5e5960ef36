//! What waits in the queue of a cache.

use super::QueueLabel;

/// Work for a thread of a cache, whose parts are `P`. Work that is dropped before it was done ends its
/// completion with the reason.
pub(super) trait Work<P>: Send {
    /// What it counts as while it waits.
    fn label(&self) -> QueueLabel;

    /// Does it.
    fn run(self: Box<Self>, parts: &P);
}

/// One piece of it.
pub(super) type Job<P> = Box<dyn Work<P>>;
