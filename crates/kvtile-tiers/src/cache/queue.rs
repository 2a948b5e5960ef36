//! The bounded queue of a cache and the threads that serve it.
//!
//! Nobody waits for a place: what finds none is refused, and its caller goes on without the cache.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::Priority;

/// A job, and when its turn is: the higher priority first, the older one first among equals.
struct Waiting<J> {
    turn: (Priority, Reverse<u64>),
    job: J,
}

impl<J> PartialEq for Waiting<J> {
    fn eq(&self, other: &Self) -> bool {
        self.turn == other.turn
    }
}

impl<J> Eq for Waiting<J> {}

impl<J> PartialOrd for Waiting<J> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<J> Ord for Waiting<J> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.turn.cmp(&other.turn)
    }
}

struct State<J> {
    waiting: BinaryHeap<Waiting<J>>,
    number: u64,
    running: usize,
    closed: bool,
}

/// What a worker gets from a queue.
pub(super) enum Next<J> {
    /// Work.
    Job(J),
    /// Nothing came for a while.
    Idle,
    /// There will be nothing any more.
    Closed,
}

/// Why jobs were not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    Full { waiting: usize },
    Closed,
}

/// Jobs that wait for a thread.
pub(super) struct Queue<J> {
    state: Mutex<State<J>>,
    changed: Condvar,
    capacity: usize,
}

impl<J> Queue<J> {
    pub(super) fn new(capacity: usize) -> Queue<J> {
        Queue {
            state: Mutex::new(State {
                // It grows with the jobs: a capacity is a limit, not a size.
                waiting: BinaryHeap::new(),
                number: 0,
                running: 0,
                closed: false,
            }),
            changed: Condvar::new(),
            capacity,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<J>> {
        // Nothing that holds the lock can leave it half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes all jobs or none, at once.
    pub(super) fn push(&self, priority: Priority, jobs: Vec<J>) -> Result<(), (Refused, Vec<J>)> {
        let mut state = self.lock();
        if state.closed {
            return Err((Refused::Closed, jobs));
        }
        let waiting = state.waiting.len();
        if waiting.saturating_add(jobs.len()) > self.capacity {
            return Err((Refused::Full { waiting }, jobs));
        }
        for job in jobs {
            state.number += 1;
            let turn = (priority, Reverse(state.number));
            state.waiting.push(Waiting { turn, job });
        }
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// The next job, at once or not at all. [`Queue::done`] must follow.
    pub(super) fn try_next(&self) -> Option<J> {
        let mut state = self.lock();
        let next = state.waiting.pop()?;
        state.running += 1;
        Some(next.job)
    }

    /// The next job, waited for. [`Queue::done`] must follow a job.
    pub(super) fn next(&self, patience: Duration) -> Next<J> {
        let mut state = self.lock();
        loop {
            if let Some(next) = state.waiting.pop() {
                state.running += 1;
                return Next::Job(next.job);
            }
            if state.closed {
                return Next::Closed;
            }
            let waited = self.changed.wait_timeout(state, patience);
            let (guard, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            state = guard;
            if timeout.timed_out() && state.waiting.is_empty() && !state.closed {
                return Next::Idle;
            }
        }
    }

    /// A job that was taken has ended.
    pub(super) fn done(&self) {
        let mut state = self.lock();
        state.running = state.running.saturating_sub(1);
        drop(state);
        self.changed.notify_all();
    }

    /// Takes no more jobs and gives back those that wait.
    pub(super) fn close(&self) -> Vec<J> {
        let mut state = self.lock();
        state.closed = true;
        let left = std::mem::take(&mut state.waiting);
        drop(state);
        self.changed.notify_all();
        left.into_iter().map(|waiting| waiting.job).collect()
    }
}
