//! Stores in flight, so that a store waits for the older store of its ancestors.
//!
//! An engine stores a long prompt in pieces, as it computes them, and several worker threads take
//! the pieces from the queue. The cache does not keep a piece whose ancestors are in no tier, so a
//! piece that runs early is parked until the piece before it has ended. A store waits only for
//! older stores, so stores cannot deadlock.

use std::sync::Arc;

use kvtile_blocks::BlockKey;
use parking_lot::{Mutex, MutexGuard};

/// A store in flight.
struct StoreInFlight<J> {
    number: u64,
    keys: Arc<[BlockKey]>,
    /// Jobs parked until the store ends.
    parked: Vec<J>,
}

struct StoresState<J> {
    next: u64,
    /// Oldest first.
    entries: Vec<StoreInFlight<J>>,
}

/// The stores in flight, and the jobs that wait for them.
pub(super) struct StoresInFlight<J>(Mutex<StoresState<J>>);

impl<J> Default for StoresInFlight<J> {
    fn default() -> StoresInFlight<J> {
        StoresInFlight(Mutex::new(StoresState {
            next: 0,
            entries: Vec::new(),
        }))
    }
}

impl<J> StoresInFlight<J> {
    fn lock(&self) -> MutexGuard<'_, StoresState<J>> {
        self.0.lock()
    }

    /// Begins a store of these keys. [`StoresInFlight::leave`] must follow.
    pub(super) fn enter(&self, keys: Arc<[BlockKey]>) -> u64 {
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        state.entries.push(StoreInFlight {
            number,
            keys,
            parked: Vec::new(),
        });
        number
    }

    /// Parks the job of store `number` until the newest older store of `key` ends. It calls `job`
    /// only if there is such a store.
    pub(super) fn park(&self, number: u64, key: &BlockKey, job: impl FnOnce() -> Option<J>) {
        let mut state = self.lock();
        let older = state
            .entries
            .iter_mut()
            .filter(|entry| entry.number < number);
        if let Some(entry) = older.rev().find(|entry| entry.keys.contains(key)) {
            entry.parked.extend(job());
        }
    }

    /// Ends a store. Returns the jobs that waited for it.
    pub(super) fn leave(&self, number: u64) -> Vec<J> {
        let mut state = self.lock();
        let at = state
            .entries
            .iter()
            .position(|entry| entry.number == number);
        at.map_or_else(Vec::new, |at| state.entries.remove(at).parked)
    }

    /// Ends all stores. Returns the jobs that waited for them.
    pub(super) fn close(&self) -> Vec<J> {
        let entries = std::mem::take(&mut self.lock().entries);
        entries.into_iter().flat_map(|entry| entry.parked).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(numbers: std::ops::Range<u8>) -> Arc<[BlockKey]> {
        numbers
            .map(|number| BlockKey::from_bytes([number; 16]))
            .collect()
    }

    #[test]
    fn only_older_stores_are_waited_for_and_the_newest_of_them() {
        let chains = StoresInFlight::default();
        let first = chains.enter(keys(0..4));
        let again = chains.enter(keys(2..4));
        let second = chains.enter(keys(4..8));
        let parent = keys(3..4)[0];
        let park = |number, key: &BlockKey, job| {
            let mut is_parked = false;
            chains.park(number, key, || {
                is_parked = true;
                Some(job)
            });
            is_parked
        };
        assert!(park(second, &parent, "second"));
        assert!(!park(first, &keys(5..6)[0], "first"));
        assert!(!park(second, &keys(9..10)[0], "second"));
        assert!(chains.leave(first).is_empty());
        assert_eq!(chains.leave(again), ["second"]);
        assert!(chains.leave(again).is_empty());
        let third = chains.enter(keys(8..9));
        assert!(park(third, &keys(7..8)[0], "third"));
        assert_eq!(chains.close(), ["third"]);
        assert!(chains.leave(second).is_empty());
    }
}
