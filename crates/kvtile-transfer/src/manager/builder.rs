//! How a manager is set up.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering},
};

use super::{TransferManager, ledger::Ledger, worker::Worker};
use crate::execute::Executor;

/// Transfers that wait at most, unless something else is said.
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
            copy_threads: Executor::usual_threads(),
        }
    }
}

impl TransferManagerBuilder {
    /// How many transfers wait for the manager's thread at most (default 1024). While so many do,
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

    /// A manager without layouts. Its thread starts with the first transfer that needs one.
    #[must_use]
    pub fn build(self) -> TransferManager {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        TransferManager {
            ledger: Arc::new(Mutex::new(Ledger::new(id))),
            executor: Arc::new(Executor::new(self.copy_threads)),
            worker: Worker::new(self.queue_capacity),
        }
    }
}
