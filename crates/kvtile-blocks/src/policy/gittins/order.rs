//! Leaves by last use: a search tree whose links are in the runs' entries, so an evictable run
//! takes no memory of its own. It knows no classes and no scores.
//!
//! The tree is a treap. Each run has a rank, a hash of its number, and no leaf is below one of a
//! lower rank. So the tree is as deep as that of a random order of insertions, whatever the order
//! of uses.

use super::entry::{NO_LINK, RunEntries};

/// The leaves of one class and priority.
#[derive(Clone, Copy, Debug)]
pub(super) struct LeafOrder {
    root: u32,
    oldest: u32,
    newest: u32,
    len: u32,
}

/// A link of the tree.
#[derive(Clone, Copy)]
enum LeafLink {
    Root,
    Older(u32),
    Newer(u32),
}

impl LeafOrder {
    /// No leaves.
    pub(super) const fn new() -> LeafOrder {
        LeafOrder {
            root: NO_LINK,
            oldest: NO_LINK,
            newest: NO_LINK,
            len: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len as usize
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The leaf that was used longest ago, and the last one; the lower number of equal ones is the
    /// older.
    pub(super) fn ends(&self) -> Option<(u32, u32)> {
        (self.len > 0).then_some((self.oldest, self.newest))
    }

    /// Adds a run, which is in no order.
    pub(super) fn insert(&mut self, runs: &mut RunEntries, run: u32) {
        let key = key(runs, run);
        let mut link = LeafLink::Root;
        let mut at = self.root;
        while at != NO_LINK && rank(at) > rank(run) {
            (link, at) = next(runs, at, key);
        }
        // What was below the link is divided between the new leaf's two sides.
        runs[run].set_leaves(NO_LINK, NO_LINK);
        self.set(runs, link, run);
        let (mut older, mut newer) = (LeafLink::Older(run), LeafLink::Newer(run));
        while at != NO_LINK {
            let (below, rest) = next(runs, at, key);
            match below {
                LeafLink::Older(_) => {
                    self.set(runs, newer, at);
                    newer = below;
                }
                _ => {
                    self.set(runs, older, at);
                    older = below;
                }
            }
            at = rest;
        }
        self.set(runs, older, NO_LINK);
        self.set(runs, newer, NO_LINK);
        if self.len == 0 || key < self::key(runs, self.oldest) {
            self.oldest = run;
        }
        if self.len == 0 || key > self::key(runs, self.newest) {
            self.newest = run;
        }
        self.len += 1;
    }

    /// Removes a run, which is in this order.
    pub(super) fn remove(&mut self, runs: &mut RunEntries, run: u32) {
        let key = key(runs, run);
        let mut link = LeafLink::Root;
        let mut at = self.root;
        while at != run {
            assert!(at != NO_LINK, "run {run} is not listed");
            (link, at) = next(runs, at, key);
        }
        let (mut older, mut newer) = runs[run].leaves();
        while older != NO_LINK && newer != NO_LINK {
            if rank(older) > rank(newer) {
                self.set(runs, link, older);
                link = LeafLink::Newer(older);
                older = runs[older].leaves().1;
            } else {
                self.set(runs, link, newer);
                link = LeafLink::Older(newer);
                newer = runs[newer].leaves().0;
            }
        }
        let rest = if older == NO_LINK { newer } else { older };
        self.set(runs, link, rest);
        runs[run].unlist();
        self.len -= 1;
        if run == self.oldest {
            self.oldest = last(self.root, |at| runs[at].leaves().0);
        }
        if run == self.newest {
            self.newest = last(self.root, |at| runs[at].leaves().1);
        }
    }

    fn set(&mut self, runs: &mut RunEntries, link: LeafLink, to: u32) {
        match link {
            LeafLink::Root => self.root = to,
            LeafLink::Older(run) => runs[run].set_older(to),
            LeafLink::Newer(run) => runs[run].set_newer(to),
        }
    }

    /// Asserts the order, the ranks, the ends and the length.
    pub(super) fn check(&self, runs: &RunEntries) {
        let mut path = Vec::new();
        let mut in_order = Vec::new();
        let mut at = self.root;
        while at != NO_LINK || !path.is_empty() {
            while at != NO_LINK {
                assert!(runs[at].is_listed(), "run {at} is in an order");
                for below in <[u32; 2]>::from(runs[at].leaves()) {
                    assert!(below == NO_LINK || rank(below) < rank(at), "rank of {at}");
                }
                path.push(at);
                at = runs[at].leaves().0;
            }
            if let Some(run) = path.pop() {
                in_order.push(run);
                at = runs[run].leaves().1;
            }
        }
        let keys = in_order.iter().map(|&run| key(runs, run));
        assert!(keys.is_sorted(), "leaves by last use");
        assert_eq!(in_order.len(), self.len(), "leaves of an order");
        let ends = in_order.first().copied().zip(in_order.last().copied());
        assert_eq!(self.ends(), ends, "ends of an order");
    }
}

fn key(runs: &RunEntries, run: u32) -> (u64, u32) {
    (runs[run].touched(), run)
}

/// The link of `at` on whose side the key is, and the leaf there.
#[inline]
fn next(runs: &RunEntries, at: u32, wanted: (u64, u32)) -> (LeafLink, u32) {
    let (older, newer) = runs[at].leaves();
    if wanted < key(runs, at) {
        (LeafLink::Older(at), older)
    } else {
        (LeafLink::Newer(at), newer)
    }
}

/// The last leaf on a path.
fn last(first: u32, next: impl Fn(u32) -> u32) -> u32 {
    let mut last = first;
    let mut at = first;
    while at != NO_LINK {
        last = at;
        at = next(at);
    }
    last
}

/// A permutation of the numbers, so no two runs have the same rank.
#[inline]
fn rank(run: u32) -> u32 {
    let mixed = (run ^ run >> 16).wrapping_mul(0x7feb_352d);
    let mixed = (mixed ^ mixed >> 15).wrapping_mul(0x846c_a68b);
    mixed ^ mixed >> 16
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use kvtile_random::SplitMix64;

    use super::{super::entry::RunEntry, *};

    #[test]
    fn an_order_equals_an_ordered_set() {
        for seed in 0..30 {
            println!("seed {seed}");
            let mut random = SplitMix64::new(seed);
            let mut runs = RunEntries::new(200);
            for block in 0..200 {
                runs.push(RunEntry::new(block, 0));
            }
            let mut order = LeafOrder::new();
            let mut set = BTreeSet::new();
            for clock in 0..2_000_u64 {
                let run = u32::try_from(random.below(200)).unwrap();
                if runs[run].is_listed() {
                    assert!(set.remove(&key(&runs, run)));
                    order.remove(&mut runs, run);
                } else {
                    runs[run].set_touched(clock / 8 - random.below(1 + clock / 16));
                    assert!(set.insert(key(&runs, run)));
                    order.insert(&mut runs, run);
                }
                let ends = set.first().zip(set.last());
                assert_eq!(order.ends(), ends.map(|(first, last)| (first.1, last.1)));
                if clock % 50 == 0 {
                    order.check(&runs);
                    assert_eq!(order.len(), set.len());
                }
            }
        }
    }

    #[test]
    fn leaves_in_order_of_use_make_no_deep_tree() {
        let count = 100_000;
        let mut runs = RunEntries::new(count as usize);
        let mut order = LeafOrder::new();
        for run in 0..count {
            runs.push(RunEntry::new(run, u64::from(run)));
            order.insert(&mut runs, run);
        }
        order.check(&runs);
        let depth = (0..count).map(|run| {
            let mut at = order.root;
            let mut depth = 0;
            while at != run {
                (_, at) = next(&runs, at, key(&runs, run));
                depth += 1;
            }
            depth
        });
        let depths: Vec<u32> = depth.collect();
        let mean = depths.iter().sum::<u32>() / count;
        let most = depths.iter().copied().max().unwrap();
        println!("{mean} levels on average, {most} at most");
        // A random order has about 2 ln n levels on average.
        assert!(mean < 30 && most < 60, "{mean}, {most}");
    }
}
