//! The evictable runs, in one ordered set for each class and priority, by last use. In each set
//! only the oldest or the newest run can have the lowest score.

use std::collections::BTreeSet;

use super::{
    class::{BlockClass, CLASSES},
    runs::{BlockRun, RunLabel},
};

/// The maximum priority in each direction.
pub(super) const PRIORITY_MAX: i8 = 4;

/// The number of sets.
const SETS: usize = CLASSES * 9;

/// The time for blocks that never expire.
pub(super) const NEVER: u32 = u32::MAX;

/// The evictable runs.
#[derive(Clone, Debug)]
pub(super) struct EvictableLeaves {
    sets: Vec<BTreeSet<(u64, u32)>>,
    /// One bit for each set, set while the set is not empty.
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
            sets: vec![BTreeSet::new(); SETS],
            occupied: [0; SETS.div_ceil(64)],
            expiring: BTreeSet::new(),
        }
    }

    /// Adds a run that is now evictable.
    pub(super) fn insert(&mut self, index: u32, run: &BlockRun) {
        let set = set(&run.label);
        if let Some(leaves) = self.sets.get_mut(set) {
            assert!(
                leaves.insert((run.touch, index)),
                "run {index} is listed twice"
            );
        }
        if let Some(word) = self.occupied.get_mut(set / 64) {
            *word |= 1 << (set % 64);
        }
        if run.label.expires != NEVER {
            self.expiring.insert((run.label.expires, index));
        }
    }

    /// Removes a run.
    pub(super) fn remove(&mut self, index: u32, run: &BlockRun) {
        let set = set(&run.label);
        let Some(leaves) = self.sets.get_mut(set) else {
            return;
        };
        assert!(
            leaves.remove(&(run.touch, index)),
            "run {index} is not listed"
        );
        if leaves.is_empty()
            && let Some(word) = self.occupied.get_mut(set / 64)
        {
            *word &= !(1 << (set % 64));
        }
        if run.label.expires != NEVER {
            self.expiring.remove(&(run.label.expires, index));
        }
    }

    /// A run that has expired.
    pub(super) fn expired(&self, now: u32) -> Option<u32> {
        let &(expires, run) = self.expiring.first()?;
        (expires <= now).then_some(run)
    }

    /// The oldest and the newest run of each set.
    pub(super) fn candidates(&self) -> impl Iterator<Item = LeafCandidate> + '_ {
        let words = self.occupied.iter().enumerate();
        let sets = words.flat_map(|(at, &word)| {
            let next = |&bits: &u64| Some(bits & (bits.wrapping_sub(1)));
            std::iter::successors(Some(word), next)
                .take_while(|&bits| bits != 0)
                .map(move |bits| at * 64 + bits.trailing_zeros() as usize)
        });
        sets.flat_map(|set| {
            let class = BlockClass::from_index(set % CLASSES);
            let priority = i8::try_from(set / CLASSES).unwrap_or(0) - PRIORITY_MAX;
            let leaves = self.sets.get(set);
            let ends = leaves.map(|leaves| (leaves.first(), leaves.last()));
            let (first, last) = ends.unwrap_or((None, None));
            let last = last.filter(|&last| Some(last) != first);
            let both = first.into_iter().chain(last);
            both.map(move |&(touch, run)| LeafCandidate {
                run,
                touch,
                class,
                priority,
            })
        })
    }

    /// The number of evictable runs.
    pub(super) fn len(&self) -> usize {
        self.sets.iter().map(BTreeSet::len).sum()
    }

    /// Asserts that the bits match the sets.
    pub(super) fn check(&self, expiring: usize) {
        for (index, leaves) in self.sets.iter().enumerate() {
            let bit = self
                .occupied
                .get(index / 64)
                .map(|word| word >> (index % 64) & 1);
            assert_eq!(bit == Some(1), !leaves.is_empty(), "set {index}");
        }
        assert_eq!(self.expiring.len(), expiring, "leaves that expire");
    }
}

fn set(label: &RunLabel) -> usize {
    let priority = label.priority.clamp(-PRIORITY_MAX, PRIORITY_MAX) + PRIORITY_MAX;
    usize::from(priority.unsigned_abs()) * CLASSES + label.class.index()
}
