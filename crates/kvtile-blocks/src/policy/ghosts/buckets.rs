//! A hash table from prints to places, in buckets of one cache line. A search usually reads one
//! line, and follows a place to the ring only if some bits of the print match. It does not know
//! ghosts.
//!
//! ```text
//! bucket   word 0     overflow count: entries of this bucket that are in a later one
//!          word 1-15  entry: some bits of the print, then the place; NONE if the word is free
//! ```
//!
//! An entry is in the first bucket with a free word, starting from its home bucket. So a search
//! ends at a bucket that no entry overflowed.

use std::hint::black_box;

use super::super::column::{IdColumn, NONE};

/// Returned by [`GhostTable::glance`] if only a search can decide.
pub(super) const PERHAPS: u32 = NONE - 1;

/// Entries per bucket.
const ROOM: usize = 15;

/// Places per bucket: fewer than its entries, so that few entries overflow.
const PLACES: usize = 11;

/// One cache line.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct GhostBucket {
    passed: u32,
    entries: [u32; ROOM],
}

/// The table.
#[derive(Clone, Debug)]
pub(super) struct GhostTable {
    buckets: IdColumn<GhostBucket>,
    /// The number of bits of a place. No place has all of them set, so no entry is [`NONE`].
    place_bits: u32,
}

impl GhostTable {
    /// A table for places below `places`, with at most one print for each.
    pub(super) fn new(places: usize) -> GhostTable {
        let empty = GhostBucket {
            passed: 0,
            entries: [NONE; ROOM],
        };
        GhostTable {
            buckets: IdColumn::new(places.div_ceil(PLACES), empty),
            place_bits: usize::BITS - places.leading_zeros(),
        }
    }

    /// Prefetches the buckets of these prints. The buckets are scattered; consecutive reads
    /// overlap, while reads between other work would each stall.
    pub(super) fn warm(&self, prints: impl Iterator<Item = u32>) {
        let passed = prints.map(|print| self.buckets[self.home(print)].passed);
        black_box(passed.fold(0, |all, passed| all | passed));
    }

    /// The candidate place of a print from its home bucket alone: a place, [`NONE`], or
    /// [`PERHAPS`]. The caller checks whether the place has this print.
    #[inline]
    pub(super) fn glance(&self, print: u32) -> u32 {
        let GhostBucket { passed, entries } = &self.buckets[self.home(print)];
        let (tag, mask) = (self.entry(print, 0), !self.place_mask());
        // If two entries match, the result is a place not above either of them; the loop is
        // branch-free.
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

    /// The place of a print; `is` confirms a candidate place.
    pub(super) fn find(&self, print: u32, is: impl Fn(u32) -> bool) -> Option<u32> {
        let (tag, mask) = (self.entry(print, 0), !self.place_mask());
        let mut at = self.home(print);
        for _ in 0..self.buckets.len() {
            let GhostBucket { passed, entries } = &self.buckets[at];
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

    /// Inserts a print with its place.
    pub(super) fn insert(&mut self, print: u32, place: u32) {
        let noted = self.entry(print, place);
        let mut at = self.home(print);
        while !self.buckets[at].replace(NONE, noted) {
            self.buckets[at].passed += 1;
            at = self.after(at);
        }
    }

    /// Removes a print with its place.
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

    /// Asserts the number of entries and the overflow counts.
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
        let counted: Vec<u32> = self.buckets.iter().map(|bucket| bucket.passed).collect();
        assert_eq!(counted, passed, "overflow counts of the buckets");
    }

    /// The bits of the print that are not needed to find its bucket, and the place.
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

impl GhostBucket {
    /// Replaces an entry equal to `old` with `new`. Returns false if there is none. It compares all
    /// entries without a branch, since the position is unpredictable.
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
