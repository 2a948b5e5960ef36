//! Queues of reads and writes: several operations are in flight while the caller does other work.
//!
//! There are two implementations with the same semantics: an io_uring, and a pool of threads with
//! blocking calls where the kernel has no io_uring or forbids it. An operation behaves like one
//! system call: it may end short or fail, and its waiter decides how to continue. A queue knows
//! neither plans nor staging.

mod blocking;
mod threads;
mod uring;

#[cfg(test)]
mod tests;

use std::os::fd::RawFd;

use kvtile_memory::machine::IoUring;
use rustix::io::Errno;
use threads::ThreadQueue;
use uring::UringQueue;

pub(super) use blocking::perform;

/// Maximum number of operations in flight.
pub(super) const CAPACITY: usize = 32;

/// The direction of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IoDirection {
    Read,
    Write,
}

/// A span of memory. The kernel reads an array of spans as `iovec`, which has these two fields in
/// this order.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct MemorySpan {
    pub(super) address: *mut u8,
    pub(super) bytes: usize,
}

/// The memory of an operation.
#[derive(Clone, Copy, Debug)]
pub(super) enum OperationMemory {
    /// One span.
    One(MemorySpan),
    /// Several spans for consecutive bytes of the file; at most [`SPANS_MAX`].
    Many {
        first: *const MemorySpan,
        count: usize,
    },
}

/// Maximum number of spans of one operation: the limit of one Linux system call (`UIO_MAXIOV`).
pub(super) const SPANS_MAX: usize = 1024;

/// One read or write.
#[derive(Clone, Copy, Debug)]
pub(super) struct FileOperation {
    pub(super) direction: IoDirection,
    pub(super) fd: RawFd,
    pub(super) offset: u64,
    pub(super) memory: OperationMemory,
    /// Returned with the completion.
    pub(super) token: u64,
}

/// The result of an operation.
#[derive(Clone, Copy, Debug)]
pub(super) struct FileCompletion {
    pub(super) token: u64,
    /// Bytes read or written.
    pub(super) result: Result<usize, Errno>,
}

/// The requested kind of queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FileWay {
    /// An io_uring where it is available, else threads.
    #[default]
    Best,
    /// Threads, even if io_uring is available.
    Threads,
}

/// The I/O method for files on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileIo {
    /// Through an io_uring.
    IoUring,
    /// Through threads with blocking calls.
    Threads {
        /// Why io_uring is not used, and what to change.
        reason: String,
    },
}

impl FileIo {
    /// The I/O method that `way` selects on this machine now.
    #[must_use]
    pub fn of(way: FileWay) -> FileIo {
        match way {
            FileWay::Best => FileIo::probe(),
            FileWay::Threads => FileIo::Threads {
                reason: "the settings request threads".to_owned(),
            },
        }
    }

    /// Probes the I/O method that a transfer would use now.
    #[must_use]
    pub fn probe() -> FileIo {
        let Err(errno) = UringQueue::new() else {
            return FileIo::IoUring;
        };
        let reason = match IoUring::probe() {
            IoUring::Unavailable { reason } => reason,
            _ => format!("io_uring is available, but does not work: {errno}"),
        };
        FileIo::Threads { reason }
    }
}

/// A queue of reads and writes in flight.
pub(super) struct FileQueue(QueueKind);

enum QueueKind {
    Uring(Box<UringQueue>),
    Threads(ThreadQueue),
}

impl FileQueue {
    pub(super) fn new(way: FileWay) -> FileQueue {
        let ring = match way {
            FileWay::Best => UringQueue::new().ok(),
            FileWay::Threads => None,
        };
        FileQueue(match ring {
            Some(ring) => QueueKind::Uring(Box::new(ring)),
            None => QueueKind::Threads(ThreadQueue::default()),
        })
    }

    /// Number of operations whose completion was not taken.
    pub(super) fn in_flight(&self) -> usize {
        match &self.0 {
            QueueKind::Uring(queue) => queue.in_flight(),
            QueueKind::Threads(queue) => queue.in_flight(),
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.in_flight() < CAPACITY
    }

    /// Whether another transfer can use it.
    pub(super) fn is_sound(&self) -> bool {
        match &self.0 {
            QueueKind::Uring(queue) => queue.is_sound(),
            QueueKind::Threads(_) => true,
        }
    }

    /// Submits `operation`. The queue must have room; [`FileQueue::flush`] guarantees the start.
    ///
    /// # Safety
    /// Until its completion was taken, or the queue was drained or dropped: the descriptor stays
    /// open, the bytes and an array of spans stay mapped and initialised, nothing else writes them,
    /// and nothing else reads the bytes of a read.
    pub(super) unsafe fn submit(&mut self, operation: FileOperation) {
        match &mut self.0 {
            QueueKind::Uring(queue) => {
                // SAFETY: passed on to the caller.
                unsafe { queue.submit(operation) }
            }
            QueueKind::Threads(queue) => {
                // SAFETY: passed on to the caller.
                unsafe { queue.submit(operation) }
            }
        }
    }

    /// Starts all submitted operations.
    pub(super) fn flush(&mut self) {
        if let QueueKind::Uring(queue) = &mut self.0 {
            queue.flush();
        }
    }

    /// Waits for any completion; `None` if nothing is in flight.
    pub(super) fn next(&mut self) -> Option<FileCompletion> {
        match &mut self.0 {
            QueueKind::Uring(queue) => queue.next(),
            QueueKind::Threads(queue) => queue.next(),
        }
    }

    /// Takes a completion without waiting.
    pub(super) fn ready(&mut self) -> Option<FileCompletion> {
        match &mut self.0 {
            QueueKind::Uring(queue) => queue.ready(),
            QueueKind::Threads(queue) => queue.ready(),
        }
    }

    /// Waits until nothing is in flight.
    pub(super) fn drain(&mut self) {
        while self.next().is_some() {}
    }
}
