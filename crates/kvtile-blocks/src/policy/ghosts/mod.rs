//! Ghost entries: the keys of evicted blocks, each with a small value, in eviction order and
//! bounded in number.
//!
//! Ghosts are in a ring, the oldest at its start. A ghost that comes back earlier leaves a gap; a
//! full ring is rebuilt without its gaps. A hash table of buckets finds a ghost by its key
//! (`buckets`). There may be as many ghosts as a pool has blocks, so every byte counts.
//!
//! A ghost keeps 32 bits of its key. Two keys that share them are confused, which skews a statistic
//! but never returns a wrong block.

mod buckets;

use super::column::{IdColumn, NONE};
use crate::BlockKey;
use buckets::{GhostTable, PERHAPS};

/// The print of an empty place: its ghost came back, or it was never used.
const GAP: u32 = 0;

/// Buckets prefetched as one batch: their cache lines fit the L1 cache.
const WARM: u32 = 128;

/// The most places that a rebuild adds to a small ring. Eight times this number holds the ghosts that
/// the learned policy keeps for a small pool, and the excess that it drops as a batch.
const GROWTH: usize = 8_224;

/// Places of the smallest ring.
const PLACES_MIN: usize = 16;

#[derive(Clone, Copy, Debug)]
struct RingGhost<T> {
    print: u32,
    value: T,
}

/// The ghosts, oldest first.
#[derive(Clone, Debug)]
pub(super) struct GhostRing<T> {
    ring: IdColumn<RingGhost<T>>,
    /// The place of the ring's start.
    start: u32,
    /// Places in use from there on, gaps included.
    used: u32,
    /// How many of them, the newest, are not in the table yet. No search has needed them so far.
    waiting: u32,
    len: usize,
    table: GhostTable,
}

/// The result of the first step of a lookup, which is done for many keys as one batch so that their
/// reads overlap.
#[derive(Clone, Copy, Debug)]
pub(super) struct GhostLookup {
    print: u32,
    /// A candidate place, or a special value of [`GhostTable::glance`].
    place: u32,
}

impl<T: Copy + Default> GhostRing<T> {
    /// No ghosts.
    pub(super) fn new() -> GhostRing<T> {
        let mut ghosts = GhostRing {
            ring: IdColumn::empty(),
            start: 0,
            used: 0,
            waiting: 0,
            len: 0,
            table: GhostTable::new(0),
        };
        ghosts.rebuild();
        ghosts
    }

    /// The number of ghosts.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Adds a ghost.
    pub(super) fn push(&mut self, key: &BlockKey, value: T) {
        if self.used == self.places() {
            self.rebuild();
        }
        let place = self.place(self.used);
        let KeyPrint(print) = KeyPrint::new(key);
        self.ring[place] = RingGhost { print, value };
        self.used += 1;
        self.waiting += 1;
        self.len += 1;
    }

    /// Inserts the ghosts added since the last call into the table, so that searches find them.
    pub(super) fn enter(&mut self) {
        while self.waiting > 0 {
            let first = self.used - self.waiting;
            let end = self.used.min(first + WARM);
            let prints = (first..end).map(|number| self.ring[self.place(number)].print);
            self.table.warm(prints);
            for number in first..end {
                let place = self.place(number);
                self.table.insert(self.ring[place].print, place);
            }
            self.waiting = self.used - end;
        }
    }

    /// Looks up keys by their prints, in order. The result is valid until the next ghost is added.
    pub(super) fn seek(
        &mut self,
        prints: impl Iterator<Item = KeyPrint>,
        sought: &mut Vec<GhostLookup>,
    ) {
        self.enter();
        sought.clear();
        sought.extend(prints.map(|KeyPrint(print)| GhostLookup { print, place: NONE }));
        for sought in sought.chunks_mut(WARM as usize) {
            self.table.warm(sought.iter().map(|sought| sought.print));
            for sought in sought {
                sought.place = self.table.glance(sought.print);
            }
        }
    }

