//! A queue of finished jobs, with a file descriptor that is readable while it is not empty.

use std::{
    collections::VecDeque,
    future::Future,
    os::fd::{AsFd, BorrowedFd},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
};

use kvtile_transfer::completion::Completion;
use parking_lot::Mutex;
use rustix::{
    fd::OwnedFd,
    io::{Errno, read, write},
};

use super::BlockOutcomes;
use crate::error::TierError;

/// A finished job: the caller's number of it, and its outcomes.
pub type FinishedJob = (u64, BlockOutcomes);

/// Finished jobs in the order in which they ended. Each job is in the queue exactly once.
#[derive(Clone, Debug)]
pub struct FinishedJobs {
    shared: Arc<FinishedShared>,
}

#[derive(Debug)]
struct FinishedShared {
    jobs: Mutex<VecDeque<FinishedJob>>,
    signal: ReadySignal,
}

/// The file descriptor: an eventfd on Linux, a socket pair elsewhere.
#[derive(Debug)]
struct ReadySignal {
    reader: OwnedFd,
    /// `None` if the reader is also written.
    writer: Option<OwnedFd>,
}

impl ReadySignal {
    #[cfg(target_os = "linux")]
    fn new() -> std::io::Result<ReadySignal> {
        use rustix::event::{EventfdFlags, eventfd};
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(ReadySignal {
            reader: eventfd(0, flags)?,
            writer: None,
        })
    }

    #[cfg(not(target_os = "linux"))]
    fn new() -> std::io::Result<ReadySignal> {
        let (reader, writer) = std::os::unix::net::UnixStream::pair()?;
        reader.set_nonblocking(true)?;
        writer.set_nonblocking(true)?;
        Ok(ReadySignal {
            reader: reader.into(),
            writer: Some(writer.into()),
        })
    }

    /// Makes the descriptor readable. A full descriptor is readable already.
    fn set(&self) {
        let writer = self.writer.as_ref().unwrap_or(&self.reader);
        retry(|| write(writer, &1_u64.to_ne_bytes()));
    }

    /// Makes the descriptor unreadable.
    fn clear(&self) {
        let mut bytes = [0; 64];
        while retry(|| read(&self.reader, &mut bytes)) == Some(bytes.len()) {}
    }
}

/// The result of a call, repeated while signals interrupt it; `None` if it would block.
fn retry(mut call: impl FnMut() -> Result<usize, Errno>) -> Option<usize> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result.ok(),
        }
    }
}

/// A job whose end puts it into the queue.
struct WatchedJob {
    job: u64,
    /// `None` once the job is in the queue.
    completion: Mutex<Option<Completion<BlockOutcomes>>>,
    shared: Arc<FinishedShared>,
}

impl WatchedJob {
    fn poll(self: &Arc<Self>) {
        let waker = Waker::from(Arc::clone(self));
        let mut completion = self.completion.lock();
        let Some(pending) = completion.as_mut() else {
            return;
        };
        if let Poll::Ready(end) = Pin::new(pending).poll(&mut Context::from_waker(&waker)) {
            let ended = completion.take();
            drop(completion);
            drop(ended);
            self.shared.push((self.job, end));
        }
    }
}

impl Wake for WatchedJob {
    fn wake(self: Arc<Self>) {
        self.poll();
    }
}

impl FinishedShared {
    fn push(&self, job: FinishedJob) {
        let mut jobs = self.jobs.lock();
        jobs.push_back(job);
        // Under the lock, so that `take` cannot clear the signal of a job that it leaves.
        self.signal.set();
    }
}

impl FinishedJobs {
    /// An empty queue.
    ///
    /// # Errors
    /// The system has no file descriptor left.
    pub fn new() -> Result<FinishedJobs, TierError> {
        let signal = ReadySignal::new();
        let signal = signal.map_err(|error| {
            TierError::file("open", "the descriptor of finished jobs".to_owned(), error)
        })?;
        Ok(FinishedJobs {
            shared: Arc::new(FinishedShared {
                jobs: Mutex::default(),
                signal,
            }),
        })
    }

    /// Adds a job. It enters the queue as soon as it ends, with the number `job`.
    pub fn watch(&self, job: u64, completion: Completion<BlockOutcomes>) {
        let watched = WatchedJob {
            job,
            completion: Mutex::new(Some(completion)),
            shared: Arc::clone(&self.shared),
        };
        Arc::new(watched).poll();
    }

    /// Takes all jobs that have ended. It never blocks.
    #[must_use]
    pub fn take(&self) -> Vec<FinishedJob> {
        let mut jobs = self.shared.jobs.lock();
        self.shared.signal.clear();
        jobs.drain(..).collect()
    }

    /// Whether jobs that have ended wait in the queue.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.shared.jobs.lock().is_empty()
    }
}

impl AsFd for FinishedJobs {
    /// A descriptor that is readable while finished jobs wait. Only [`FinishedJobs::take`] makes it
    /// unreadable again; a caller that reads from it loses the signal, and no job.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.signal.reader.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kvtile_transfer::completion::Completer;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;
    use crate::block_store::BlockOutcome;

    fn is_readable(jobs: &FinishedJobs) -> bool {
        let mut fds = [PollFd::new(jobs, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).unwrap() == 1
    }

    fn outcomes() -> BlockOutcomes {
        BlockOutcomes::all(2, &BlockOutcome::Done, Duration::ZERO)
    }

    #[test]
    fn each_job_is_in_the_queue_once_and_the_descriptor_is_readable_until_then() {
        let jobs = FinishedJobs::new().unwrap();
        let completer = Completer::new(0, 0);
        jobs.watch(7, completer.completion());
        assert!(jobs.is_empty() && !is_readable(&jobs));
        jobs.watch(8, Completion::ended(0, outcomes()));
        completer.finish(outcomes());
        completer.finish(outcomes());
        assert!(is_readable(&jobs));
        let numbers: Vec<u64> = jobs.take().into_iter().map(|(job, _)| job).collect();
        assert_eq!(numbers, [8, 7]);
        assert!(jobs.take().is_empty() && !is_readable(&jobs));
    }

    #[test]
    fn jobs_that_end_on_many_threads_are_all_taken() {
        let jobs = FinishedJobs::new().unwrap();
        let completers: Vec<Completer<BlockOutcomes>> =
            (0..400).map(|_| Completer::new(0, 0)).collect();
        for (completer, job) in completers.iter().zip(0..) {
            jobs.watch(job, completer.completion());
        }
        let mut taken = Vec::new();
        std::thread::scope(|scope| {
            for part in completers.chunks(100) {
                scope.spawn(move || {
                    part.iter()
                        .for_each(|completer| completer.finish(outcomes()));
                });
            }
            while taken.len() < 400 {
                taken.extend(jobs.take().into_iter().map(|(job, _)| job));
            }
        });
        taken.sort_unstable();
        assert_eq!(taken, (0..400).collect::<Vec<u64>>());
        assert!(!is_readable(&jobs));
    }
}
