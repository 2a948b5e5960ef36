//! The evictable runs, in one order for each class and priority, by last use. In each order only
//! the oldest or the newest run can have the lowest score.

use std::collections::BTreeSet;

use super::{
    class::{BlockClass, CLASSES},
    entry::RunEntries,
    order::LeafOrder,
    runs::{RunLabel, RunTree},
};

/// The maximum priority in each direction.
pub(super) const PRIORITY_MAX: i8 = 4;

/// The number of orders.
const SETS: usize = CLASSES * 9;

/// The time for blocks that never expire.
pub(super) const NEVER: u32 = u32::MAX;

/// The evictable runs.
#[derive(Clone, Debug)]
pub(super) struct EvictableLeaves {
    sets: Vec<LeafOrder>,
    /// One bit for each order, set while it is not empty.
    occupied: [u64; SETS.div_ceil(64)],
    /// The runs that expire, by time.
    expiring: BTreeSet<(u32, u32)>,
}

/// A run that may have the lowest score.
#[derive(Clone, Copy, Debug)]
pub(super) struct LeafCandidate {
    /// The run.
    pub(super) run: u32,
    /// The clock at its last use.
    pub(super) touch: u64,
    /// The class of its blocks.
    pub(super) class: BlockClass,
    /// The callers' priority.
    pub(super) priority: i8,
}

impl EvictableLeaves {
    /// No leaves.
    pub(super) fn new() -> EvictableLeaves {
        EvictableLeaves {
            sets: vec![LeafOrder::new(); SETS],
            occupied: [0; SETS.div_ceil(64)],
            expiring: BTreeSet::new(),
        }
    }

    /// Adds a run that is now evictable.
    pub(super) fn insert(&mut self, runs: &mut RunTree, run: u32) {
        assert!(!runs.is_listed(run), "run {run} is listed twice");
        let label = runs.label(run);
        let set = set(&label);
        if let Some(leaves) = self.sets.get_mut(set) {
            leaves.insert(runs.entries_mut(), run);
        }
        if let Some(word) = self.occupied.get_mut(set / 64) {
            *word |= 1 << (set % 64);
        }
        if label.expires != NEVER {
            self.expiring.insert((label.expires, run));
        }
    }

    /// Removes a run.
    pub(super) fn remove(&mut self, runs: &mut RunTree, run: u32) {
        let label = runs.label(run);
        let set = set(&label);
        let Some(leaves) = self.sets.get_mut(set) else {
            return;
        };
        leaves.remove(runs.entries_mut(), run);
        if leaves.is_empty()
            && let Some(word) = self.occupied.get_mut(set / 64)
        {
            *word &= !(1 << (set % 64));
        }
        if label.expires != NEVER {
            self.expiring.remove(&(label.expires, run));
        }
    }

    /// A run that has expired.
    pub(super) fn expired(&self, now: u32) -> Option<u32> {
        let &(expires, run) = self.expiring.first()?;
        (expires <= now).then_some(run)
    }

    /// The oldest and the newest run of each order.
    pub(super) fn candidates<'a>(
        &'a self,
        runs: &'a RunTree,
    ) -> impl Iterator<Item = LeafCandidate> + 'a {
        let words = self.occupied.iter().enumerate();
        let sets = words.flat_map(|(at, &word)| {
            let next = |&bits: &u64| Some(bits & (bits.wrapping_sub(1)));
            std::iter::successors(Some(word), next)
                .take_while(|&bits| bits != 0)
                .map(move |bits| at * 64 + bits.trailing_zeros() as usize)
        });
        sets.flat_map(move |set| {
            let class = BlockClass::from_index(set % CLASSES);
            let priority = i8::try_from(set / CLASSES).unwrap_or(0) - PRIORITY_MAX;
            let ends = self.sets.get(set).and_then(LeafOrder::ends);
            let first = ends.map(|(first, _)| first);
            let last = ends.filter(|(first, last)| first != last);
            let both = first.into_iter().chain(last.map(|(_, last)| last));
            both.map(move |run| LeafCandidate {
                run,
                touch: runs.touched(run),
                class,
                priority,
            })
        })
    }

    /// The number of evictable runs.
    pub(super) fn len(&self) -> usize {
        self.sets.iter().map(LeafOrder::len).sum()
    }

    /// Asserts the orders, and that the bits match them.
    pub(super) fn check(&self, runs: &RunEntries, expiring: usize) {
        for (index, leaves) in self.sets.iter().enumerate() {
            let bit = self
                .occupied
                .get(index / 64)
                .map(|word| word >> (index % 64) & 1);
            assert_eq!(bit == Some(1), !leaves.is_empty(), "order {index}");
            leaves.check(runs);
        }
        assert_eq!(self.expiring.len(), expiring, "leaves that expire");
    }
}

fn set(label: &RunLabel) -> usize {
    let priority = label.priority.clamp(-PRIORITY_MAX, PRIORITY_MAX) + PRIORITY_MAX;
    usize::from(priority.unsigned_abs()) * CLASSES + label.class.index()
}