    /// Removes the ghost of a key. Returns its value.
    pub(super) fn take(&mut self, key: &BlockKey) -> Option<T> {
        self.enter();
        let KeyPrint(print) = KeyPrint::new(key);
        let place = self.table.glance(print);
        self.take_sought(GhostLookup { print, place })
    }

    /// Removes the ghost of a looked-up key. Returns its value.
    pub(super) fn take_sought(&mut self, GhostLookup { print, place }: GhostLookup) -> Option<T> {
        if place == NONE {
            return None;
        }
        let place = if place != PERHAPS && self.ring[place].print == print {
            place
        } else {
            let ring = &self.ring;
            self.table.find(print, |place| ring[place].print == print)?
        };
        Some(self.forget(place))
    }

    /// Removes the oldest ghost. Returns its value.
    pub(super) fn pop(&mut self) -> Option<T> {
        if self.len == 0 {
            return None;
        }
        if self.waiting == self.used {
            self.enter();
        }
        // The ring never starts with a gap.
        Some(self.forget(self.start))
    }

    /// The values of the ghosts, oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = T> + '_ {
        self.ghosts().map(|ghost| ghost.value)
    }

    fn ghosts(&self) -> impl Iterator<Item = RingGhost<T>> + '_ {
        let all = (0..self.used).map(|number| self.ring[self.place(number)]);
        all.filter(|ghost| ghost.print != GAP)
    }

    fn places(&self) -> u32 {
        u32::try_from(self.ring.len()).unwrap_or(NONE)
    }

    /// The place with this number, counted from the ring's start.
    fn place(&self, number: u32) -> u32 {
        let to_end = self.places() - self.start;
        if number < to_end {
            self.start + number
        } else {
            number - to_end
        }
    }

    fn forget(&mut self, place: u32) -> T {
        let RingGhost { print, value } = self.ring[place];
        self.table.remove(print, place);
        self.ring[place].print = GAP;
        self.len -= 1;
        while self.used > 0 && self.ring[self.start].print == GAP {
            self.start = self.place(1);
            self.used -= 1;
        }
        value
    }

    /// Closes the gaps. Up to [`GROWTH`] ghosts, the new ring has twice as many places as ghosts; up to
    /// 8 × [`GROWTH`] ghosts, [`GROWTH`] more places than ghosts; beyond that, an eighth more.
    fn rebuild(&mut self) {
        let more = (self.len / 8).max(self.len.min(GROWTH));
        let places = (self.len + more).max(PLACES_MIN);
        let gap = RingGhost {
            print: GAP,
            value: T::default(),
        };
        let mut ring = IdColumn::new(places, gap);
        let mut used = 0;
        for ghost in self.ghosts() {
            ring[used] = ghost;
            used += 1;
        }
        // The old ring and table are freed before the new table is allocated: all of them together
        // would be the pool's peak memory.
        self.ring = ring;
        self.table = GhostTable::new(0);
        self.table = GhostTable::new(places);
        (self.start, self.used, self.waiting) = (0, used, used);
        self.enter();
    }

    /// Prefetches the buckets that removing the `count` oldest ghosts will read.
    pub(super) fn warm(&self, count: usize) {
        let numbers = (0..self.used - self.waiting).take(count);
        let prints = numbers.map(|number| self.ring[self.place(number)].print);
        self.table.warm(prints);
    }

    /// Asserts the invariants.
    pub(super) fn check(&self) {
        assert_eq!(self.ghosts().count(), self.len);
        assert!(self.used <= self.places());
        let waiting = self.waiting as usize;
        self.table
            .check(self.len - waiting, |place| self.ring[place].print);
        for number in 0..self.used {
            let place = self.place(number);
            let RingGhost { print, .. } = self.ring[place];
            if print == GAP {
                assert!(number > 0, "a gap at the start");
                continue;
            }
            let found = self.table.find(print, |at| at == place);
            let entered = number < self.used - self.waiting;
            assert_eq!(found, entered.then_some(place), "ghost {place}");
        }
    }
}

