//! Queues of reads and writes: several are in flight while the caller does other work.
//!
//! Two implementations, one meaning: an io_uring, and threads that read and write one piece each
//! where the kernel has no io_uring or forbids it. A queue does what one system call does: a
//! transfer may end short or fail, and whoever waits for it decides what then. It knows neither
//! plans nor staging.

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

/// Most operations in flight at once.
pub(super) const CAPACITY: usize = 32;

/// What an operation does with the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Read,
    Write,
}

/// A stretch of memory. The kernel reads several of them in an array as `iovec`, which has these two
/// fields in this order.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Span {
    pub(super) address: *mut u8,
    pub(super) bytes: usize,
}

/// The memory of an operation.
#[derive(Clone, Copy, Debug)]
pub(super) enum OperationMemory {
    /// One stretch.
    One(Span),
    /// Several, one behind the other in the file; at most [`SPANS_MAX`].
    Many { first: *const Span, count: usize },
}

/// Most stretches of one operation: what Linux takes in one system call (`UIO_MAXIOV`).
pub(super) const SPANS_MAX: usize = 1024;

/// One read or write.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operation {
    pub(super) direction: Direction,
    pub(super) fd: RawFd,
    pub(super) offset: u64,
    pub(super) memory: OperationMemory,
    /// Comes back with the completion.
    pub(super) token: u64,
}

/// What became of an operation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Completion {
    pub(super) token: u64,
    /// Bytes read or written.
    pub(super) result: Result<usize, Errno>,
}

/// Which queue is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FileWay {
    /// An io_uring where there is one, threads elsewhere.
    #[default]
    Best,
    /// Threads, whatever the kernel has.
    Threads,
}

/// How files are read and written on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileIo {
    /// Through an io_uring.
    IoUring,
    /// By threads that wait for one transfer each.
    Threads {
        /// Why not through an io_uring, and what to change.
        reason: String,
    },
}

impl FileIo {
    /// What a way comes to on this machine now.
    #[must_use]
    pub fn of(way: FileWay) -> FileIo {
        match way {
            FileWay::Best => FileIo::probe(),
            FileWay::Threads => FileIo::Threads {
                reason: "the settings ask for threads".to_owned(),
            },
        }
    }

    /// Tries what a transfer would do now.
    #[must_use]
    pub fn probe() -> FileIo {
        let Err(errno) = UringQueue::new() else {
            return FileIo::IoUring;
        };
        let reason = match IoUring::probe() {
            IoUring::Unavailable { reason } => reason,
            _ => format!("an io_uring can be had, but does not work: {errno}"),
        };
        FileIo::Threads { reason }
    }
}

/// Reads and writes in flight.
pub(super) struct FileQueue(Kind);

enum Kind {
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
            Some(ring) => Kind::Uring(Box::new(ring)),
            None => Kind::Threads(ThreadQueue::default()),
        })
    }

    /// Operations whose completion was not taken yet.
    pub(super) fn in_flight(&self) -> usize {
        match &self.0 {
            Kind::Uring(queue) => queue.in_flight(),
            Kind::Threads(queue) => queue.in_flight(),
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.in_flight() < CAPACITY
    }

    /// Whether it can be used for another transfer.
    pub(super) fn is_sound(&self) -> bool {
        match &self.0 {
            Kind::Uring(queue) => queue.is_sound(),
            Kind::Threads(_) => true,
        }
    }

    /// Puts `operation` in flight, which needs room; [`FileQueue::flush`] makes sure that it
    /// starts.
    ///
    /// # Safety
    /// Until its completion was taken, or the queue was drained or dropped: the descriptor stays
    /// open, the bytes and an array of spans stay mapped and initialised, nobody else writes them,
    /// and nobody else reads the bytes of a read.
    pub(super) unsafe fn submit(&mut self, operation: Operation) {
        match &mut self.0 {
            Kind::Uring(queue) => {
                // SAFETY: passed on to the caller.
                unsafe { queue.submit(operation) }
            }
            Kind::Threads(queue) => {
                // SAFETY: passed on to the caller.
                unsafe { queue.submit(operation) }
            }
        }
    }

    /// Starts everything that was submitted.
    pub(super) fn flush(&mut self) {
        if let Kind::Uring(queue) = &mut self.0 {
            queue.flush();
        }
    }

    /// Waits for any completion; `None` if nothing is in flight.
    pub(super) fn next(&mut self) -> Option<Completion> {
        match &mut self.0 {
            Kind::Uring(queue) => queue.next(),
            Kind::Threads(queue) => queue.next(),
        }
    }

    /// A completion that is there already.
    pub(super) fn ready(&mut self) -> Option<Completion> {
        match &mut self.0 {
            Kind::Uring(queue) => queue.ready(),
            Kind::Threads(queue) => queue.ready(),
        }
    }

    /// Waits until nothing is in flight.
    pub(super) fn drain(&mut self) {
        while self.next().is_some() {}
    }
}
