//! Single flight: of all loads that need a block, one reads it.

use std::{
    collections::HashSet,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

use kvtile_blocks::BlockKey;

/// The blocks that are being read into host memory.
#[derive(Default)]
pub(super) struct Flights {
    keys: Mutex<HashSet<BlockKey>>,
    landed: Condvar,
}

/// The right to read a block; other loads of it wait until this is dropped.
pub(super) struct Flight<'a> {
    flights: &'a Flights,
    key: BlockKey,
}

impl Flights {
    fn lock(&self) -> MutexGuard<'_, HashSet<BlockKey>> {
        // Nothing that holds the lock can leave it half changed.
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no other load reads the block, and takes its flight. Callers take flights in the
    /// order of positions, so that loads cannot deadlock.
    pub(super) fn board(&self, key: BlockKey) -> Flight<'_> {
        let mut keys = self.lock();
        while !keys.insert(key) {
            let waited = self.landed.wait(keys);
            keys = waited.unwrap_or_else(PoisonError::into_inner);
        }
        drop(keys);
        Flight { flights: self, key }
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.flights.lock().remove(&self.key);
        self.flights.landed.notify_all();
    }
}
