//! The free list: free places of the data file, allocated side by side.
//!
//! ```text
//! places    0 . . . . 5 . . 8 . . . . . . . .        free: 1..5  6..8  9..17
//! of 3      the run after the last allocated place, if it has 3; else the shortest run with 3
//! of 20     no run has so many: the longest run first, then the next
//! ```
//!
//! A single block follows the last allocated place, so that a chain that is stored block by block
//! is contiguous as well. If that place is taken, the block starts the longest run.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

/// The free places of a data file.
#[derive(Debug)]
pub(super) struct FreePlaces {
    /// The run that allocations take from. If it is empty, it marks the place after the last
    /// allocated one.
    current: Range<u32>,
    /// All other runs: first place and length. No two of them are adjacent.
    runs: BTreeMap<u32, u32>,
    /// The runs of `runs`, ordered by length.
    by_length: BTreeSet<(u32, u32)>,
    /// The number of free places.
    count: usize,
}

impl FreePlaces {
    /// The free list of a file whose places are `taken` or free.
    pub(super) fn of(taken: &[bool]) -> FreePlaces {
        let mut free = FreePlaces {
            // No place has been allocated yet.
            current: u32::MAX..u32::MAX,
            runs: BTreeMap::new(),
            by_length: BTreeSet::new(),
            count: 0,
        };
        let mut first = 0;
        for run in taken.chunk_by(|a, b| a == b) {
            let length = u32::try_from(run.len()).unwrap_or(u32::MAX - first);
            if run.first() == Some(&false) {
                free.put(first, length);
                free.count += run.len();
            }
            first += length;
        }
        free
    }

    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// All free places, in no particular order.
    pub(super) fn iter(&self) -> impl Iterator<Item = u32> {
        let runs = self.runs.iter();
        let runs = runs.map(|(first, length)| *first..first + length);
        runs.chain([self.current.clone()]).flatten()
    }

    /// Frees a place.
    pub(super) fn insert(&mut self, place: u32) {
        self.count += 1;
        self.merge(place..place + 1);
    }

    /// Chooses the run for the next `count` allocations, which are blocks of one chain.
    pub(super) fn expect(&mut self, count: usize) {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let after = self.current.clone();
        if after.end - after.start >= count {
            return;
        }
        self.current = after.start..after.start;
        // Merged with places that were freed next to it, the run may be long enough.
        self.merge(after.clone());
        let here = self.runs.range(..=after.start).next_back();
        let here = here.map(|(first, length)| (*first, *length));
        let here = here.filter(|(first, length)| {
            let room = (first + length).saturating_sub(after.start);
            room >= count
        });
        let fitting = || match count {
            // A longer run leaves room for the blocks that may follow.
            0 | 1 => None,
            _ => self.by_length.range((count, 0)..).next(),
        };
        let chosen = here.or_else(|| {
            let run = fitting().or_else(|| self.by_length.last());
            run.map(|(length, first)| (*first, *length))
        });
        let Some((first, length)) = chosen else {
            return;
        };
        self.drop_run(first, length);
        let from = match here {
            // The places before the last allocated one stay in a run of their own.
            Some(_) if first < after.start => {
                self.put(first, after.start - first);
                after.start
            }
            _ => first,
        };
        self.current = from..first + length;
    }

    /// Allocates a place.
    pub(super) fn take(&mut self) -> Option<u32> {
        if self.current.is_empty() {
            self.expect(1);
        }
        let place = self.current.next()?;
        self.count -= 1;
        Some(place)
    }

    /// Adds a run, merged with its neighbours.
    fn merge(&mut self, run: Range<u32>) {
        let (mut first, mut end) = (run.start, run.end);
        if run.is_empty() {
            return;
        }
        let before = self.runs.range(..first).next_back();
        if let Some((&start, &length)) = before.filter(|(start, length)| *start + *length == first)
        {
            self.drop_run(start, length);
            first = start;
        }
        if let Some(&length) = self.runs.get(&end) {
            self.drop_run(end, length);
            end += length;
        }
        self.put(first, end - first);
    }

    fn put(&mut self, first: u32, length: u32) {
        self.runs.insert(first, length);
        self.by_length.insert((length, first));
    }

    fn drop_run(&mut self, first: u32, length: u32) {
        self.runs.remove(&first);
        self.by_length.remove(&(length, first));
    }

