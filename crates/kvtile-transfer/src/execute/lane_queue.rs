//! The queue of a lane, and its worker threads.
//!
//! The threads of a lane take flights in FIFO order, and each executes one flight at a time. With
//! several threads, flights end in any order. If a new flight finds all threads busy, the queue
//! starts another thread, up to the maximum. Lanes are independent: neither a slow flight nor a
//! full queue of one lane delays another.

use std::{
    cell::Cell,
    collections::VecDeque,
    num::NonZeroUsize,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use super::{flight::TransferFlight, lane::Lane};
use crate::{
    error::{CopyError, TransferError},
    sync::{Condvar, Mutex, MutexGuard, thread},
};

#[cfg(not(loom))]
thread_local! {
    /// Whether this is a thread of a lane. Such a thread never waits for room in a queue: neither
    /// in its own, nor in that of another lane, whose thread could be waiting in turn.
    static IS_LANE: Cell<bool> = const { Cell::new(false) };
}
#[cfg(loom)]
loom::thread_local! {
    static IS_LANE: Cell<bool> = Cell::new(false);
}

/// The queue of a lane, and its worker threads.
#[derive(Debug)]
pub(crate) struct LaneQueue {
    capacity: usize,
    shared: Arc<LaneQueueShared>,
    threads: Mutex<Vec<thread::JoinHandle<()>>>,
}

#[derive(Debug)]
struct LaneQueueShared {
    state: Mutex<LaneQueueState>,
    /// Signals a new flight, or the closing of the queue.
    came: Condvar,
    /// Signals room in the queue.
    room: Condvar,
}

#[derive(Debug)]
struct LaneQueueState {
    flights: VecDeque<TransferFlight>,
    /// Number of threads with a flight.
    flying: usize,
    /// Number of started threads.
    threads: usize,
    /// Maximum number of threads; reduced if the system refuses a thread.
    threads_max: usize,
    /// Number of callers that wait for room.
    starters: usize,
    is_closed: bool,
}

impl LaneQueueState {
    /// Whether a queued flight has no free thread, and another thread may be started.
    fn wants_thread(&self) -> bool {
        let free = self.threads - self.flying;
        self.flights.len() > free && self.threads < self.threads_max
    }

    /// Maximum number of queued flights: the capacity, and one for each thread without a flight.
    fn room(&self, capacity: usize) -> usize {
        capacity.saturating_add(self.threads_max - self.flying)
    }
}

impl LaneQueueShared {
    fn lock(&self) -> MutexGuard<'_, LaneQueueState> {
        self.state.lock()
    }

    /// Takes the next flight; `None` when the queue is closed and empty.
    fn next(&self) -> Option<TransferFlight> {
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

    /// Marks a thread as free.
    fn landed(&self) {
        let mut state = self.lock();
        state.flying -= 1;
        if state.starters > 0 {
            self.room.notify_all();
        }
    }

    /// The loop of a thread, until the queue is closed and empty.
    fn work(&self, lane: &dyn Lane) {
        IS_LANE.with(|is_lane| is_lane.set(true));
        while let Some(flight) = self.next() {
            // A flight that a panic drops completes with an error; the thread takes the next one.
            let _ = catch_unwind(AssertUnwindSafe(|| lane.fly(flight)));
            self.landed();
        }
    }
}

impl LaneQueue {
    /// A queue of at most `capacity` waiting flights, with at most `threads` threads.
    pub(super) fn new(capacity: usize, threads: NonZeroUsize) -> LaneQueue {
        LaneQueue {
            capacity,
            shared: Arc::new(LaneQueueShared {
                state: Mutex::new(LaneQueueState {
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

    /// Ensures that there is at least one thread, which executes flights on `lane`.
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
        spawned.map_err(|error| {
            TransferError::Copy(CopyError::NoThread {
                problem: error.to_string(),
            })
        })
    }

    /// Starts one more thread, if a flight waits for it. If the system refuses, the running threads
    /// execute the flight.
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

    /// Queues a flight. Blocks while the queue is full. The flight runs on this thread if no thread
    /// was started or the queue is closed. It also does if the queue is full and this is a thread
    /// of a lane, which a waker uses to start a transfer.
    pub(super) fn start(&self, flight: TransferFlight, lane: &Arc<dyn Lane>) {
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

    /// Closes the queue: it accepts no more flights, and the threads execute the queued ones.
    pub(super) fn close(&self) {
        self.shared.lock().is_closed = true;
        self.shared.came.notify_all();
        self.shared.room.notify_all();
    }

    /// Joins the threads, after [`LaneQueue::close`]; a thread does not join itself.
    pub(super) fn join(&self) {
        let threads = std::mem::take(&mut *self.threads.lock());
        let here = thread::current().id();
        for thread in threads {
            if thread.thread().id() != here {
                // Panics of flights are caught, so the result carries no information.
                let _ = thread.join();
            }
        }
    }
}
