//! How a manager is set up.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering},
};

use super::{TransferManager, ledger::Ledger, worker::Worker};

/// Transfers that wait at most, unless something else is said.
const QUEUE_CAPACITY: usize = 1024;

/// Builds a [`TransferManager`].
#[derive(Clone, Debug)]
#[must_use = "a builder builds nothing until it is told to"]
pub struct TransferManagerBuilder {
    queue_capacity: usize,
}

impl Default for TransferManagerBuilder {
    fn default() -> Self {
        TransferManagerBuilder {
            queue_capacity: QUEUE_CAPACITY,
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

    /// A manager without layouts. Its thread starts with the first transfer that needs one.
    #[must_use]
    pub fn build(self) -> TransferManager {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        TransferManager {
            ledger: Arc::new(Mutex::new(Ledger::new(id))),
            worker: Worker::new(self.queue_capacity),
        }
    }
}
