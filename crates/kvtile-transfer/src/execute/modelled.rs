//! A lane for `loom` models: no transfer runs on the caller's thread, and flights may be lost.

use std::{num::NonZeroUsize, sync::Arc};

use kvtile_layout::CopyPlan;

use super::{
    flight::TransferFlight,
    lane::{Lane, LaneEnd, LanePlanning, LaneSides, TransferHints},
};
use crate::error::TransferError;

/// A lane over another, for `loom`.
#[derive(Debug)]
pub(crate) struct Modelled {
    pub(crate) lane: Arc<dyn Lane>,
    /// Maximum number of threads of the lane.
    pub(crate) threads: NonZeroUsize,
    /// Whether flights are dropped before a byte is copied.
    pub(crate) loses: bool,
}

impl Lane for Modelled {
    fn name(&self) -> &'static str {
        self.lane.name()
    }

    fn threads(&self) -> NonZeroUsize {
        self.threads
    }

    fn carries(&self, from: LaneEnd, to: LaneEnd) -> bool {
        self.lane.carries(from, to)
    }

    fn planning(&self, sides: LaneSides<'_>) -> LanePlanning {
        self.lane.planning(sides)
    }

    fn inline_bytes(&self) -> u64 {
        0
    }

    unsafe fn carry(
        &self,
        plan: &CopyPlan,
        sides: LaneSides<'_>,
        hints: TransferHints,
    ) -> Result<(), TransferError> {
        // SAFETY: passed on to the caller.
        unsafe { self.lane.carry(plan, sides, hints) }
    }

    fn fly(&self, flight: TransferFlight) {
        match self.loses {
            true => drop(flight),
            false => flight.fly(self),
        }
    }
}
