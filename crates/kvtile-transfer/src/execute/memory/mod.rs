//! The lane between memories that this process can address.
//!
//! | file | what it does |
//! | --- | --- |
//! | `executor` | chooses stores, kernels and threads |
//! | `program` | compiled nests of a class of pairs, cached with its nests |
//! | `copy` | binds programs to pairs; cells, chunks and threads |
//! | `pool` | the threads that share a copy |

pub(super) mod copy;
mod executor;
pub(super) mod pool;
mod program;

use std::num::NonZeroUsize;

use kvtile_layout::CopyPlan;

use self::{executor::CopyExecutor, pool::CopyPool};
use super::{
    flight::TransferFlight,
    lane::{Lane, LaneEnd, LanePlanning, LaneSides, TransferHints},
};
use crate::error::TransferError;

/// Copies up to this size run on the caller's thread: they take less time than another thread needs
/// to wake up.
const INLINE_BYTES: u64 = 256 << 10;

/// Default number of threads that share a copy.
pub(crate) fn usual_copy_threads() -> usize {
    CopyPool::usual_threads()
}

/// The lane between memories.
#[derive(Debug)]
pub(crate) struct MemoryLane {
    executor: CopyExecutor,
}

impl MemoryLane {
    /// At most `copy_threads` threads share one copy.
    pub(crate) fn new(copy_threads: usize) -> MemoryLane {
        MemoryLane {
            executor: CopyExecutor::new(copy_threads),
        }
    }
}

impl Lane for MemoryLane {
    fn name(&self) -> &'static str {
        "kvtile-memory"
    }

    /// One flight at a time: a copy has threads of its own and saturates the memory bandwidth.
    fn threads(&self) -> NonZeroUsize {
        NonZeroUsize::MIN
    }

    fn carries(&self, from: LaneEnd, to: LaneEnd) -> bool {
        (from, to) == (LaneEnd::Memory, LaneEnd::Memory)
    }

    fn planning(&self, (_, destination): LaneSides<'_>) -> LanePlanning {
        LanePlanning {
            source_order: false,
            layers_are_free: destination.has_region_per_layer(),
        }
    }

    fn inline_bytes(&self) -> u64 {
        INLINE_BYTES
    }

    unsafe fn carry(
        &self,
        plan: &CopyPlan,
        sides: LaneSides<'_>,
        hints: TransferHints,
    ) -> Result<(), TransferError> {
        let manner = self.executor.manner(plan, sides, hints);
        let share = self.executor.share(plan);
        // SAFETY: passed on to the caller.
        unsafe { copy::copy_plan(plan, sides, manner, share) }
    }

    fn fly(&self, flight: TransferFlight) {
        flight.fly(self);
    }
}
