//! Blocks that have left host memory and are being written to a tier. Lookups find them meanwhile, as blocks
//! of that tier, and loads wait until they have arrived or were given up.
//!
//! A block moves from host memory to this list under its lock, and from this list to a tier under its lock
//! too, so a lookup that holds the lock sees each block in one of the places. Lookups take it only where they
//! would miss a block while something moves ([`Departures::mark`]).

use std::{
    collections::HashMap,
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use kvtile_blocks::BlockKey;

/// A block on its way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Departure {
    /// The tier that it goes to first, as a position in the list of tiers.
    pub(super) tier: usize,
    pub(super) parent: Option<BlockKey>,
    pub(super) tenant: u32,
    /// Whether a durable tier is among those that it goes to.
    to_durable: bool,
    /// Batches that have it: an evicted block may be stored and evicted once more meanwhile.
    batches: usize,
}

/// Blocks on their way.
#[derive(Default)]
pub(super) struct Departures {
    blocks: Mutex<HashMap<BlockKey, Departure>>,
    arrived: Condvar,
    /// Even while nothing moves; each change of the list makes it larger.
    mark: AtomicU64,
}

/// The lock of the list: no block moves meanwhile.
pub(super) struct Locked<'a> {
    blocks: MutexGuard<'a, HashMap<BlockKey, Departure>>,
    of: &'a Departures,
}

impl Departures {
    /// Takes the lock: blocks may leave host memory, or this list, until it is dropped.
    pub(super) fn lock(&self) -> Locked<'_> {
        // Nothing that holds the lock can leave it half changed.
        let blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        self.set_mark(true);
        Locked { blocks, of: self }
    }

    /// The next mark, odd or even. The caller holds the lock.
    fn set_mark(&self, is_odd: bool) {
        let next = self.mark.load(Ordering::Relaxed) + 1;
        let next = next + u64::from((next % 2 == 1) != is_odd);
        self.mark.store(next, Ordering::SeqCst);
    }

    /// Changes whenever blocks move; odd while blocks move or are on their way.
    pub(super) fn mark(&self) -> u64 {
        self.mark.load(Ordering::SeqCst)
    }

    /// Waits until a block has arrived or was given up, for at most so long. False where it is still on its
    /// way.
    pub(super) fn wait(&self, key: &BlockKey, within: Duration) -> bool {
        let start = Instant::now();
        let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        while blocks.contains_key(key) {
            let left = within.checked_sub(start.elapsed());
            let Some(left) = left.filter(|left| !left.is_zero()) else {
                return false;
            };
            let waited = self.arrived.wait_timeout(blocks, left);
            blocks = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl Locked<'_> {
    /// A block has left host memory and goes to a tier.
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

    /// Blocks have arrived, or were given up.
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

    /// The blocks that are on their way to a durable tier.
    pub(super) fn to_durable(&self) -> Vec<BlockKey> {
        let blocks = self.blocks.iter().filter(|(_, block)| block.to_durable);
        blocks.map(|(key, _)| *key).collect()
    }

    /// The block, where it is on its way.
    pub(super) fn get(&self, key: &BlockKey) -> Option<Departure> {
        self.blocks.get(key).copied()
    }
}

impl Drop for Locked<'_> {
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
        assert!(!departures.wait(&key(1), Duration::ZERO));
        departures.lock().arrive([key(1)].iter());
        assert!(departures.wait(&key(1), Duration::ZERO));
    }

    #[test]
    fn a_load_waits_until_the_block_has_arrived() {
        let departures = Departures::default();
        departures.lock().depart(key(1), (0, false), (None, 0));
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| departures.wait(&key(1), Duration::from_secs(60)));
            departures.lock().arrive([key(1)].iter());
            assert!(waits.join().unwrap());
        });
    }
}
