//! What waits in the queue of a cache.

use super::{Inner, QueueLabel, load::LoadPart, store::StoreJob};

/// Work for a thread of the cache. One that is dropped before it was done tells so to whom it
/// concerns.
pub(super) enum Job {
    /// A part of a load.
    Load(LoadPart),
    /// A store.
    Store(Box<StoreJob>),
}

impl Job {
    /// What it counts as while it waits.
    pub(super) fn label(&self) -> QueueLabel {
        match self {
            Job::Load(part) if part.is_prefetch() => QueueLabel::Prefetch,
            Job::Load(_) => QueueLabel::Load,
            Job::Store(_) => QueueLabel::Store,
        }
    }

    /// Does it.
    pub(super) fn run(self, inner: &Inner) {
        match self {
            Job::Load(part) => part.run(inner),
            Job::Store(store) => store.run(inner),
        }
    }
}
