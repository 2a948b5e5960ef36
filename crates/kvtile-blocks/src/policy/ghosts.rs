//! Who has left: the keys of blocks that were evicted, each with a few words about it, in the order
//! in which they left, at most a given number of them.
//!
//! Ghosts stand in a ring, the first to be forgotten at its start. One that comes back before leaves
//! a gap, and gaps are closed when the ring has no place any more. A table finds a ghost by its key,
//! at most 72 % full. There is one ghost for each block of a pool, so every byte counts.
//!
//! A key is remembered by 32 of its bits. Two keys that share them are taken for one; that falsifies
//! a statistic, never a block.

use super::column::{Column, NONE};
use crate::BlockKey;

/// One who came back, or was never there.
const GAP: u32 = 0;

/// Places of the smallest ring.
const PLACES_MIN: usize = 16;

#[derive(Clone, Copy, Debug)]
struct Ghost<T> {
    print: u32,
    value: T,
}

/// The blocks that left last.
#[derive(Clone, Debug)]
pub(super) struct Ghosts<T> {
    ring: Column<Ghost<T>>,
    /// Where the ring starts.
    start: u32,
    /// Places from there on that were given out, gaps among them.
    used: u32,
    len: usize,
    /// An open-addressed table of places of the ring.
    table: Column<u32>,
}

impl<T: Copy + Default> Ghosts<T> {
    /// Nobody has left yet.
    pub(super) fn new() -> Ghosts<T> {
        let mut ghosts = Ghosts {
            ring: Column::empty(),
            start: 0,
            used: 0,
            len: 0,
            table: Column::empty(),
        };
        ghosts.rebuild();
        ghosts
    }

    /// How many are remembered.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Remembers one more.
    pub(super) fn push(&mut self, key: &BlockKey, value: T) {
        if self.used == self.places() {
            self.rebuild();
        }
        let place = self.place(self.used);
        let print = print(key);
        self.ring[place] = Ghost { print, value };
        self.used += 1;
        self.len += 1;
        self.enter(place);
    }

    /// Forgets a key; what was known about it.
    pub(super) fn take(&mut self, key: &BlockKey) -> Option<T> {
        let print = print(key);
        let mut slot = self.home(print);
        loop {
            match self.table[slot] {
                NONE => return None,
                place if self.ring[place].print == print => {
                    return Some(self.forget(slot, place));
                }
                _ => slot = self.after(slot),
            }
        }
    }

    /// Forgets the one who left first; what was known about it.
    pub(super) fn pop(&mut self) -> Option<T> {
        if self.len == 0 {
            return None;
        }
        // Gaps do not stay at the start.
        let place = self.start;
        let mut slot = self.home(self.ring[place].print);
        while self.table[slot] != place {
            slot = self.after(slot);
        }
        Some(self.forget(slot, place))
    }

    /// What is known about those who left, the first first.
    pub(super) fn iter(&self) -> impl Iterator<Item = T> + '_ {
        self.ghosts().map(|ghost| ghost.value)
    }

    fn ghosts(&self) -> impl Iterator<Item = Ghost<T>> + '_ {
        let all = (0..self.used).map(|number| self.ring[self.place(number)]);
        all.filter(|ghost| ghost.print != GAP)
    }

    fn places(&self) -> u32 {
        u32::try_from(self.ring.len()).unwrap_or(NONE)
    }

    /// The place of the ring with this number from its start.
    fn place(&self, number: u32) -> u32 {
        let to_end = self.places() - self.start;
        if number < to_end {
            self.start + number
        } else {
            number - to_end
        }
    }

    fn forget(&mut self, slot: u32, place: u32) -> T {
        self.close(slot);
        self.ring[place].print = GAP;
        self.len -= 1;
        let value = self.ring[place].value;
        while self.used > 0 && self.ring[self.start].print == GAP {
            self.start = self.place(1);
            self.used -= 1;
        }
        value
    }

    /// Where a print is looked for first.
    fn home(&self, print: u32) -> u32 {
        let scaled = (u64::from(print) * self.table.len() as u64) >> u32::BITS;
        u32::try_from(scaled).unwrap_or(NONE)
    }

    /// The slot behind this one.
    fn after(&self, slot: u32) -> u32 {
        let next = slot + 1;
        if next as usize == self.table.len() {
            0
        } else {
            next
        }
    }

    /// How many steps lead from one slot to another.
    fn distance(&self, from: u32, to: u32) -> u64 {
        let (from, to) = (u64::from(from), u64::from(to));
        if to >= from {
            to - from
        } else {
            self.table.len() as u64 - from + to
        }
    }

    /// Empties a slot and moves up who would not be found behind it.
    fn close(&mut self, slot: u32) {
        let mut hole = slot;
        let mut at = slot;
        loop {
            at = self.after(at);
            let place = self.table[at];
            if place == NONE {
                break;
            }
            let home = self.home(self.ring[place].print);
            if self.distance(home, at) >= self.distance(hole, at) {
                self.table[hole] = place;
                hole = at;
            }
        }
        self.table[hole] = NONE;
    }

    fn enter(&mut self, place: u32) {
        let mut slot = self.home(self.ring[place].print);
        while self.table[slot] != NONE {
            slot = self.after(slot);
        }
        self.table[slot] = place;
    }

    /// Closes the gaps, with an eighth more places than there are ghosts.
    fn rebuild(&mut self) {
        let places = (self.len + self.len / 8).max(PLACES_MIN);
        let gap = Ghost {
            print: GAP,
            value: T::default(),
        };
        let mut ring = Column::new(places, gap);
        let mut used = 0;
        for ghost in self.ghosts() {
            ring[used] = ghost;
            used += 1;
        }
        // The old ones go first: both together would be the most that a pool ever takes.
        self.ring = ring;
        self.table = Column::empty();
        self.table = Column::new(places + places / 4, NONE);
        (self.start, self.used) = (0, used);
        for place in 0..used {
            self.enter(place);
        }
    }

    /// Asserts what must hold between the parts.
    pub(super) fn check(&self) {
        assert_eq!(self.ghosts().count(), self.len);
        assert!(self.used <= self.places());
        let entered = self.table.iter().filter(|&&place| place != NONE).count();
        assert_eq!(entered, self.len, "ghosts in the table");
        for number in 0..self.used {
            let place = self.place(number);
            if self.ring[place].print == GAP {
                assert!(number > 0, "a gap at the start");
                continue;
            }
            let mut slot = self.home(self.ring[place].print);
            while self.table[slot] != place {
                assert!(self.table[slot] != NONE, "ghost {place} is lost");
                slot = self.after(slot);
            }
        }
    }
}

