//! The thread that long transfers run on, and the queue in front of it.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex, OnceLock, PoisonError,
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
    thread::JoinHandle,
};

use super::job::Job;
use crate::error::TransferError;

/// A thread that runs transfers in order, started by the first. Dropping it waits for those that it
/// has.
pub(super) struct Worker {
    capacity: usize,
    running: OnceLock<Running>,
    /// Held while the thread is started, which can fail.
    starting: Mutex<()>,
}

struct Running {
    jobs: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// A thread for which at most `capacity` transfers wait.
    pub(super) fn new(capacity: usize) -> Worker {
        Worker {
            capacity,
            running: OnceLock::new(),
            starting: Mutex::new(()),
        }
    }

    /// Sees to it that there is a thread.
    pub(super) fn start(&self) -> Result<(), TransferError> {
        if self.running.get().is_some() {
            return Ok(());
        }
        let starting = self.starting.lock().unwrap_or_else(PoisonError::into_inner);
        if self.running.get().is_none() {
            // Nobody else is here, so nobody else has set it.
            let _ = self.running.set(Running::start(self.capacity)?);
        }
        drop(starting);
        Ok(())
    }

    /// Queues a transfer, and waits while the queue is full. It runs here where there is no thread
    /// to wait for: where it never started, or is the caller (a waker that starts a transfer).
    pub(super) fn run(&self, job: Job) {
        let running = self.running.get();
        let Some((jobs, thread)) = running.and_then(|r| r.jobs.as_ref().zip(r.thread.as_ref()))
        else {
            return job.run();
        };
        let refused = match jobs.try_send(job) {
            Ok(()) => None,
            Err(TrySendError::Full(job)) if thread.thread().id() != std::thread::current().id() => {
                jobs.send(job).err().map(|refused| refused.0)
            }
            Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) => Some(job),
        };
        if let Some(job) = refused {
            job.run();
        }
    }
}

impl Running {
    fn start(capacity: usize) -> Result<Running, TransferError> {
        let (jobs, queue) = sync_channel::<Job>(capacity);
        let thread = std::thread::Builder::new()
            .name("kvtile-transfer".to_owned())
            .spawn(move || {
                for job in queue {
                    // Jobs tell their completions of panics; the next job must run all the same.
                    let _ = catch_unwind(AssertUnwindSafe(|| job.run()));
                }
            })
            .map_err(|error| TransferError::NoThread {
                problem: error.to_string(),
            })?;
        Ok(Running {
            jobs: Some(jobs),
            thread: Some(thread),
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.jobs = None;
        let Some(thread) = self.thread.take() else {
            return;
        };
        if thread.thread().id() != std::thread::current().id() {
            // Jobs catch their panics, so there is nothing to learn from the result.
            let _ = thread.join();
        }
    }
}
