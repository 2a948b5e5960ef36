//! Flights: transfers in progress.
//!
//! A flight owns its cargo: plans, tables and the leases on their blocks. The cargo lives until the
//! flight ends, with or without a waiter for the completion. The end drops the cargo first and then
//! completes, so that blocks are free when the completion reports the end. Dropping a flight
//! completes it with an error.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use kvtile_device::DeviceMark;
use kvtile_layout::{CopyPlan, broken};

use super::{
    device::LayerMarks,
    lane::{Lane, LaneSides, TransferHints},
};
use crate::{
    completion::Completer,
    error::{CopyError, TransferError},
};

/// The report of a finished transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransferReport {
    /// Payload bytes that were copied.
    pub bytes: u64,
    /// Number of runs of the plan.
    pub runs: u64,
    /// Time from the start of the execution to its end.
    pub elapsed: Duration,
    /// Whether the destination was compared with the source.
    pub verified: bool,
}

/// The result of a transfer.
pub(crate) type TransferResult = Result<TransferReport, TransferError>;

/// The plans of a flight, with the guarantees that make their execution sound.
///
/// # Safety
/// The plans are made from the layouts of [`TransferCargo::sides`]. While the value lives, only the
/// executor of the cargo writes the source units of its plans, or reads or writes their destination
/// units. No source byte is a destination byte.
pub(crate) unsafe trait TransferCargo: Send {
    /// The source and the destination layout.
    fn sides(&self) -> Result<LaneSides<'_>, TransferError>;

    /// Hints beside the plans.
    fn hints(&self) -> TransferHints;

    /// The marks of devices that must be passed before a byte of a device is read or written.
    fn after(&self) -> &[DeviceMark];

    /// Whether [`TransferCargo::arrived`] compares source and destination.
    fn verifies(&self) -> bool;

    /// Calls `carry` with each plan in turn.
    fn for_each_plan(
        &self,
        carry: &mut dyn FnMut(&CopyPlan) -> Result<(), TransferError>,
    ) -> Result<(), TransferError>;

    /// Whether each completed plan is a layer that may be read.
    fn announces_layers(&self) -> bool;

    /// Makes the report after all plans have completed. A verified transfer compares source and
    /// destination first.
    fn arrived(&self, start: Instant) -> TransferResult;
}

/// Executes all plans of `cargo` on this thread. Calls `layer_arrived` for every layer that may be
/// read before the end. A panic becomes an error.
pub(crate) fn carry<C: TransferCargo + ?Sized>(
    lane: &dyn Lane,
    cargo: &C,
    layer_arrived: &mut dyn FnMut(),
) -> TransferResult {
    let carried = || {
        let start = Instant::now();
        let (sides, hints, announces) = (cargo.sides()?, cargo.hints(), cargo.announces_layers());
        cargo.for_each_plan(&mut |plan| {
            // SAFETY: guaranteed by `TransferCargo`, which is borrowed for the whole call.
            unsafe { lane.carry(plan, sides, hints) }?;
            if announces {
                layer_arrived();
            }
            Ok(())
        })?;
        cargo.arrived(start)
    };
    let end = catch_unwind(AssertUnwindSafe(carried));
    end.unwrap_or(Err(TransferError::Copy(CopyError::Panicked)))
}

/// A transfer that has started and not ended. See the module.
pub(crate) struct TransferFlight {
    /// `None` after the end.
    cargo: Option<Box<dyn TransferCargo>>,
    completer: Completer<TransferResult>,
    marks: Option<Arc<LayerMarks>>,
}

impl fmt::Debug for TransferFlight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransferFlight").finish_non_exhaustive()
    }
}

impl TransferFlight {
    /// A flight whose result goes to `completer`, and the marks of its layers to `marks`.
    pub(crate) fn new(
        cargo: Box<dyn TransferCargo>,
        completer: Completer<TransferResult>,
        marks: Option<Arc<LayerMarks>>,
    ) -> TransferFlight {
        TransferFlight {
            cargo: Some(cargo),
            completer,
            marks,
        }
    }

    /// Its plans, with the guarantees that make their execution sound until the end.
    pub(super) fn cargo(&self) -> &dyn TransferCargo {
        match &self.cargo {
            Some(cargo) => &**cargo,
            None => broken(format_args!("a flight that has ended is executed again")),
        }
    }

    /// The marks of its layers, where work of a device may wait for them.
    pub(super) fn marks(&self) -> Option<&LayerMarks> {
        self.marks.as_deref()
    }

    /// Reports that the layer arrived.
    pub(super) fn layer_arrived(&self, layer: usize) {
        self.completer.layer_came(layer, 1);
    }

    /// Executes the plans on this thread, and ends the flight.
    pub(crate) fn fly(self, lane: &dyn Lane) {
        if let Some(marks) = &self.marks {
            // It has none, so those that wait for a layer wait for its arrival.
            marks.close();
        }
        let mut layer = 0;
        let end = carry(lane, self.cargo(), &mut || {
            self.layer_arrived(layer);
            layer += 1;
        });
        self.land(end);
    }

    /// Drops the cargo, and completes with `end`.
    pub(crate) fn land(mut self, end: TransferResult) {
        self.end(end);
    }

    fn end(&mut self, end: TransferResult) {
        let Some(cargo) = self.cargo.take() else {
            return;
        };
        drop(cargo);
        self.completer.finish(end);
        if let Some(marks) = &self.marks {
            marks.close();
        }
    }
}

impl Drop for TransferFlight {
    fn drop(&mut self) {
        self.end(Err(TransferError::Copy(CopyError::Panicked)));
    }
}
