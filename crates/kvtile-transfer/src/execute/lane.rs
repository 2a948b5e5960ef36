//! Lanes: what moves bytes between kinds of memory, each with a queue and threads of its own.
//!
//! ```text
//! kinds of memory at both ends ──Lanes::between──► lane     the one place where they decide
//!
//! Flight ──► LaneQueue ──threads of the lane──► Lane::fly ──► Flight::land
//! ```
//!
//! A lane is a trait and no enum: a device is a further room that implements it, with no branch elsewhere,
//! and tests put in lanes that stop where the test wants them to. A call through the trait happens once a
//! plan, which is nothing beside its copy.

use std::{
    fmt::Debug,
    num::NonZeroUsize,
    sync::{Arc, OnceLock},
};

use kvtile_layout::CopyPlan;

use super::{
    bound::BoundLayout, file::FileLane, flight::Flight, lane_queue::LaneQueue, memory::MemoryLane,
};
use crate::error::TransferError;

/// What is at one end of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LaneEnd {
    /// Memory that this process can address.
    Memory,
    /// Files.
    File,
}

/// The layouts at both ends: source and destination.
pub(crate) type Sides<'a> = (&'a BoundLayout, &'a BoundLayout);

/// What is known of a transfer beside its plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hints {
    /// Bytes of the whole transfer, where the plan is a part of it; the plan's own if less.
    pub(crate) bytes: u64,
    /// The destination is read soon after.
    pub(crate) read_next: bool,
}

/// How plans for a lane are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LanePlanning {
    /// Loops are sorted by the source's strides instead of the destination's.
    pub(crate) source_order: bool,
    /// Whether going layer by layer costs no run length and no order of reading.
    pub(crate) layers_are_free: bool,
}

/// Moves bytes between some kinds of memory.
pub(crate) trait Lane: Debug + Send + Sync {
    /// The name of its threads: at most 15 characters.
    fn name(&self) -> &'static str;

    /// How many flights move at the same time: each has a thread meanwhile.
    fn threads(&self) -> NonZeroUsize;

    /// Whether it moves bytes from one end to the other.
    fn carries(&self, from: LaneEnd, to: LaneEnd) -> bool;

    /// How plans between these layouts are made.
    fn planning(&self, sides: Sides<'_>) -> LanePlanning;

    /// Transfers up to this size end before another thread would have woken: they run on the caller's
    /// thread.
    fn inline_bytes(&self) -> u64;

    /// Moves the bytes of `plan` on this thread, and returns when they have arrived. Threads of the lane may
    /// be in here at the same time.
    ///
    /// # Safety
    /// `plan` was made from the layouts that `sides` bind. For the whole call nothing else writes the source
    /// units or reads or writes the destination units of the plan, and no source byte is a destination byte.
    unsafe fn carry(
        &self,
        plan: &CopyPlan,
        sides: Sides<'_>,
        hints: Hints,
    ) -> Result<(), TransferError>;

    /// Starts a flight that is its own from now on. A lane whose bytes move on its thread lands it before it
    /// returns ([`Flight::fly`]); a lane of a device may keep it and land it from elsewhere.
    fn fly(&self, flight: Flight);

    /// Waits until every flight that [`Lane::fly`] kept has landed.
    fn settle(&self) {}
}

/// How many threads lanes have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LaneThreads {
    /// Threads that share one copy between memories at most.
    pub(crate) copy: usize,
    /// Transfers from and to files that move at the same time; 0 counts as 1.
    pub(crate) file: usize,
}

/// Every lane there is.
pub(crate) fn all(threads: LaneThreads) -> [Arc<dyn Lane>; 2] {
    [
        Arc::new(MemoryLane::new(threads.copy)),
        Arc::new(FileLane::new(threads.file)),
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

    /// Sees to it that flights have a thread.
    pub(crate) fn open(&self) -> Result<(), TransferError> {
        self.queue.open(&self.lane)
    }

    /// Queues a flight, and waits while the queue is full.
    pub(crate) fn start(&self, flight: Flight) {
        self.queue.start(flight, &self.lane);
    }
}

/// The lanes of a manager.
#[derive(Debug)]
pub(crate) struct Lanes {
    lanes: Vec<Arc<QueuedLane>>,
}

impl Lanes {
    /// Every lane there is; `queue_capacity` flights wait for each at most.
    pub(crate) fn new(threads: LaneThreads, queue_capacity: usize) -> Lanes {
        Lanes::of(all(threads), queue_capacity)
    }

    /// These lanes.
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
    pub(crate) fn between(&self, sides: Sides<'_>) -> Result<&Arc<QueuedLane>, TransferError> {
        first_between(&self.lanes, |lane| lane.lane(), sides)
    }

    /// Waits until every flight has landed. Later ones run on the thread that starts them. A thread of a
    /// lane, which a waker may have brought here, does not wait for itself.
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

/// The lane between two layouts for single blocks: they are moved by the calling thread alone.
pub(crate) fn one_thread_lane(sides: Sides<'_>) -> Result<&'static dyn Lane, TransferError> {
    static LANES: OnceLock<[Arc<dyn Lane>; 2]> = OnceLock::new();
    let lanes = LANES.get_or_init(|| all(LaneThreads { copy: 1, file: 1 }));
    let lane = first_between(lanes, |lane| &**lane, sides)?;
    Ok(&**lane)
}

/// The first lane that carries from one kind of memory to the other.
fn first_between<'l, T>(
    lanes: &'l [T],
    lane: impl Fn(&T) -> &dyn Lane,
    (source, destination): Sides<'_>,
) -> Result<&'l T, TransferError> {
    let mut lanes = lanes.iter();
    let carries = |l: &&T| lane(l).carries(source.end(), destination.end());
    lanes.find(carries).ok_or(TransferError::NotReachable {
        kind: destination.kind(),
    })
}