/// 32 bits of a key, mixed: keys that somebody else made may differ in any of their bits.
fn print(key: &BlockKey) -> u32 {
    let bits = u128::from_le_bytes(*key.as_bytes());
    let mixed = bits.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
    let folded = (mixed >> 64) ^ mixed ^ (bits >> 64);
    let low = u64::try_from(folded & u128::from(u64::MAX)).unwrap_or_default();
    let product = u128::from(low) * 0xd6e8_feb8_6659_fd93;
    let folded = ((product >> 64) ^ product) & u128::from(u64::MAX);
    u32::try_from((folded >> 32) ^ (folded & u128::from(u32::MAX)))
        .unwrap_or_default()
        .max(GAP + 1)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    fn key(number: u64) -> BlockKey {
        BlockKey::from_bytes(u128::from(number).to_le_bytes())
    }

    /// SplitMix64.
    fn random(state: &mut u64) -> u64 {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    #[test]
    fn ghosts_are_forgotten_in_order_or_when_they_come_back() {
        for seed in 0..20 {
            println!("seed {seed}");
            let mut state = seed;
            let most = 5 + seed * 20;
            let mut ghosts = Ghosts::<u32>::new();
            let mut naive = VecDeque::<(u64, u32)>::new();
            for step in 0..3_000_u32 {
                match random(&mut state) % 4 {
                    0 => {
                        let wanted = random(&mut state) % (2 * most);
                        let at = naive.iter().position(|&(number, _)| number == wanted);
                        let known = at.and_then(|at| naive.remove(at));
                        assert_eq!(ghosts.take(&key(wanted)), known.map(|(_, value)| value));
                    }
                    1 => assert_eq!(ghosts.pop(), naive.pop_front().map(|(_, value)| value)),
                    _ => {
                        let number = random(&mut state) % (2 * most);
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

    /// Pitfall 29: a sketch to which almost every key looks frequent. Keys of engines are hashes, or
    /// count, or differ in their upper half alone.
    #[test]
    fn pitfall_29_keys_that_were_never_seen_are_not_taken_for_seen_ones() {
        let spread = |number: u64| {
            let (mut low, mut high) = (number, !number);
            u128::from(random(&mut low)) | u128::from(random(&mut high)) << 64
        };
        for shape in ["hashed", "counted", "upper half"] {
            let key = |number: u64| {
                let bits = match shape {
                    "hashed" => spread(number),
                    "counted" => u128::from(number),
                    _ => u128::from(number) << 64,
                };
                BlockKey::from_bytes(bits.to_le_bytes())
            };
            let mut ghosts = Ghosts::<u32>::new();
            for number in 0..65_536 {
                ghosts.push(&key(number), 0);
            }
            let fresh = 65_536..1_065_536;
            let known = fresh
                .filter(|&number| ghosts.take(&key(number)).is_some())
                .count();
            // 32 bits take 15 of a million for one of 65,536.
            println!("{shape}: {known} of a million");
            assert!(known < 100, "{shape}: {known} of a million");
        }
    }
}
