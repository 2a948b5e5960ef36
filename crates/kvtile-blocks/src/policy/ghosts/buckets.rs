//! A table from prints to places, in buckets of one cache line: a search reads one line as a rule, and does
//! not follow a place to the ring unless some bits of the print fit. It knows no ghosts.
//!
//! ```text
//! bucket   word 0     how many entries whose bucket this is stand in a later one
//!          word 1-15  entry: some bits of the print, then the place; NONE where the word is free
//! ```
//!
//! An entry stands in the first bucket from its own on that has a free word, so a search ends at a bucket
//! that no entry went past.

use std::hint::black_box;

use super::super::column::{Column, NONE};

/// What [`Buckets::glance`] says where only a search can tell.
pub(super) const PERHAPS: u32 = NONE - 1;

/// Entries for which a bucket has room.
const ROOM: usize = 15;

/// Places for each bucket: less than its room, so that few entries go past their own.
const PLACES: usize = 13;

/// One cache line.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Bucket {
    passed: u32,
    entries: [u32; ROOM],
}

/// The table.
#[derive(Clone, Debug)]
pub(super) struct Buckets {
    buckets: Column<Bucket>,
    /// Bits that hold a place. No place has all of them set, so no entry is [`NONE`].
    place_bits: u32,
}

impl Buckets {
    /// For places below `places`, at most one print for each.
    pub(super) fn new(places: usize) -> Buckets {
        let empty = Bucket {
            passed: 0,
            entries: [NONE; ROOM],
        };
        Buckets {
            buckets: Column::new(places.div_ceil(PLACES), empty),
            place_bits: usize::BITS - places.leading_zeros(),
        }
    }

    /// Reads the buckets of all these prints. They lie anywhere, and reads of nothing but them run side by
    /// side, where those between other work would each be waited for.
    pub(super) fn warm(&self, prints: impl Iterator<Item = u32>) {
        let passed = prints.map(|print| self.buckets[self.home(print)].passed);
        black_box(passed.fold(0, |all, passed| all | passed));
    }

    /// Where a print may be, by its own bucket alone: a place, [`NONE`], or [`PERHAPS`]. Whether the place
    /// has this print, the caller looks up.
    #[inline]
    pub(super) fn glance(&self, print: u32) -> u32 {
        let Bucket { passed, entries } = &self.buckets[self.home(print)];
        let (tag, mask) = (self.entry(print, 0), !self.place_mask());
        // Of two that fit comes a place that is not above either of them, without a branch in the loop.
        let mut found = NONE;
        for &entry in entries {
            found &= if (entry ^ tag) & mask == 0 {
                entry
            } else {
                NONE
            };
        }
        match (found, passed) {
            (NONE, 0) => NONE,
            (NONE, _) => PERHAPS,
            _ => found & self.place_mask(),
        }
    }

    /// The place of a print that `is` says to be the right one.
    pub(super) fn find(&self, print: u32, is: impl Fn(u32) -> bool) -> Option<u32> {
        let (tag, mask) = (self.entry(print, 0), !self.place_mask());
        let mut at = self.home(print);
        for _ in 0..self.buckets.len() {
            let Bucket { passed, entries } = &self.buckets[at];
            let fits = |&entry: &u32| entry != NONE && (entry ^ tag) & mask == 0;
            let mut places = entries.iter().copied().filter(fits);
            let found = places.find(|entry| is(entry & self.place_mask()));
            if let Some(entry) = found {
                return Some(entry & self.place_mask());
            }
            if *passed == 0 {
                return None;
            }
            at = self.after(at);
        }
        None
    }

    /// Notes where a print is.
    pub(super) fn insert(&mut self, print: u32, place: u32) {
        let noted = self.entry(print, place);
        let mut at = self.home(print);
        while !self.buckets[at].replace(NONE, noted) {
            self.buckets[at].passed += 1;
            at = self.after(at);
        }
    }

    /// Forgets where a print is.
    pub(super) fn remove(&mut self, print: u32, place: u32) {
        let noted = self.entry(print, place);
        let mut at = self.home(print);
        while !self.buckets[at].replace(noted, NONE) {
            let passed = &mut self.buckets[at].passed;
            assert!(*passed > 0, "ghost {place} is in the table");
            *passed -= 1;
            at = self.after(at);
        }
    }

    /// Asserts that there are so many entries, and as many went past a bucket as it says.
    pub(super) fn check(&self, entries: usize, print: impl Fn(u32) -> u32) {
        let mut passed = vec![0; self.buckets.len()];
        let mut count = 0;
        for (bucket, at) in self.buckets.iter().zip(0_u32..) {
            for entry in bucket.entries.iter().filter(|&&entry| entry != NONE) {
                count += 1;
                let print = print(entry & self.place_mask());
                let mut before = self.home(print);
                while before != at {
                    passed
                        .get_mut(before as usize)
                        .into_iter()
                        .for_each(|passed| *passed += 1);
                    before = self.after(before);
                }
            }
        }
        assert_eq!(count, entries, "ghosts in the table");
        let said: Vec<u32> = self.buckets.iter().map(|bucket| bucket.passed).collect();
        assert_eq!(said, passed, "ghosts that went past their buckets");
    }

    /// The bits of a print that are not needed to find its bucket, and a place.
    fn entry(&self, print: u32, place: u32) -> u32 {
        print.checked_shl(self.place_bits).unwrap_or(0) | place
    }

    fn place_mask(&self) -> u32 {
        !u32::MAX.checked_shl(self.place_bits).unwrap_or(0)
    }

    fn home(&self, print: u32) -> u32 {
        let scaled = (u64::from(print) * self.buckets.len() as u64) >> u32::BITS;
        u32::try_from(scaled).unwrap_or(NONE)
    }

    fn after(&self, bucket: u32) -> u32 {
        let next = bucket + 1;
        if next as usize == self.buckets.len() {
            0
        } else {
            next
        }
    }
}

impl Bucket {
    /// Writes `new` over an entry that is `old`, if there is one. All entries are compared, without a branch:
    /// which of them it is cannot be guessed.
    #[inline]
    fn replace(&mut self, old: u32, new: u32) -> bool {
        let mut places = 0;
        for (bit, &entry) in self.entries.iter().enumerate() {
            places |= u32::from(entry == old) << bit;
        }
        let place = self.entries.get_mut(places.trailing_zeros() as usize);
        place.map(|place| *place = new).is_some()
    }
}
