//! The threads of a shared tier: they run the store's blocking calls, as many at a time as the
//! store's speed allows, questions first and writes last.
//!
//! A tier without threads runs each call at once on the caller's thread.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread::ThreadId,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

use crate::guard::StorePace;

/// A call of the store with what follows it. Dropping it without running it ends its work as
/// closed.
pub(super) type StoreCallJob = Box<dyn FnOnce() + Send>;

/// The order in which waiting jobs run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum JobClass {
    /// Which bundles there are.
    Ask,
    /// Reads of bundles.
    Read,
    /// Writes of bundles, renewals and removals. They take at most half of the calls, so that reads do not wait
    /// behind them: three quarters stored no faster.
    Write,
}

#[derive(Default)]
struct ThreadsState {
    asks: VecDeque<StoreCallJob>,
    reads: VecDeque<StoreCallJob>,
    writes: VecDeque<StoreCallJob>,
    running: usize,
    running_writes: usize,
    threads: Vec<ThreadId>,
    /// Threads that wait for a job.
    idle: usize,
    is_closed: bool,
}

impl ThreadsState {
    /// The next job that may run.
    fn next(&mut self, limit: usize) -> Option<(JobClass, StoreCallJob)> {
        if self.running >= limit {
            return None;
        }
        if let Some(job) = self.asks.pop_front() {
            return Some((JobClass::Ask, job));
        }
        if let Some(job) = self.reads.pop_front() {
            return Some((JobClass::Read, job));
        }
        let writes_max = (limit / 2).max(1);
        if self.running_writes >= writes_max {
            return None;
        }
        let job = self.writes.pop_front()?;
        Some((JobClass::Write, job))
    }

    fn waiting(&self) -> usize {
        self.asks.len() + self.reads.len() + self.writes.len()
    }
}

/// The threads of one tier.
pub(super) struct StoreThreads {
    name: String,
    threads_max: usize,
    pace: Arc<StorePace>,
    state: Mutex<ThreadsState>,
    changed: Condvar,
}

impl StoreThreads {
    /// Up to `threads_max` threads, which begin when there is work; none if it is 0.
    pub(super) fn new(name: String, threads_max: usize, pace: Arc<StorePace>) -> Arc<StoreThreads> {
        Arc::new(StoreThreads {
            name,
            threads_max,
            pace,
            state: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// Runs a job later, or at once without threads. Drops it after closing.
    pub(super) fn push(self: &Arc<Self>, class: JobClass, job: StoreCallJob) {
        let mut state = self.state.lock();
        if state.is_closed {
            drop(state);
            drop(job);
            return;
        }
        if self.threads_max == 0 {
            drop(state);
            run(job);
            return;
        }
        match class {
            JobClass::Ask => state.asks.push_back(job),
            JobClass::Read => state.reads.push_back(job),
            JobClass::Write => state.writes.push_back(job),
        }
        let needs_thread = state.idle < state.waiting() && state.threads.len() < self.threads_max;
        drop(state);
        self.changed.notify_one();
        if needs_thread {
            self.start_thread();
        }
    }

    fn start_thread(self: &Arc<Self>) {
        let threads = Arc::clone(self);
        let thread = std::thread::Builder::new().name(self.name.clone());
        // Counted under the lock before the thread takes its first job.
        let mut state = self.state.lock();
        if state.threads.len() >= self.threads_max {
            return;
        }
        match thread.spawn(move || threads.work()) {
            Ok(thread) => state.threads.push(thread.thread().id()),
            Err(error) if state.threads.is_empty() => {
                log::warn!("no thread for {}: {error}; its work is dropped", self.name);
                let ThreadsState {
                    asks,
                    reads,
                    writes,
                    ..
                } = &mut *state;
                let dropped = [asks, reads, writes].map(std::mem::take);
                // A job that is dropped ends its work, which may take the lock.
                drop(state);
                drop(dropped);
            }
            Err(error) => log::warn!("no further thread for {}: {error}", self.name),
        }
    }

    fn work(&self) {
        let mut state = self.state.lock();
        loop {
            if state.is_closed && state.waiting() == 0 {
                break;
            }
            let limit = self.pace.limit();
            let Some((class, job)) = state.next(limit) else {
                state.idle += 1;
                self.changed.wait(&mut state);
                state.idle -= 1;
                continue;
            };
            state.running += 1;
            state.running_writes += usize::from(class == JobClass::Write);
            // Another job may run too: the limit may have grown, or a write may have ended.
            let may_more = state.waiting() > 0 && state.running < limit;
            if state.is_closed {
                self.changed.notify_all();
            } else if may_more && state.idle > 0 {
                self.changed.notify_one();
            }
            drop(state);
            run(job);
            state = self.state.lock();
            state.running -= 1;
            state.running_writes -= usize::from(class == JobClass::Write);
        }
        let own = std::thread::current().id();
        state.threads.retain(|thread| *thread != own);
        drop(state);
        self.changed.notify_all();
    }

    /// Drops the waiting questions and reads, waits until `end` for the writes, and drops what is
    /// left. Calls that are in flight then run on until the store returns.
    pub(super) fn close(&self, end: Instant) {
        let mut state = self.state.lock();
        state.is_closed = true;
        let dropped = (
            std::mem::take(&mut state.asks),
            std::mem::take(&mut state.reads),
        );
        drop(state);
        drop(dropped);
        self.changed.notify_all();
        let mut state = self.state.lock();
        // A thread of the tier cannot wait for itself.
        let own = std::thread::current().id();
        let others = |state: &ThreadsState| state.threads.iter().any(|thread| *thread != own);
        while others(&state) {
            let left = end.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                break;
            }
            self.changed.wait_for(&mut state, left);
        }
        let left = std::mem::take(&mut state.writes);
        drop(state);
        drop(left);
        self.changed.notify_all();
    }
}

fn run(job: StoreCallJob) {
    if catch_unwind(AssertUnwindSafe(job)).is_err() {
        log::error!("a call of a shared store panicked; its blocks are lost; the tier goes on");
    }
}