    /// Asserts that runs are not adjacent, and that both orders and the count agree.
    pub(super) fn check_integrity(&self) {
        let lengths = self.runs.iter().map(|(first, length)| (*length, *first));
        let lengths: BTreeSet<(u32, u32)> = lengths.collect();
        assert_eq!(lengths, self.by_length, "both orders of free runs");
        assert_eq!(self.iter().count(), self.count, "the number of free places");
        let mut end = None;
        for (first, length) in &self.runs {
            assert!(
                *length > 0 && end.is_none_or(|end| end < *first),
                "run {first}"
            );
            end = Some(first + length);
        }
    }
}

#[cfg(test)]
mod tests {
    use kvtile_testkit::disk::SplitMix64;

    use super::*;

    const PLACES: u32 = 200;

    fn take(free: &mut FreePlaces, count: usize) -> Vec<u32> {
        free.expect(count);
        (0..count).map_while(|_| free.take()).collect()
    }

    fn free(ranges: &[Range<u32>]) -> FreePlaces {
        let mut taken = vec![true; PLACES as usize];
        for place in ranges.iter().cloned().flatten() {
            taken[place as usize] = false;
        }
        FreePlaces::of(&taken)
    }

    #[test]
    fn a_batch_lies_side_by_side_where_a_run_has_room() {
        let mut places = free(&[1..5, 6..8, 9..17]);
        assert_eq!(take(&mut places, 3), [1, 2, 3]);
        // The first run has one place left, which is too few.
        assert_eq!(take(&mut places, 2), [6, 7]);
        assert_eq!(take(&mut places, 7), [9, 10, 11, 12, 13, 14, 15]);
        assert_eq!(take(&mut places, 1), [16]);
        assert_eq!(take(&mut places, 9), [4]);
        assert!(take(&mut places, 1).is_empty());
    }

    #[test]
    fn a_batch_that_no_run_fits_takes_the_longest_runs_first() {
        let mut places = free(&[1..5, 6..8, 9..17]);
        assert_eq!(
            take(&mut places, 13),
            [9, 10, 11, 12, 13, 14, 15, 16, 1, 2, 3, 4, 6]
        );
    }

    #[test]
    fn single_blocks_follow_each_other_and_reuse_freed_neighbours() {
        let mut places = free(&[0..2, 50..60]);
        assert_eq!(take(&mut places, 1), [50]);
        assert_eq!(take(&mut places, 1), [51]);
        places.insert(60);
        places.insert(51);
        assert_eq!(take(&mut places, 9), [52, 53, 54, 55, 56, 57, 58, 59, 60]);
    }

    /// Random allocations and frees: no place is allocated twice, and a batch for which a run has
    /// room is contiguous.
    #[test]
    fn no_place_is_lost_or_allocated_twice() {
        for seed in 0..300 {
            let mut numbers = SplitMix64::new(seed);
            let taken: Vec<bool> = (0..PLACES).map(|_| numbers.once_in(2)).collect();
            let mut places = FreePlaces::of(&taken);
            let mut model: Vec<bool> = taken;
            for _ in 0..200 {
                let most = [2, 6, 40][numbers.index(3)];
                let count = numbers.index(most);
                if numbers.once_in(2) {
                    let longest = model.chunk_by(|a, b| a == b).filter(|run| !run[0]);
                    let longest = longest.map(<[bool]>::len).max().unwrap_or(0);
                    let got = take(&mut places, count);
                    let free = model.iter().filter(|taken| !**taken).count();
                    assert_eq!(got.len(), count.min(free), "seed {seed}");
                    let side_by_side = got.windows(2).all(|pair| pair[0] + 1 == pair[1]);
                    assert!(longest < count || side_by_side, "seed {seed}: {got:?}");
                    for place in got {
                        assert!(!model[place as usize], "seed {seed}: {place} twice");
                        model[place as usize] = true;
                    }
                } else {
                    for _ in 0..count {
                        let place = numbers.index(PLACES as usize);
                        if model[place] {
                            model[place] = false;
                            places.insert(u32::try_from(place).unwrap());
                        }
                    }
                }
                places.check_integrity();
                let mut left: Vec<u32> = places.iter().collect();
                left.sort_unstable();
                let expected = (0..PLACES).filter(|place| !model[*place as usize]);
                assert_eq!(left, expected.collect::<Vec<_>>(), "seed {seed}");
                assert_eq!(places.len(), left.len());
            }
        }
    }
}
