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
    flight::Flight,
    lane::{Hints, Lane, LaneEnd, LanePlanning, Sides},
};
use crate::error::TransferError;

/// How the lane executes its flights.
#[derive(Debug)]
pub(crate) enum Flying {
    OnItsThread,
    /// A panic drops them.
    Panicking,
    /// Another thread executes them, one for each message, and all after a timeout or the end of
    /// the channel.
    Kept {
        kept: Mutex<Vec<Flight>>,
        go: Mutex<mpsc::Receiver<()>>,
    },
}

/// A lane over another, which stops and panics on demand.
#[derive(Debug)]
pub(crate) struct Gated {
    lane: Arc<dyn Lane>,
    flying: Flying,
    gate: Arc<Gate>,
    panics: AtomicBool,
}

impl Gated {
    pub(crate) fn over(lane: Arc<dyn Lane>, flying: Flying) -> Arc<Gated> {
        Arc::new(Gated {
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
            Flying::Kept { kept, .. } => kept.lock().len(),
            _ => 0,
        }
    }
}

impl Lane for Gated {
    fn name(&self) -> &'static str {
        self.lane.name()
    }

    fn threads(&self) -> NonZeroUsize {
        self.lane.threads()
    }

    fn carries(&self, from: LaneEnd, to: LaneEnd) -> bool {
        self.lane.carries(from, to)
    }

    fn planning(&self, sides: Sides<'_>) -> LanePlanning {
        self.lane.planning(sides)
    }

    fn inline_bytes(&self) -> u64 {
        self.lane.inline_bytes()
    }

    unsafe fn carry(
        &self,
        plan: &CopyPlan,
        sides: Sides<'_>,
        hints: Hints,
    ) -> Result<(), TransferError> {
        self.gate.pass();
        assert!(!self.panics.swap(false, Ordering::SeqCst), "on demand");
        // SAFETY: passed on to the caller.
        unsafe { self.lane.carry(plan, sides, hints) }
    }

    fn fly(&self, flight: Flight) {
        match &self.flying {
            Flying::OnItsThread => flight.fly(self),
            Flying::Panicking => panic!("with {flight:?}"),
            Flying::Kept { kept, .. } => kept.lock().push(flight),
        }
    }

    fn settle(&self) {
        let Flying::Kept { kept, go } = &self.flying else {
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
