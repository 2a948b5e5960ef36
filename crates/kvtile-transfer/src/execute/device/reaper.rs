//! Reapers: threads that wait for the marks of flights and land them.

use std::{
    cell::Cell,
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
    time::Instant,
};

use kvtile_device::{DeviceMark, DeviceQueue};
use parking_lot::{Condvar, Mutex};

use super::{super::flight::TransferFlight, engine::quiesce, waits::DeviceWait};
use crate::error::{CopyError, TransferError};

thread_local! {
    /// Whether this thread is a reaper: it must not wait for itself.
    static IS_REAPER: Cell<bool> = const { Cell::new(false) };
}

/// Flights of a lane that have not ended.
#[derive(Debug, Default)]
pub(super) struct FlyingCount {
    flights: Mutex<usize>,
    landed: Condvar,
}

/// A flight in the count, until the drop.
#[derive(Debug)]
pub(super) struct CountedFlight(Arc<FlyingCount>);

impl FlyingCount {
    pub(super) fn count(self: &Arc<Self>) -> CountedFlight {
        *self.flights.lock() += 1;
        CountedFlight(Arc::clone(self))
    }

    /// Waits until all flights have ended. A reaper, on which a waker runs, does not wait.
    pub(super) fn wait(&self) {
        if IS_REAPER.with(Cell::get) {
            return;
        }
        let mut flights = self.flights.lock();
        while *flights > 0 {
            self.landed.wait(&mut flights);
        }
    }
}

impl Drop for CountedFlight {
    fn drop(&mut self) {
        *self.0.flights.lock() -= 1;
        self.0.landed.notify_all();
    }
}

/// A flight whose copies are enqueued.
pub(super) struct Landing {
    pub(super) flight: TransferFlight,
    pub(super) queue: DeviceQueue,
    /// Behind each layer, or behind all of them.
    pub(super) marks: Vec<DeviceMark>,
    pub(super) announces: bool,
    pub(super) start: Instant,
    /// The error of enqueueing: copies may be in flight all the same.
    pub(super) failed: Option<TransferError>,
    pub(super) counted: CountedFlight,
}

impl Landing {
    /// Waits for the marks, and lands.
    pub(super) fn land(self) {
        let mut failed = self.failed;
        for (layer, mark) in self.marks.iter().enumerate() {
            if let Err(error) = DeviceWait::FlightLanded.until_passed(mark) {
                failed.get_or_insert(TransferError::from(error));
                break;
            }
            if self.announces {
                self.flight.layer_arrived(layer);
            }
        }
        let end = match failed {
            None => {
                let cargo = self.flight.cargo();
                let arrived = catch_unwind(AssertUnwindSafe(|| cargo.arrived(self.start)));
                arrived.unwrap_or(Err(TransferError::Copy(CopyError::Panicked)))
            }
            Some(error) => {
                // What was enqueued without a mark behind it still uses the memory.
                quiesce(DeviceWait::FlightFailed, &self.queue);
                Err(error)
            }
        };
        drop(self.marks);
        self.flight.land(end);
        drop(self.counted);
    }
}

/// A thread that lands the flights of one queue, oldest first. It starts with the first flight.
#[derive(Debug, Default)]
pub(super) struct Reaper {
    shared: Arc<ReaperShared>,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
}

#[derive(Default)]
struct ReaperShared {
    state: Mutex<ReaperState>,
    came: Condvar,
}

#[derive(Default)]
struct ReaperState {
    landings: VecDeque<Landing>,
    is_closed: bool,
}

impl std::fmt::Debug for ReaperShared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReaperShared").finish_non_exhaustive()
    }
}

impl ReaperShared {
    fn next(&self) -> Option<Landing> {
        let mut state = self.state.lock();
        loop {
            if let Some(landing) = state.landings.pop_front() {
                return Some(landing);
            }
            if state.is_closed {
                return None;
            }
            self.came.wait(&mut state);
        }
    }

    fn work(&self) {
        IS_REAPER.with(|is_reaper| is_reaper.set(true));
        while let Some(landing) = self.next() {
            // A panic of a user's waker is caught before; the reaper goes on in any case.
            let _ = catch_unwind(AssertUnwindSafe(|| landing.land()));
        }
    }
}

impl Reaper {
    /// Ensures that the thread runs.
    pub(super) fn open(&self) -> Result<(), TransferError> {
        let mut thread = self.thread.lock();
        if thread.is_none() {
            let shared = Arc::clone(&self.shared);
            let builder = thread::Builder::new().name("kvtile-reaper".to_owned());
            let spawned = builder.spawn(move || shared.work());
            *thread = Some(spawned.map_err(|error| {
                TransferError::Copy(CopyError::NoThread {
                    problem: error.to_string(),
                })
            })?);
        }
        Ok(())
    }

    /// Lands a flight when its marks are passed. The reaper is open.
    pub(super) fn push(&self, landing: Landing) {
        self.shared.state.lock().landings.push_back(landing);
        self.shared.came.notify_one();
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        self.shared.state.lock().is_closed = true;
        self.shared.came.notify_all();
        if let Some(thread) = self.thread.get_mut().take() {
            // The last flight may drop the last layout of a device, and with it this reaper.
            if thread.thread().id() != thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}
