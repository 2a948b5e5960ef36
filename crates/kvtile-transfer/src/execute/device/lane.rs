//! The lane from and to memory of devices.

use std::{
    num::NonZeroUsize,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Instant,
};

use kvtile_device::{DeviceMark, DeviceQueue};
use kvtile_layout::CopyPlan;

use super::{
    super::{
        flight::TransferFlight,
        lane::{Lane, LaneEnd, LanePlanning, LaneSides, TransferHints},
    },
    engine::{CopyDirection, DeviceEngine, QuiesceOnDrop},
    reaper::{FlyingCount, Landing},
    sides::DeviceSides,
    waits::DeviceWait,
};
use crate::error::{CopyError, TransferError};

/// Threads that enqueue: a flight that waits for staging memory does not stop the next one.
const THREADS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1);

/// The lane between devices, and between devices and memory of this process; or that between devices and files.
#[derive(Debug)]
pub(crate) struct DeviceLane {
    flying: Arc<FlyingCount>,
    with_files: bool,
    threads: NonZeroUsize,
}

impl DeviceLane {
    /// The lane between memories.
    pub(crate) fn new() -> DeviceLane {
        DeviceLane {
            flying: Arc::default(),
            with_files: false,
            threads: THREADS,
        }
    }

    /// The lane between devices and files. At most `threads` transfers read or write files concurrently; 0 counts as 1.
    pub(crate) fn with_files(threads: usize) -> DeviceLane {
        DeviceLane {
            flying: Arc::default(),
            with_files: true,
            threads: NonZeroUsize::new(threads).unwrap_or(NonZeroUsize::MIN),
        }
    }
}

impl Lane for DeviceLane {
    fn name(&self) -> &'static str {
        match self.with_files {
            true => "kvtile-dev-file",
            false => "kvtile-device",
        }
    }

    fn threads(&self) -> NonZeroUsize {
        self.threads
    }

    fn carries(&self, from: LaneEnd, to: LaneEnd) -> bool {
        let ends = [from, to];
        ends.contains(&LaneEnd::Device) && ends.contains(&LaneEnd::File) == self.with_files
    }

    /// Files are read and written in their order, and layers are free where that keeps it.
    fn planning(&self, (source, destination): LaneSides<'_>) -> LanePlanning {
        let from_file = source.end() == LaneEnd::File;
        let to_file = destination.end() == LaneEnd::File;
        let is_separate =
            destination.has_region_per_layer() && (!from_file || source.has_region_per_layer());
        LanePlanning {
            source_order: from_file,
            layers_are_free: is_separate && !to_file,
        }
    }

    /// Enqueueing can block on a full stream, and the caller may be an engine's thread.
    fn inline_bytes(&self) -> u64 {
        0
    }

    fn has_marks(&self) -> bool {
        true
    }

    unsafe fn carry(
        &self,
        plan: &CopyPlan,
        sides: LaneSides<'_>,
        hints: TransferHints,
    ) -> Result<(), TransferError> {
        let sides = DeviceSides::of(sides)?;
        let queue = sides.queue()?;
        let mut guard = QuiesceOnDrop(Some(&queue));
        // SAFETY: passed on to the caller; the guard waits for the copies before this returns or unwinds.
        unsafe { sides.enqueue(plan, &queue, &[], hints.route) }?;
        if !sides.ends_on_host() {
            DeviceWait::CopiesCompared.until_passed(&queue.record()?)?;
        }
        guard.0 = None;
        Ok(())
    }

    /// Enqueues the copies on this thread; a reaper ends the flight.
    fn fly(&self, flight: TransferFlight) {
        let counted = self.flying.count();
        let start = Instant::now();
        let way = match FlightWay::prepare(&flight) {
            Ok(way) => way,
            // Nothing was enqueued.
            Err(error) => return flight.land(Err(error)),
        };
        if way.ends_here {
            return flight.fly(self);
        }
        let mut marks = Vec::new();
        let enqueued = catch_unwind(AssertUnwindSafe(|| way.enqueue(&flight, &mut marks)));
        let enqueued = enqueued.unwrap_or(Err(TransferError::Copy(CopyError::Panicked)));
        let landing = Landing {
            queue: way.queue,
            marks,
            announces: flight.cargo().announces_layers(),
            start,
            failed: enqueued.err(),
            counted,
            flight,
        };
        way.engine.way(way.direction).reaper.push(landing);
    }

    fn settle(&self) {
        self.flying.wait();
    }
}

/// Where the copies of a flight go.
struct FlightWay {
    engine: Arc<DeviceEngine>,
    direction: CopyDirection,
    queue: DeviceQueue,
    /// Whether the flight ends on this thread: the CPU has the last step.
    ends_here: bool,
}

impl FlightWay {
    /// Finds the queue, which then waits for the work before the flight.
    fn prepare(flight: &TransferFlight) -> Result<FlightWay, TransferError> {
        let cargo = flight.cargo();
        let sides = DeviceSides::of(cargo.sides()?)?;
        let way = FlightWay {
            engine: Arc::clone(sides.engine),
            direction: sides.direction,
            queue: sides.queue()?,
            // Comparisons take staging memory, for which a reaper must not wait.
            ends_here: sides.ends_on_host() || cargo.verifies(),
        };
        sides.way().reaper.open()?;
        for mark in cargo.after() {
            match way.ends_here {
                // `carry` does not know the marks, and its copies may read the source from their call on.
                true => DeviceWait::WorkBeforeHost.until_passed(mark)?,
                false => DeviceWait::WorkBeforeQueue.on_queue(&way.queue, mark)?,
            }
        }
        Ok(way)
    }

    /// Enqueues all plans, with a mark behind each layer or behind all of them.
    fn enqueue(
        &self,
        flight: &TransferFlight,
        marks: &mut Vec<DeviceMark>,
    ) -> Result<(), TransferError> {
        let cargo = flight.cargo();
        let sides = DeviceSides::of(cargo.sides()?)?;
        let (announces, route) = (cargo.announces_layers(), cargo.hints().route);
        let mut record = |layer: Option<usize>| {
            let mark = self.queue.record()?;
            match (flight.marks(), layer) {
                (Some(known), Some(layer)) => known.set(layer, &mark),
                (Some(known), None) => known.set_all(&mark),
                (None, _) => {}
            }
            marks.push(mark);
            Ok(())
        };
        let mut layer = 0;
        cargo.for_each_plan(&mut |plan| {
            // SAFETY: guaranteed by the cargo, which lives until the flight lands: behind the last mark, or after an
            // error when the queue is idle.
            unsafe { sides.enqueue(plan, &self.queue, cargo.after(), route) }?;
            if announces {
                record(Some(layer))?;
                layer += 1;
            }
            Ok(())
        })?;
        match announces {
            true => Ok(()),
            false => record(None),
        }
    }
}
