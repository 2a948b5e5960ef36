//! How a manager is set up.

use super::TransferManager;
use crate::execute::{Lanes, usual_copy_threads};

/// Transfers that wait for a lane at most, unless something else is said.
const QUEUE_CAPACITY: usize = 1024;

/// Builds a [`TransferManager`].
#[derive(Clone, Debug)]
#[must_use = "a builder builds nothing until it is told to"]
pub struct TransferManagerBuilder {
    queue_capacity: usize,
    copy_threads: usize,
}

impl Default for TransferManagerBuilder {
    fn default() -> Self {
        TransferManagerBuilder {
            queue_capacity: QUEUE_CAPACITY,
            copy_threads: usual_copy_threads(),
        }
    }
}

impl TransferManagerBuilder {
    /// How many transfers wait for a thread at most (default 1024). Transfers between memories have a thread
    /// and a queue, and those from and to files have others. While so many wait,
    /// [`execute_transfer`](TransferManager::execute_transfer) waits for a place, holding its
    /// leases; with 0 it waits until the thread takes its transfer. Small transfers between
    /// memories run on the caller's thread and do not wait.
    pub fn queue_capacity(mut self, transfers: usize) -> TransferManagerBuilder {
        self.queue_capacity = transfers;
        self
    }

    /// How many threads share one copy between memories at most (default: half of the processors
    /// that the process may use, at least 1 and at most 8). Small copies stay on one thread,
    /// whatever is set; 0 counts as 1. The threads start with the first copy that is worth them and
    /// sleep between copies.
    pub fn copy_threads(mut self, threads: usize) -> TransferManagerBuilder {
        self.copy_threads = threads;
        self
    }

    /// A manager without layouts. Its threads start with the first transfers that need them.
    #[must_use]
    pub fn build(self) -> TransferManager {
        TransferManager::over(Lanes::new(self.copy_threads, self.queue_capacity))
    }
}