/// A 32-bit hash of a key, mixed because keys from elsewhere may differ in any of their bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KeyPrint(u32);

impl KeyPrint {
    /// The print of a key.
    #[inline]
    pub(super) fn new(key: &BlockKey) -> KeyPrint {
        const ODD: [u64; 2] = [0x9e37_79b9_7f4a_7c15, 0xd6e8_feb8_6659_fd93];
        let [first, second] = ODD;
        let bits = u128::from_le_bytes(*key.as_bytes());
        let half = |bits: u128| u64::try_from(bits & u128::from(u64::MAX)).unwrap_or_default();
        let (low, high) = (half(bits), half(bits >> 64));
        let folded = low.wrapping_mul(first) ^ high.rotate_left(29).wrapping_mul(second);
        let mixed = (folded ^ (folded >> 32)).wrapping_mul(first);
        let upper = u32::try_from(mixed >> u32::BITS).unwrap_or_default();
        KeyPrint(upper.clamp(GAP + 1, NONE - 1))
    }

    /// The bits, which are never [`NONE`].
    pub(super) fn bits(self) -> u32 {
        self.0
    }

    /// The print with these bits.
    pub(super) fn of_bits(bits: u32) -> KeyPrint {
        KeyPrint(bits)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use kvtile_random::{SplitMix64, mix};

    use super::*;

    fn key(number: u64) -> BlockKey {
        BlockKey::from_bytes(u128::from(number).to_le_bytes())
    }

    #[test]
    fn ghosts_are_forgotten_in_order_or_when_they_come_back() {
        for seed in 0..20 {
            println!("seed {seed}");
            let mut random = SplitMix64::new(seed);
            let most = 5 + seed * 20;
            let mut ghosts = GhostRing::<u32>::new();
            let mut naive = VecDeque::<(u64, u32)>::new();
            for step in 0..3_000_u32 {
                match random.below(4) {
                    0 => {
                        let wanted = random.below(2 * most);
                        let at = naive.iter().position(|&(number, _)| number == wanted);
                        let known = at.and_then(|at| naive.remove(at));
                        assert_eq!(ghosts.take(&key(wanted)), known.map(|(_, value)| value));
                    }
                    1 => assert_eq!(ghosts.pop(), naive.pop_front().map(|(_, value)| value)),
                    _ => {
                        let number = random.below(2 * most);
                        if naive.iter().all(|&(other, _)| other != number) {
                            ghosts.push(&key(number), step);
                            naive.push_back((number, step));
                        }
                        if naive.len() as u64 > most {
                            assert_eq!(ghosts.pop(), naive.pop_front().map(|(_, value)| value));
                        }
                    }
                }
                assert_eq!(ghosts.len(), naive.len());
                if step % 16 == 0 {
                    ghosts.check();
                    assert!(ghosts.iter().eq(naive.iter().map(|&(_, value)| value)));
                }
            }
        }
    }

    /// Pitfall 29: a sketch that takes almost every key for a frequent one. Engine keys are hashes,
    /// counters, or differ only in their upper half.
    #[test]
    fn pitfall_29_keys_that_were_never_seen_are_not_taken_for_seen_ones() {
        let spread = |number: u64| u128::from(mix(number)) | u128::from(mix(!number)) << 64;
        for shape in ["hashed", "counted", "upper half"] {
            let key = |number: u64| {
                let bits = match shape {
                    "hashed" => spread(number),
                    "counted" => u128::from(number),
                    _ => u128::from(number) << 64,
                };
                BlockKey::from_bytes(bits.to_le_bytes())
            };
            let mut ghosts = GhostRing::<u32>::new();
            for number in 0..65_536 {
                ghosts.push(&key(number), 0);
            }
            let fresh = 65_536..1_065_536;
            let known = fresh
                .filter(|&number| ghosts.take(&key(number)).is_some())
                .count();
            // 32 bits confuse 15 of a million keys with one of 65,536.
            println!("{shape}: {known} of a million");
            assert!(known < 100, "{shape}: {known} of a million");
        }
    }
}
