//! One flight a block: who moves a block does so for all who want it.

use std::{
    collections::HashSet,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

use kvtile_blocks::BlockKey;

/// The blocks that are on their way to one tier.
#[derive(Default)]
pub(super) struct Flights {
    keys: Mutex<HashSet<BlockKey>>,
    landed: Condvar,
}

/// A block that its holder brings; others wait until this is dropped.
pub(super) struct Flight<'a> {
    flights: &'a Flights,
    key: BlockKey,
}

impl Flights {
    fn lock(&self) -> MutexGuard<'_, HashSet<BlockKey>> {
        // Nothing that holds the lock can leave it half changed.
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a flight, once nobody else brings the block. Whoever waits here holds no flight, so
    /// that two never wait for each other.
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
