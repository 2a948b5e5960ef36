//! Single flight: of all loads that need a block, one reads it.

use std::collections::HashSet;

use kvtile_blocks::BlockKey;
use parking_lot::{Condvar, Mutex, MutexGuard};

/// The blocks that are being read into host memory.
#[derive(Default)]
pub(super) struct BlockFlights {
    keys: Mutex<HashSet<BlockKey>>,
    landed: Condvar,
}

/// The right to read a block; other loads of it wait until this is dropped.
pub(super) struct BlockFlight<'a> {
    flights: &'a BlockFlights,
    key: BlockKey,
}

impl BlockFlights {
    fn lock(&self) -> MutexGuard<'_, HashSet<BlockKey>> {
        self.keys.lock()
    }

    /// Waits until no other load reads the block, and takes its flight. Callers take flights in the
    /// order of positions, so that loads cannot deadlock.
    pub(super) fn board(&self, key: BlockKey) -> BlockFlight<'_> {
        let mut keys = self.lock();
        while !keys.insert(key) {
            self.landed.wait(&mut keys);
        }
        drop(keys);
        BlockFlight { flights: self, key }
    }
}

impl Drop for BlockFlight<'_> {
    fn drop(&mut self) {
        self.flights.lock().remove(&self.key);
        self.flights.landed.notify_all();
    }
}
