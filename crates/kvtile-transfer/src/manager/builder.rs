//! The builder of a transfer manager.

use super::TransferManager;
use crate::execute::{LaneThreads, Lanes, usual_copy_threads};

/// Default maximum number of transfers that wait for a lane.
const QUEUE_CAPACITY: usize = 1024;

/// Default number of file transfers that run concurrently. Each keeps staging memory. One transfer
/// alone has up to 16 MiB in flight, which is enough for most devices.
const FILE_TRANSFERS: usize = 4;

/// Builds a [`TransferManager`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build` is called"]
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
    /// Sets the maximum number of transfers that wait for a thread (default 1024). Transfers
    /// between memories have a thread and a queue of their own and run one at a time; file
    /// transfers have other threads and another queue. While the queue is full,
    /// [`execute_transfer`](TransferManager::execute_transfer) blocks and keeps its leases. With a
    /// capacity of 0 it blocks until a thread is free. Small transfers between memories run on the
    /// caller's thread and never wait.
    pub fn queue_capacity(mut self, transfers: usize) -> TransferManagerBuilder {
        self.queue_capacity = transfers;
        self
    }

    /// Sets the maximum number of threads that share one copy between memories. The default is half
    /// of the processors that the process may use, at least 1 and at most 8; 0 counts as 1. Small
    /// copies always use one thread. The threads start with the first large copy and sleep between
    /// copies.
    pub fn copy_threads(mut self, threads: usize) -> TransferManagerBuilder {
        self.threads.copy = threads;
        self
    }

    /// Sets the maximum number of file transfers that run concurrently (default 4); 0 counts as 1.
    /// That many slow transfers block the next one. Each running transfer uses up to 32 MiB of
    /// staging memory. A thread starts when a transfer finds all other threads busy.
    ///
    /// With 1, file transfers run in the order of their starts. With more, their order is
    /// undefined; only leases exclude conflicts. The manager refuses a transfer that conflicts with
    /// one in flight ([`BlockLeased`](crate::LeaseError::BlockLeased)), unless both only read
    /// the common bytes. So of two concurrent transfers, neither writes a byte that the other reads
    /// or writes. To order two transfers, wait for the completion of the first.
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
