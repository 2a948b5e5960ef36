//! How a manager is set up.

use super::TransferManager;
use crate::execute::{LaneThreads, Lanes, usual_copy_threads};

/// Transfers that wait for a lane at most, unless something else is said.
const QUEUE_CAPACITY: usize = 1024;

/// Transfers from and to files that move at the same time, unless something else is said: staging memory is
/// kept for as many, and one transfer alone has up to 16 MiB in flight, which most devices take.
const FILE_TRANSFERS: usize = 4;

/// Builds a [`TransferManager`].
#[derive(Clone, Debug)]
#[must_use = "a builder builds nothing until it is told to"]
pub struct TransferManagerBuilder {
    queue_capacity: usize,
    threads: LaneThreads,
}

impl Default for TransferManagerBuilder {
    fn default() -> Self {
        TransferManagerBuilder {
            queue_capacity: QUEUE_CAPACITY,
            threads: LaneThreads {
                copy: usual_copy_threads(),
                file: FILE_TRANSFERS,
            },
        }
    }
}

impl TransferManagerBuilder {
    /// How many transfers wait for a thread at most (default 1024). Transfers between memories have a thread
    /// and a queue, and those from and to files have others. While so many wait,
    /// [`execute_transfer`](TransferManager::execute_transfer) waits for a place, holding its
    /// leases; with 0 it waits until a thread is free. Small transfers between memories run on the caller's
    /// thread and do not wait.
    pub fn queue_capacity(mut self, transfers: usize) -> TransferManagerBuilder {
        self.queue_capacity = transfers;
        self
    }

    /// How many threads share one copy between memories at most (default: half of the processors
    /// that the process may use, at least 1 and at most 8). Small copies stay on one thread,
    /// whatever is set; 0 counts as 1. The threads start with the first copy that is worth them and
    /// sleep between copies.
    pub fn copy_threads(mut self, threads: usize) -> TransferManagerBuilder {
        self.threads.copy = threads;
        self
    }

    /// How many transfers from and to files move at the same time at most (default 4); 0 counts as 1. So many
    /// slow ones stand before the next one. Each takes up to 32 MiB of staging memory while it moves, and its
    /// thread starts with the first transfer that finds all others busy.
    ///
    /// With 1, such transfers move in the order of their starts. With more, their order is not defined: leases
    /// alone decide. While a transfer is in flight, one that needs the same bytes is refused
    /// ([`BlockLeased`](crate::TransferError::BlockLeased)), unless both only read them; so two transfers
    /// that are in flight together never write a byte that the other reads or writes. To have one come after another, wait
    /// for the completion of the first.
    pub fn file_transfers(mut self, transfers: usize) -> TransferManagerBuilder {
        self.threads.file = transfers;
        self
    }

    /// A manager without layouts. Its threads start with the first transfers that need them.
    #[must_use]
    pub fn build(self) -> TransferManager {
        TransferManager::over(Lanes::new(self.threads, self.queue_capacity))
    }
}
