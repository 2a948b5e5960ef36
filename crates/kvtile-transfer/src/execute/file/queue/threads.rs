//! The queue over threads, each of which blocks in one read or write at a time.

use std::{collections::VecDeque, sync::Arc, thread::JoinHandle};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::{FileCompletion, FileOperation, perform};

/// Maximum number of threads. They block in I/O, so more threads than cores are no load.
const THREADS_MAX: usize = 8;

#[derive(Default)]
pub(super) struct ThreadQueue {
    shared: Arc<ThreadQueueShared>,
    threads: Vec<JoinHandle<()>>,
    in_flight: usize,
}

#[derive(Default)]
struct ThreadQueueShared {
    state: Mutex<ThreadQueueState>,
    /// Signals a new operation, or the closing of the queue.
    work: Condvar,
    /// Signals a completion.
    progress: Condvar,
}

#[derive(Default)]
struct ThreadQueueState {
    jobs: VecDeque<FileOperation>,
    done: VecDeque<FileCompletion>,
    idle: usize,
    is_closed: bool,
}

// SAFETY: an operation is numbers and addresses; its submitter guarantees that the bytes and spans
// may be used from another thread.
unsafe impl Send for FileOperation {}

impl ThreadQueueShared {
    fn lock(&self) -> MutexGuard<'_, ThreadQueueState> {
        // No holder of the lock panics, and no invariant spans two changes.
        self.state.lock()
    }

    /// The loop of a thread, until the queue is closed.
    fn work(&self) {
        let mut state = self.lock();
        loop {
            if let Some(operation) = state.jobs.pop_front() {
                drop(state);
                // SAFETY: the caller of `submit` gave the guarantee, which lasts until the
                // completion is taken, and the completion is made only after this call.
                let result = unsafe { perform(operation) };
                state = self.lock();
                let token = operation.token;
                state.done.push_back(FileCompletion { token, result });
                self.progress.notify_one();
            } else if state.is_closed {
                return;
            } else {
                state.idle += 1;
                self.work.wait(&mut state);
                state.idle -= 1;
            }
        }
    }
}

impl ThreadQueue {
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// # Safety
    /// As for [`super::FileQueue::submit`].
    pub(super) unsafe fn submit(&mut self, operation: FileOperation) {
        self.in_flight += 1;
        let mut state = self.shared.lock();
        state.jobs.push_back(operation);
        let is_short_of_threads = state.idle < state.jobs.len();
        drop(state);
        self.shared.work.notify_one();
        if is_short_of_threads && self.threads.len() < THREADS_MAX {
            let shared = Arc::clone(&self.shared);
            let thread = std::thread::Builder::new().name("kvtile-file".to_owned());
            // Without any thread, `next` executes the operations itself.
            if let Ok(thread) = thread.spawn(move || shared.work()) {
                self.threads.push(thread);
            }
        }
    }

    /// Takes a completion without waiting.
    pub(super) fn ready(&mut self) -> Option<FileCompletion> {
        let completion = self.shared.lock().done.pop_front()?;
        self.in_flight -= 1;
        Some(completion)
    }

    /// Waits for any completion; `None` if nothing is in flight.
    pub(super) fn next(&mut self) -> Option<FileCompletion> {
        if self.in_flight == 0 {
            return None;
        }
        let mut state = self.shared.lock();
        loop {
            if let Some(completion) = state.done.pop_front() {
                self.in_flight -= 1;
                return Some(completion);
            }
            if self.threads.is_empty() {
                let operation = state.jobs.pop_front()?;
                drop(state);
                self.in_flight -= 1;
                let token = operation.token;
                // SAFETY: the guarantee of `submit` lasts until its completion is taken, here.
                let result = unsafe { perform(operation) };
                return Some(FileCompletion { token, result });
            }
            self.shared.progress.wait(&mut state);
        }
    }
}

impl Drop for ThreadQueue {
    fn drop(&mut self) {
        while self.next().is_some() {}
        self.shared.lock().is_closed = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // The result carries no information: the thread's code cannot panic.
            let _ = thread.join();
        }
    }
}
