//! The thread that long transfers run on.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc::{Sender, channel},
    thread::JoinHandle,
};

use crate::error::TransferError;

type Job = Box<dyn FnOnce() + Send>;

/// A thread that runs jobs in order. Dropping it waits for the jobs it has.
pub(super) struct Worker {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    pub(super) fn start() -> Result<Worker, TransferError> {
        let (jobs, queue) = channel::<Job>();
        let thread = std::thread::Builder::new()
            .name("kvtile-transfer".to_owned())
            .spawn(move || {
                for job in queue {
                    // Jobs tell their completions of panics; the next job must run all the same.
                    let _ = catch_unwind(AssertUnwindSafe(job));
                }
            })
            .map_err(|error| TransferError::NoThread {
                problem: error.to_string(),
            })?;
        Ok(Worker {
            jobs: Some(jobs),
            thread: Some(thread),
        })
    }

    /// Queues a job; runs it here if the thread is gone.
    pub(super) fn run(&self, job: Job) {
        match &self.jobs {
            Some(jobs) => {
                if let Err(refused) = jobs.send(job) {
                    (refused.0)();
                }
            }
            None => job(),
        }
    }
}

impl Drop for Worker {
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
