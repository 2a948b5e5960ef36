//! The worker threads of a disk tier, with their job queue.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread::JoinHandle,
};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::error::TierError;

type DiskJob = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct DiskJobState {
    waiting: VecDeque<DiskJob>,
    is_closed: bool,
}

#[derive(Default)]
struct DiskJobQueue {
    state: Mutex<DiskJobState>,
    changed: Condvar,
}

impl DiskJobQueue {
    fn lock(&self) -> MutexGuard<'_, DiskJobState> {
        self.state.lock()
    }

    /// Waits for the next job; `None` once the queue is closed.
    fn next(&self) -> Option<DiskJob> {
        let mut state = self.lock();
        loop {
            if state.is_closed {
                return None;
            }
            if let Some(work) = state.waiting.pop_front() {
                return Some(work);
            }
            self.changed.wait(&mut state);
        }
    }
}

/// A pool of worker threads. Without threads, [`DiskThreads::run`] executes each job in place. Dropping
/// the pool drops the jobs that have not begun and waits for those that have.
pub(crate) struct DiskThreads {
    shared: Arc<DiskJobQueue>,
    handles: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for DiskThreads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("DiskThreads")
            .field(&self.handles.len())
            .finish()
    }
}

impl DiskThreads {
    pub(crate) fn new(name: &str, threads: usize) -> Result<DiskThreads, TierError> {
        let mut started = DiskThreads {
            shared: Arc::default(),
            handles: Vec::new(),
        };
        for number in 0..threads {
            let shared = Arc::clone(&started.shared);
            let thread = std::thread::Builder::new().name(format!("{name}-{number}"));
            let serve = move || {
                while let Some(work) = shared.next() {
                    run(work);
                }
            };
            let handle = thread.spawn(serve).map_err(TierError::thread)?;
            started.handles.push(handle);
        }
        Ok(started)
    }

    /// The number of parts that a batch should be split into.
    pub(crate) fn parts(&self) -> usize {
        self.handles.len().max(1)
    }

    /// Queues a job for a worker thread.
    pub(crate) fn run(&self, work: impl FnOnce() + Send + 'static) {
        if self.handles.is_empty() {
            run(Box::new(work));
            return;
        }
        self.shared.lock().waiting.push_back(Box::new(work));
        self.shared.changed.notify_one();
    }
}

/// A job that panics is dropped by the unwinding, which completes its batch.
fn run(work: DiskJob) {
    if catch_unwind(AssertUnwindSafe(work)).is_err() {
        log::error!("a job of the disk tier panicked; this is a defect; the tier stays in use");
    }
}

impl Drop for DiskThreads {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.is_closed = true;
        let left = std::mem::take(&mut state.waiting);
        drop(state);
        self.shared.changed.notify_all();
        drop(left);
        for handle in self.handles.drain(..) {
            // The worker caught and logged each panic of a job.
            let _ = handle.join();
        }
    }
}
