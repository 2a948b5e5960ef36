//! Departures: blocks evicted from host memory whose write to a tier is in flight. Lookups find
//! them as blocks of that tier, and loads wait until the write ends.
//!
//! A block leaves host memory and enters this list under the list's lock. It leaves the list, under
//! the lock again, only after its write to the tier has ended. So a lookup that holds the lock finds
//! each departing block in at least one place. A lookup takes the lock only after a miss during
//! which blocks moved ([`Departures::mark`]).

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use kvtile_blocks::BlockKey;
use parking_lot::{Condvar, Mutex, MutexGuard};

/// A block whose write to a tier is in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Departure {
    /// Index of its first target tier in the list of tiers.
    pub(super) tier: usize,
    pub(super) parent: Option<BlockKey>,
    pub(super) tenant: u32,
    /// Whether one of its target tiers is durable.
    to_durable: bool,
    /// Number of batches that contain it: the block may be stored and evicted again while a write
    /// is in flight.
    batches: usize,
}

/// The list of departures.
#[derive(Default)]
pub(super) struct Departures {
    blocks: Mutex<HashMap<BlockKey, Departure>>,
    arrived: Condvar,
    /// A seqlock counter: even while no block moves, and larger after each change of the list.
    mark: AtomicU64,
}

/// The locked list: no block leaves host memory or the list while this lives.
pub(super) struct LockedDepartures<'a> {
    blocks: MutexGuard<'a, HashMap<BlockKey, Departure>>,
    of: &'a Departures,
}

impl Departures {
    /// Takes the lock. Its holder may move blocks out of host memory, or out of this list.
    pub(super) fn lock(&self) -> LockedDepartures<'_> {
        let blocks = self.blocks.lock();
        self.set_mark(true);
        LockedDepartures { blocks, of: self }
    }

    /// Advances the mark to the next odd or even value. The caller holds the lock.
    fn set_mark(&self, is_odd: bool) {
        let next = self.mark.load(Ordering::Relaxed) + 1;
        let next = next + u64::from((next % 2 == 1) != is_odd);
        self.mark.store(next, Ordering::SeqCst);
    }

    /// Changes whenever blocks move; odd while blocks move or a write is in flight.
    pub(super) fn mark(&self) -> u64 {
        self.mark.load(Ordering::SeqCst)
    }

    /// Waits until `is_there`, or until the writes of all blocks end, at most `within`. Returns false after a timeout.
    /// It calls `is_there` under the lock, whenever a write has ended.
    pub(super) fn wait(
        &self,
        keys: &[BlockKey],
        within: Duration,
        mut is_there: impl FnMut() -> bool,
    ) -> bool {
        let start = Instant::now();
        let mut blocks = self.blocks.lock();
        while !is_there() && keys.iter().any(|key| blocks.contains_key(key)) {
            let left = within.checked_sub(start.elapsed());
            let Some(left) = left.filter(|left| !left.is_zero()) else {
                return false;
            };
            self.arrived.wait_for(&mut blocks, left);
        }
        true
    }
}

impl LockedDepartures<'_> {
    /// Adds a block that leaves host memory for a tier.
    pub(super) fn depart(
        &mut self,
        key: BlockKey,
        (tier, is_durable): (usize, bool),
        (parent, tenant): (Option<BlockKey>, u32),
    ) {
        let entry = self.blocks.entry(key).or_insert(Departure {
            tier,
            parent,
            tenant,
            to_durable: false,
            batches: 0,
        });
        entry.to_durable |= is_durable;
        entry.batches += 1;
    }

    /// Ends the writes of blocks, successful or not.
    pub(super) fn arrive<'k>(&mut self, keys: impl Iterator<Item = &'k BlockKey>) {
        for key in keys {
            if let Some(entry) = self.blocks.get_mut(key) {
                entry.batches -= 1;
                if entry.batches == 0 {
                    self.blocks.remove(key);
                }
            }
        }
        self.of.arrived.notify_all();
    }

    /// The blocks with a write to a durable tier in flight.
    pub(super) fn to_durable(&self) -> Vec<BlockKey> {
        let blocks = self.blocks.iter().filter(|(_, block)| block.to_durable);
        blocks.map(|(key, _)| *key).collect()
    }

    /// The departure of a block, if its write is in flight.
    pub(super) fn get(&self, key: &BlockKey) -> Option<Departure> {
        self.blocks.get(key).copied()
    }
}

impl Drop for LockedDepartures<'_> {
    fn drop(&mut self) {
        self.of.set_mark(!self.blocks.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u8) -> BlockKey {
        BlockKey::from_bytes([number; 16])
    }

    #[test]
    fn the_mark_is_odd_while_blocks_move_and_changes_with_every_move() {
        let departures = Departures::default();
        let mut marks = vec![departures.mark()];
        assert_eq!(marks[0] % 2, 0);
        let mut locked = departures.lock();
        locked.depart(key(1), (0, false), (None, 7));
        drop(locked);
        marks.push(departures.mark());
        assert_eq!(marks[1] % 2, 1);
        let mut locked = departures.lock();
        assert_eq!(locked.get(&key(1)).map(|block| block.tenant), Some(7));
        locked.arrive([key(1)].iter());
        assert!(locked.get(&key(1)).is_none());
        drop(locked);
        marks.push(departures.mark());
        assert_eq!(marks[2] % 2, 0);
        drop(departures.lock());
        marks.push(departures.mark());
        assert_eq!(marks[3] % 2, 0);
        assert!(marks.windows(2).all(|pair| pair[0] < pair[1]), "{marks:?}");
    }

    #[test]
    fn a_block_that_departs_twice_has_arrived_with_the_last_batch() {
        let departures = Departures::default();
        let mut locked = departures.lock();
        locked.depart(key(1), (0, false), (None, 0));
        locked.depart(key(1), (0, false), (None, 0));
        locked.arrive([key(1), key(2)].iter());
        drop(locked);
        let wait = |is_there| departures.wait(&[key(2), key(1)], Duration::ZERO, || is_there);
        assert!(!wait(false) && wait(true));
        departures.lock().arrive([key(1)].iter());
        assert!(wait(false));
    }

    #[test]
    fn a_load_waits_until_the_block_has_arrived() {
        let departures = Departures::default();
        departures.lock().depart(key(1), (0, false), (None, 0));
        std::thread::scope(|scope| {
            let waits =
                scope.spawn(|| departures.wait(&[key(1)], Duration::from_secs(60), || false));
            departures.lock().arrive([key(1)].iter());
            assert!(waits.join().unwrap());
        });
    }
}
