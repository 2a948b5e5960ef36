//! A lane for tests: it stops between two barriers, panics, and lands flights late.

use std::sync::{
    Arc, Barrier, Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
    mpsc,
};

use kvtile_layout::CopyPlan;

use super::{
    flight::Flight,
    lane::{Hints, Lane, LaneEnd, LanePlanning, Sides},
};
use crate::error::TransferError;

/// What becomes of the flights of a lane.
#[derive(Debug)]
pub(crate) enum Flying {
    OnItsThread,
    /// They are dropped in a panic.
    Panicking,
    /// Another thread lands them, one for each message.
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
    /// The next plan stops between two barriers.
    is_shut: AtomicBool,
    entered: Barrier,
    left: Barrier,
    panics: AtomicBool,
}

impl Gated {
    pub(crate) fn over(lane: Arc<dyn Lane>, flying: Flying) -> Arc<Gated> {
        Arc::new(Gated {
            lane,
            flying,
            is_shut: AtomicBool::new(false),
            entered: Barrier::new(2),
            left: Barrier::new(2),
            panics: AtomicBool::new(false),
        })
    }

    pub(crate) fn shut(&self) {
        self.is_shut.store(true, Ordering::SeqCst);
    }

    /// Waits until a plan has stopped.
    pub(crate) fn wait_until_entered(&self) {
        self.entered.wait();
    }

    pub(crate) fn let_go(&self) {
        self.left.wait();
    }

    /// The next plan panics.
    pub(crate) fn panic_once(&self) {
        self.panics.store(true, Ordering::SeqCst);
    }

    /// Flights that are in the air because the lane keeps them.
    pub(crate) fn kept(&self) -> usize {
        match &self.flying {
            Flying::Kept { kept, .. } => kept.lock().unwrap().len(),
            _ => 0,
        }
    }
}

impl Lane for Gated {
    fn name(&self) -> &'static str {
        self.lane.name()
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
        if self.is_shut.swap(false, Ordering::SeqCst) {
            self.entered.wait();
            self.left.wait();
        }
        assert!(!self.panics.swap(false, Ordering::SeqCst), "on demand");
        // SAFETY: passed on to the caller.
        unsafe { self.lane.carry(plan, sides, hints) }
    }

    fn fly(&self, flight: Flight) {
        match &self.flying {
            Flying::OnItsThread => flight.fly(self),
            Flying::Panicking => panic!("with {flight:?}"),
            Flying::Kept { kept, .. } => kept.lock().unwrap().push(flight),
        }
    }

    fn settle(&self) {
        let Flying::Kept { kept, go } = &self.flying else {
            return;
        };
        let go = go.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(flight) = kept.lock().unwrap().pop() {
            go.recv().unwrap();
            flight.fly(self);
        }
    }
}
