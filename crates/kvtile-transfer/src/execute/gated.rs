//! A lane for tests: it stops at a gate, panics, and ends flights late.

use std::{
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
};

use kvtile_layout::CopyPlan;
use kvtile_testkit::gate::{Gate, PATIENCE, ShutGate};
use parking_lot::Mutex;

use super::{
    flight::TransferFlight,
    lane::{Lane, LaneEnd, LanePlanning, LaneSides, TransferHints},
};
use crate::error::TransferError;

/// How the lane executes its flights.
#[derive(Debug)]
pub(crate) enum FlightMode {
    OnItsThread,
    /// A panic drops them.
    Panicking,
    /// Another thread executes them, one for each message, and all after a timeout or the end of
    /// the channel.
    Kept {
        kept: Mutex<Vec<TransferFlight>>,
        go: Mutex<mpsc::Receiver<()>>,
    },
}

/// A lane over another, which stops and panics on demand.
#[derive(Debug)]
pub(crate) struct GatedLane {
    lane: Arc<dyn Lane>,
    flying: FlightMode,
    gate: Arc<Gate>,
    panics: AtomicBool,
}

impl GatedLane {
    pub(crate) fn over(lane: Arc<dyn Lane>, flying: FlightMode) -> Arc<GatedLane> {
        Arc::new(GatedLane {
            lane,
            flying,
            gate: Arc::default(),
            panics: AtomicBool::new(false),
        })
    }

    /// The next `plans` plans stop at the gate until the returned value is dropped.
    pub(crate) fn shut(&self, plans: usize) -> ShutGate {
        self.gate.shut(plans)
    }

    /// The next plan that passes the gate panics.
    pub(crate) fn panic_once(&self) {
        self.panics.store(true, Ordering::SeqCst);
    }

    /// Number of flights that the lane keeps in progress.
    pub(crate) fn kept(&self) -> usize {
        match &self.flying {
            FlightMode::Kept { kept, .. } => kept.lock().len(),
            _ => 0,
        }
    }
}

impl Lane for GatedLane {
    fn name(&self) -> &'static str {
        self.lane.name()
    }

    fn threads(&self) -> NonZeroUsize {
        self.lane.threads()
    }

    fn carries(&self, from: LaneEnd, to: LaneEnd) -> bool {
        self.lane.carries(from, to)
    }

    fn planning(&self, sides: LaneSides<'_>) -> LanePlanning {
        self.lane.planning(sides)
    }

    fn inline_bytes(&self) -> u64 {
        self.lane.inline_bytes()
    }

    unsafe fn carry(
        &self,
        plan: &CopyPlan,
        sides: LaneSides<'_>,
        hints: TransferHints,
    ) -> Result<(), TransferError> {
        self.gate.pass();
        assert!(!self.panics.swap(false, Ordering::SeqCst), "on demand");
        // SAFETY: passed on to the caller.
        unsafe { self.lane.carry(plan, sides, hints) }
    }

    fn fly(&self, flight: TransferFlight) {
        match &self.flying {
            FlightMode::OnItsThread => flight.fly(self),
            FlightMode::Panicking => panic!("with {flight:?}"),
            FlightMode::Kept { kept, .. } => kept.lock().push(flight),
        }
    }

    fn settle(&self) {
        let FlightMode::Kept { kept, go } = &self.flying else {
            return;
        };
        let go = go.lock();
        let next = || kept.lock().pop();
        while let Some(flight) = next() {
            // A failed test sends nothing; its flights still end.
            let _ = go.recv_timeout(PATIENCE);
            flight.fly(self);
        }
    }
}
