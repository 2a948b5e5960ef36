//! The queue in front of a lane, and the thread that takes from it.
//!
//! One thread a lane starts flights in order. Nothing that happens in one lane holds up another: neither a
//! slow flight nor a full queue.

use std::{
    cell::Cell,
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, PoisonError},
};

use super::{flight::Flight, lane::Lane};
use crate::{
    error::TransferError,
    sync::{Condvar, Mutex, MutexGuard, thread},
};

#[cfg(not(loom))]
thread_local! {
    /// Whether this thread is that of a lane. Such a thread never waits for room in a queue: neither in its
    /// own nor in that of a lane whose thread may be waiting for room in turn.
    static IS_LANE: Cell<bool> = const { Cell::new(false) };
}
#[cfg(loom)]
loom::thread_local! {
    static IS_LANE: Cell<bool> = Cell::new(false);
}

/// See the module. The thread starts with the first flight.
#[derive(Debug)]
pub(crate) struct LaneQueue {
    capacity: usize,
    shared: Arc<Shared>,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// A flight came, or the end.
    came: Condvar,
    /// There is room.
    room: Condvar,
}

#[derive(Debug, Default)]
struct State {
    flights: VecDeque<Flight>,
    /// The thread waits for a flight, and takes the first that comes.
    is_idle: bool,
    /// Starters that wait for room.
    starters: usize,
    is_open: bool,
    is_closed: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that holds the lock can leave it half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next flight; `None` when the queue is closed and empty.
    fn next(&self) -> Option<Flight> {
        let mut state = self.lock();
        loop {
            if let Some(flight) = state.flights.pop_front() {
                state.is_idle = false;
                if state.starters > 0 {
                    self.room.notify_all();
                }
                return Some(flight);
            }
            if state.is_closed {
                return None;
            }
            state.is_idle = true;
            if state.starters > 0 {
                self.room.notify_all();
            }
            let waited = self.came.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl LaneQueue {
    /// A queue in which at most `capacity` flights wait.
    pub(super) fn new(capacity: usize) -> LaneQueue {
        LaneQueue {
            capacity,
            shared: Arc::new(Shared {
                state: Mutex::new(State::default()),
                came: Condvar::new(),
                room: Condvar::new(),
            }),
            thread: Mutex::new(None),
        }
    }

    /// Sees to it that there is a thread, which flies over `lane`.
    pub(super) fn open(&self, lane: &Arc<dyn Lane>) -> Result<(), TransferError> {
        if self.shared.lock().is_open {
            return Ok(());
        }
        let mut handle = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if self.shared.lock().is_open {
            return Ok(());
        }
        let (shared, lane) = (Arc::clone(&self.shared), Arc::clone(lane));
        let name = lane.name().to_owned();
        let spawned = thread::Builder::new().name(name).spawn(move || {
            IS_LANE.with(|is_lane| is_lane.set(true));
            while let Some(flight) = shared.next() {
                // A flight that a panic drops lands with an error; the next one flies all the same.
                let _ = catch_unwind(AssertUnwindSafe(|| lane.fly(flight)));
            }
        });
        *handle = Some(spawned.map_err(|error| TransferError::NoThread {
            problem: error.to_string(),
        })?);
        self.shared.lock().is_open = true;
        Ok(())
    }

    /// Queues a flight, and waits while the queue is full. It flies here where there is no thread to wait
    /// for: where none started or the queue is closed, or where this is the thread of a lane (a waker that
    /// starts a transfer) and there is no room.
    pub(super) fn start(&self, flight: Flight, lane: &dyn Lane) {
        let mut state = self.shared.lock();
        while state.is_open && !state.is_closed {
            let room = self.capacity.saturating_add(usize::from(state.is_idle));
            if state.flights.len() < room {
                state.flights.push_back(flight);
                drop(state);
                self.shared.came.notify_one();
                return;
            }
            if IS_LANE.with(Cell::get) {
                break;
            }
            state.starters += 1;
            let waited = self.shared.room.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
            state.starters -= 1;
        }
        drop(state);
        lane.fly(flight);
    }

    /// No flight is queued any more; those that are fly.
    pub(super) fn close(&self) {
        self.shared.lock().is_closed = true;
        self.shared.came.notify_all();
        self.shared.room.notify_all();
    }

    /// Waits for the end of the thread, after [`LaneQueue::close`]; the thread itself does not.
    pub(super) fn join(&self) {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        let handle = thread.take();
        drop(thread);
        if let Some(handle) = handle
            && handle.thread().id() != thread::current().id()
        {
            // Panics of flights are caught, so there is nothing to learn from the result.
            let _ = handle.join();
        }
    }
}
