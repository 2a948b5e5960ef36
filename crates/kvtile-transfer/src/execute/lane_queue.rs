//! The queue in front of a lane, and the threads that take from it.
//!
//! The threads of a lane take flights in the order of their starts, and each flies one at a time; where there
//! are several, flights land in any order. A thread starts with the first flight that finds all others busy.
//! Nothing that happens in one lane holds up another: neither a slow flight nor a full queue.

use std::{
    cell::Cell,
    collections::VecDeque,
    num::NonZeroUsize,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
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

/// See the module.
#[derive(Debug)]
pub(crate) struct LaneQueue {
    capacity: usize,
    shared: Arc<Shared>,
    threads: Mutex<Vec<thread::JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// A flight came, or the end.
    came: Condvar,
    /// There is room.
    room: Condvar,
}

#[derive(Debug)]
struct State {
    flights: VecDeque<Flight>,
    /// Threads that have a flight.
    flying: usize,
    /// Threads that were started.
    threads: usize,
    /// Threads at most; less than was set where the system has no more.
    threads_max: usize,
    /// Starters that wait for room.
    starters: usize,
    is_closed: bool,
}

impl State {
    /// Whether a flight waits that no thread is free to take, and one more may be started.
    fn wants_thread(&self) -> bool {
        let free = self.threads - self.flying;
        self.flights.len() > free && self.threads < self.threads_max
    }

    /// Flights that may be queued: as many as wait at most, and one for each thread without a flight.
    fn room(&self, capacity: usize) -> usize {
        capacity.saturating_add(self.threads_max - self.flying)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// The next flight; `None` when the queue is closed and empty.
    fn next(&self) -> Option<Flight> {
        let mut state = self.lock();
        loop {
            if let Some(flight) = state.flights.pop_front() {
                state.flying += 1;
                return Some(flight);
            }
            if state.is_closed {
                return None;
            }
            self.came.wait(&mut state);
        }
    }

    /// A thread is without a flight again.
    fn landed(&self) {
        let mut state = self.lock();
        state.flying -= 1;
        if state.starters > 0 {
            self.room.notify_all();
        }
    }

    /// What a thread does, until the queue is closed and empty.
    fn work(&self, lane: &dyn Lane) {
        IS_LANE.with(|is_lane| is_lane.set(true));
        while let Some(flight) = self.next() {
            // A flight that a panic drops lands with an error; the next one flies all the same.
            let _ = catch_unwind(AssertUnwindSafe(|| lane.fly(flight)));
            self.landed();
        }
    }
}

impl LaneQueue {
    /// A queue in which at most `capacity` flights wait for at most `threads` threads.
    pub(super) fn new(capacity: usize, threads: NonZeroUsize) -> LaneQueue {
        LaneQueue {
            capacity,
            shared: Arc::new(Shared {
                state: Mutex::new(State {
                    flights: VecDeque::new(),
                    flying: 0,
                    threads: 0,
                    threads_max: threads.get(),
                    starters: 0,
                    is_closed: false,
                }),
                came: Condvar::new(),
                room: Condvar::new(),
            }),
            threads: Mutex::new(Vec::new()),
        }
    }

    /// Sees to it that there is a thread, which flies over `lane`.
    pub(super) fn open(&self, lane: &Arc<dyn Lane>) -> Result<(), TransferError> {
        if self.shared.lock().threads > 0 {
            return Ok(());
        }
        let mut threads = self.threads.lock();
        if self.shared.lock().threads > 0 {
            return Ok(());
        }
        threads.push(self.spawn(lane)?);
        self.shared.lock().threads = 1;
        Ok(())
    }

    fn spawn(&self, lane: &Arc<dyn Lane>) -> Result<thread::JoinHandle<()>, TransferError> {
        let (shared, lane) = (Arc::clone(&self.shared), Arc::clone(lane));
        let thread = thread::Builder::new().name(lane.name().to_owned());
        let spawned = thread.spawn(move || shared.work(&*lane));
        spawned.map_err(|error| TransferError::NoThread {
            problem: error.to_string(),
        })
    }

    /// One more thread, where a flight waits for it. Where the system has none, those that run do its work.
    fn add_thread(&self, lane: &Arc<dyn Lane>) {
        let mut threads = self.threads.lock();
        let mut state = self.shared.lock();
        if state.is_closed || !state.wants_thread() {
            return;
        }
        state.threads += 1;
        drop(state);
        if let Ok(thread) = self.spawn(lane) {
            threads.push(thread);
            return;
        }
        let mut state = self.shared.lock();
        state.threads -= 1;
        state.threads_max = state.threads;
    }

    /// Queues a flight, and waits while the queue is full. It flies here where there is no thread to wait
    /// for: where none started or the queue is closed, or where this is the thread of a lane (a waker that
    /// starts a transfer) and there is no room.
    pub(super) fn start(&self, flight: Flight, lane: &Arc<dyn Lane>) {
        let mut state = self.shared.lock();
        while state.threads > 0 && !state.is_closed {
            if state.flights.len() < state.room(self.capacity) {
                state.flights.push_back(flight);
                let wants_thread = state.wants_thread();
                drop(state);
                self.shared.came.notify_one();
                if wants_thread {
                    self.add_thread(lane);
                }
                return;
            }
            if IS_LANE.with(Cell::get) {
                break;
            }
            state.starters += 1;
            self.shared.room.wait(&mut state);
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

    /// Waits for the end of the threads, after [`LaneQueue::close`]; one of them does not wait for itself.
    pub(super) fn join(&self) {
        let threads = std::mem::take(&mut *self.threads.lock());
        let here = thread::current().id();
        for thread in threads {
            if thread.thread().id() != here {
                // Panics of flights are caught, so there is nothing to learn from the result.
                let _ = thread.join();
            }
        }
    }
}
