//! Lanes: executors of plans between kinds of memory, each with its own queue and threads.
//!
//! ```text
//! kinds of memory at both ends ──Lanes::between──► lane     the only place that decides by kind
//!
//! TransferFlight ──► LaneQueue ──threads of the lane──► Lane::fly ──► TransferFlight::land
//! ```
//!
//! A lane is a trait object, not an enum: the lane of devices is one more implementation, without a
//! branch elsewhere, and tests use lanes that stop on demand. There is one call through the trait
//! per plan, which is negligible beside its copy.

use std::{
    fmt::Debug,
    num::NonZeroUsize,
    sync::{Arc, OnceLock},
};

use kvtile_layout::CopyPlan;

use super::{
    bound::BoundLayout,
    device::{DeviceLane, DeviceRoute},
    file::FileLane,
    flight::TransferFlight,
    lane_queue::LaneQueue,
    memory::MemoryLane,
};
use crate::error::{BindError, TransferError};

/// The kind of memory at one end of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LaneEnd {
    /// Memory that this process can address.
    Memory,
    /// Memory of a device.
    Device,
    /// Files.
    File,
}

/// The source and the destination layout.
pub(crate) type LaneSides<'a> = (&'a BoundLayout, &'a BoundLayout);

/// Hints about a transfer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TransferHints {
    /// Bytes of the whole transfer, if the plan is a part of it. A smaller value has no effect.
    pub(crate) bytes: u64,
    /// The destination is read soon after the copy.
    pub(crate) read_next: bool,
    /// The way that a device prefers; it chooses one without.
    pub(crate) route: Option<DeviceRoute>,
}

/// How the planner makes plans for a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LanePlanning {
    /// Sort loops by the source's strides instead of the destination's.
    pub(crate) source_order: bool,
    /// Whether one plan per layer costs neither run length nor read order.
    pub(crate) layers_are_free: bool,
}

/// Executes plans between some kinds of memory.
pub(crate) trait Lane: Debug + Send + Sync {
    /// The name of its threads: at most 15 characters.
    fn name(&self) -> &'static str;

    /// Maximum number of concurrent flights; each has its own thread.
    fn threads(&self) -> NonZeroUsize;

    /// Whether it copies from `from` to `to`.
    fn carries(&self, from: LaneEnd, to: LaneEnd) -> bool;

    /// How plans between these layouts are made.
    fn planning(&self, sides: LaneSides<'_>) -> LanePlanning;

    /// Transfers up to this size run on the caller's thread: they end sooner than another thread
    /// would wake up.
    fn inline_bytes(&self) -> u64;

    /// Executes `plan` on this thread, and returns after all bytes have arrived. Several threads of
    /// the lane may call this concurrently.
    ///
    /// # Safety
    /// `plan` was made from the layouts that `sides` bind. For the whole call nothing else writes the source
    /// units or reads or writes the destination units of the plan, and no source byte is a destination byte.
    unsafe fn carry(
        &self,
        plan: &CopyPlan,
        sides: LaneSides<'_>,
        hints: TransferHints,
    ) -> Result<(), TransferError>;

    /// Takes over a flight and starts it. A lane that copies on its thread ends the flight before
    /// it returns ([`TransferFlight::fly`]). A lane of a device may keep the flight and end it from another
    /// thread.
    fn fly(&self, flight: TransferFlight);

    /// Whether work of a device can wait for its layers, and its transfers for work of a device.
    fn has_marks(&self) -> bool {
        false
    }

    /// Waits until every flight that [`Lane::fly`] kept has ended.
    fn settle(&self) {}
}

/// Numbers of threads of the lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LaneThreads {
    /// Maximum number of threads that share one copy between memories.
    pub(crate) copy: usize,
    /// Maximum number of concurrent file transfers; 0 counts as 1.
    pub(crate) file: usize,
}

/// All lanes.
pub(crate) fn all(threads: LaneThreads) -> [Arc<dyn Lane>; 4] {
    [
        Arc::new(MemoryLane::new(threads.copy)),
        Arc::new(FileLane::new(threads.file)),
        Arc::new(DeviceLane::new()),
        Arc::new(DeviceLane::with_files(threads.file)),
    ]
}

/// A lane with its queue.
#[derive(Debug)]
pub(crate) struct QueuedLane {
    lane: Arc<dyn Lane>,
    queue: LaneQueue,
}

impl QueuedLane {
    /// The lane itself.
    pub(crate) fn lane(&self) -> &dyn Lane {
        &*self.lane
    }

    /// Ensures that the queue has a thread.
    pub(crate) fn open(&self) -> Result<(), TransferError> {
        self.queue.open(&self.lane)
    }

    /// Queues a flight. Blocks while the queue is full.
    pub(crate) fn start(&self, flight: TransferFlight) {
        self.queue.start(flight, &self.lane);
    }
}

/// The lanes of a manager.
#[derive(Debug)]
pub(crate) struct Lanes {
    lanes: Vec<Arc<QueuedLane>>,
}

impl Lanes {
    /// All lanes; at most `queue_capacity` flights wait for each.
    pub(crate) fn new(threads: LaneThreads, queue_capacity: usize) -> Lanes {
        Lanes::of(all(threads), queue_capacity)
    }

    /// The given lanes.
    pub(crate) fn of(
        lanes: impl IntoIterator<Item = Arc<dyn Lane>>,
        queue_capacity: usize,
    ) -> Lanes {
        let queued = lanes.into_iter().map(|lane| {
            let queue = LaneQueue::new(queue_capacity, lane.threads());
            Arc::new(QueuedLane { lane, queue })
        });
        Lanes {
            lanes: queued.collect(),
        }
    }

    /// The lane between two layouts.
    pub(crate) fn between(&self, sides: LaneSides<'_>) -> Result<&Arc<QueuedLane>, TransferError> {
        first_between(&self.lanes, |lane| lane.lane(), sides)
    }

    /// Waits until every flight has ended. Later flights run on the thread that starts them. If a
    /// waker calls this on a thread of a lane, that thread does not wait for itself.
    pub(crate) fn close(&self) {
        for lane in &self.lanes {
            lane.queue.close();
        }
        for lane in &self.lanes {
            lane.queue.join();
            lane.lane.settle();
        }
    }
}

/// The lane between two layouts for single blocks, which the calling thread alone copies.
pub(crate) fn one_thread_lane(sides: LaneSides<'_>) -> Result<&'static dyn Lane, TransferError> {
    static LANES: OnceLock<[Arc<dyn Lane>; 4]> = OnceLock::new();
    let lanes = LANES.get_or_init(|| all(LaneThreads { copy: 1, file: 1 }));
    let lane = first_between(lanes, |lane| &**lane, sides)?;
    Ok(&**lane)
}

/// The first lane that supports both kinds of memory.
fn first_between<'l, T>(
    lanes: &'l [T],
    lane: impl Fn(&T) -> &dyn Lane,
    (source, destination): LaneSides<'_>,
) -> Result<&'l T, TransferError> {
    let mut lanes = lanes.iter();
    let carries = |l: &&T| lane(l).carries(source.end(), destination.end());
    lanes
        .find(carries)
        .ok_or(TransferError::Bind(BindError::NotReachable {
            kind: destination.kind(),
        }))
}
