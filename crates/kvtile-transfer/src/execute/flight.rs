//! Flights: transfers between their start and their landing.
//!
//! A flight owns its cargo: plans, tables and the leases on their blocks. They live until it lands, whether or
//! not anything waits for its completion. Landing lets the cargo go first and reports then, so that blocks are
//! free when the completion says so. A flight that is dropped lands too, with an error.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use kvtile_layout::{CopyPlan, broken};

use super::lane::{Hints, Lane, Sides};
use crate::{completion::Completer, error::TransferError};

/// What a finished transfer did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransferReport {
    /// Payload bytes moved.
    pub bytes: u64,
    /// Runs that the plan came to.
    pub runs: u64,
    /// Time from the start of the execution to its end.
    pub elapsed: Duration,
    /// Whether the destination was compared with the source.
    pub verified: bool,
}

/// How a transfer ended.
pub(crate) type End = Result<TransferReport, TransferError>;

/// What a flight moves, and what makes moving it sound.
///
/// # Safety
/// The plans are made from the layouts of [`Cargo::sides`]. While the value lives, nothing but what moves the
/// cargo writes the source units of its plans, or reads or writes their destination units, and no source byte
/// is a destination byte.
pub(crate) unsafe trait Cargo: Send {
    /// The layouts at both ends.
    fn sides(&self) -> Result<Sides<'_>, TransferError>;

    /// What is known beside the plans.
    fn hints(&self) -> Hints;

    /// Hands over each plan in its turn.
    fn for_each_plan(
        &self,
        carry: &mut dyn FnMut(&CopyPlan) -> Result<(), TransferError>,
    ) -> Result<(), TransferError>;

    /// Whether a plan that has arrived is a layer that may be read.
    fn announces_layers(&self) -> bool;

    /// Everything has arrived: the report, after the comparison where one is due.
    fn arrived(&self, start: Instant) -> End;
}

/// Moves all of `cargo` on this thread. `layer_arrived` is called for every layer that may be read before the
/// end. A panic is an end too.
pub(crate) fn carry<C: Cargo + ?Sized>(
    lane: &dyn Lane,
    cargo: &C,
    layer_arrived: &mut dyn FnMut(),
) -> End {
    let carried = || {
        let start = Instant::now();
        let (sides, hints, announces) = (cargo.sides()?, cargo.hints(), cargo.announces_layers());
        cargo.for_each_plan(&mut |plan| {
            // SAFETY: the promise of `Cargo`, which is borrowed for the whole call.
            unsafe { lane.carry(plan, sides, hints) }?;
            if announces {
                layer_arrived();
            }
            Ok(())
        })?;
        cargo.arrived(start)
    };
    let end = catch_unwind(AssertUnwindSafe(carried));
    end.unwrap_or(Err(TransferError::Panicked))
}

/// A transfer that has been started and has not landed. See the module.
pub(crate) struct Flight {
    /// `None` once it has landed.
    cargo: Option<Box<dyn Cargo>>,
    completer: Completer<End>,
}

impl fmt::Debug for Flight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flight").finish_non_exhaustive()
    }
}

impl Flight {
    /// A flight whose end `completer` reports.
    pub(crate) fn new(cargo: Box<dyn Cargo>, completer: Completer<End>) -> Flight {
        Flight {
            cargo: Some(cargo),
            completer,
        }
    }

    /// Moves everything on this thread, and lands.
    pub(crate) fn fly(self, lane: &dyn Lane) {
        let mut layer = 0;
        let Some(cargo) = &self.cargo else {
            broken(format_args!("a flight that has landed flies again"))
        };
        let end = carry(lane, &**cargo, &mut || {
            self.completer.layer_came(layer, 1);
            layer += 1;
        });
        self.land(end);
    }

    /// Lets the cargo go, and reports then.
    pub(crate) fn land(mut self, end: End) {
        self.end(end);
    }

    fn end(&mut self, end: End) {
        let Some(cargo) = self.cargo.take() else {
            return;
        };
        drop(cargo);
        self.completer.finish(end);
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.end(Err(TransferError::Panicked));
    }
}
