//! A lane for models of `loom`: no transfer is so short that it runs on the caller's thread, and flights may
//! be lost.

use std::{num::NonZeroUsize, sync::Arc};

use kvtile_layout::CopyPlan;

use super::{
    flight::Flight,
    lane::{Hints, Lane, LaneEnd, LanePlanning, Sides},
};
use crate::error::TransferError;

/// See the module.
#[derive(Debug)]
pub(crate) struct Modelled {
    pub(crate) lane: Arc<dyn Lane>,
    /// Threads of the lane.
    pub(crate) threads: NonZeroUsize,
    /// Flights are dropped before a byte has moved.
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

    fn planning(&self, sides: Sides<'_>) -> LanePlanning {
        self.lane.planning(sides)
    }

    fn inline_bytes(&self) -> u64 {
        0
    }

    unsafe fn carry(
        &self,
        plan: &CopyPlan,
        sides: Sides<'_>,
        hints: Hints,
    ) -> Result<(), TransferError> {
        // SAFETY: passed on to the caller.
        unsafe { self.lane.carry(plan, sides, hints) }
    }

    fn fly(&self, flight: Flight) {
        match self.loses {
            true => drop(flight),
            false => flight.fly(self),
        }
    }
}
