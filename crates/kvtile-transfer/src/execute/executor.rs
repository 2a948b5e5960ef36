//! How a plan is executed on this machine: which stores, which kernels, how many threads.

use std::sync::OnceLock;

use kvtile_layout::CopyPlan;
use kvtile_memory::machine::Caches;

use super::{
    bound::BoundLayout,
    kernel::{Kernels, Level, Stores},
    nest::Manner,
    pool::CopyPool,
};

/// What is known of a transfer beside its plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hints {
    /// Bytes of the whole transfer, where the plan is a part of it; the plan's own if less.
    pub(crate) bytes: u64,
    /// The destination is read soon after.
    pub(crate) read_next: bool,
}

/// Executes plans with one pool of threads.
#[derive(Debug)]
pub(crate) struct Executor {
    pool: CopyPool,
    level: Level,
    level2_bytes: u64,
    last_level_bytes: u64,
}

/// Taken for the second level where the machine does not say.
const LEVEL2_BYTES: u64 = 1 << 20;

/// Taken for the last level where the machine does not say.
const LAST_LEVEL_BYTES: u64 = 32 << 20;

impl Executor {
    /// With at most `threads` threads for one copy.
    pub(crate) fn new(threads: usize) -> Executor {
        let (level2_bytes, last_level_bytes) = cache_bytes();
        Executor {
            pool: CopyPool::new(threads),
            level: Level::of_machine(),
            level2_bytes,
            last_level_bytes,
        }
    }

    /// The one for single blocks, which are moved by whoever asks for them.
    pub(super) fn of_one_thread() -> &'static Executor {
        static ONE: OnceLock<Executor> = OnceLock::new();
        ONE.get_or_init(|| Executor::new(1))
    }

    /// Threads that are used where nobody says how many.
    pub(crate) fn usual_threads() -> usize {
        CopyPool::usual_threads()
    }

    /// The threads of a copy of `bytes`, where it is worth more than one.
    pub(super) fn pool(&self, bytes: u64) -> Option<&CopyPool> {
        (self.pool.threads_for(bytes) > 1).then_some(&self.pool)
    }

    /// Streaming stores cost no read of what they overwrite, but leave the destination in memory;
    /// they pay where the caches would not have kept it anyway.
    pub(super) fn manner(
        &self,
        plan: &CopyPlan,
        (source, destination): (&BoundLayout, &BoundLayout),
        hints: Hints,
    ) -> Manner {
        let bytes = plan.bytes().max(hints.bytes);
        let half = self.last_level_bytes / 2;
        let fits = if hints.read_next {
            bytes <= half
        } else {
            // Whatever was moved before, all of it may still be there.
            let resident = source.bytes().saturating_add(destination.bytes());
            bytes <= self.level2_bytes || resident <= half
        };
        let stores = match fits || !self.level.streams() {
            true => Stores::Ordinary,
            false => Stores::Streaming,
        };
        Manner {
            kernels: Kernels::new(self.level),
            stores,
        }
    }
}

/// Second and last level of the caches; asked once.
fn cache_bytes() -> (u64, u64) {
    static BYTES: OnceLock<(u64, u64)> = OnceLock::new();
    *BYTES.get_or_init(|| match Caches::probe().known() {
        Some(caches) => (caches.level2_bytes, caches.last_level_bytes),
        None => (LEVEL2_BYTES, LAST_LEVEL_BYTES),
    })
}
