//! Replays of generated traces: the policies against naive references, and what they promise.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::VecDeque;

use kvtile_blocks::policy::{PolicyKind, PolicySettings};
use kvtile_tiers::replay::{
    DryCache, RealCache, Trace, Workload, belady, generate, infinite, replay,
};

/// A cache that is written for being read, not for speed: queues are searched from end to end.
trait Naive {
    fn has(&self, block: u32) -> bool;
    fn touch_or_insert(&mut self, block: u32);
}

struct NaiveLru(usize, VecDeque<u32>);

impl Naive for NaiveLru {
    fn has(&self, block: u32) -> bool {
        self.1.contains(&block)
    }

    fn touch_or_insert(&mut self, block: u32) {
        if self.has(block) {
            self.1.retain(|&other| other != block);
        } else if self.1.len() == self.0 {
            self.1.pop_front();
        }
        self.1.push_back(block);
    }
}

#[derive(Default)]
struct NaiveArc {
    capacity: usize,
    target: f64,
    once: VecDeque<u32>,
    again: VecDeque<u32>,
    once_ghosts: VecDeque<u32>,
    again_ghosts: VecDeque<u32>,
}

impl NaiveArc {
    /// REPLACE of the paper.
    fn replace(&mut self, in_again_ghosts: bool) {
        let once = self.once.len() as f64;
        let tie = in_again_ghosts && once == self.target;
        if !self.once.is_empty() && (once > self.target || tie) || self.again.is_empty() {
            self.once_ghosts.extend(self.once.pop_front());
        } else {
            self.again_ghosts.extend(self.again.pop_front());
        }
    }
}

impl Naive for NaiveArc {
    fn has(&self, block: u32) -> bool {
        self.once.contains(&block) || self.again.contains(&block)
    }

    /// The paper's algorithm, but for one thing: room is made before the target moves, since a pool
    /// makes room before it knows for which key.
    fn touch_or_insert(&mut self, block: u32) {
        if self.has(block) {
            self.once.retain(|&other| other != block);
            self.again.retain(|&other| other != block);
            self.again.push_back(block);
            return;
        }
        if self.once.len() + self.again.len() == self.capacity {
            self.replace(false);
        }
        let (once, again) = (
            self.once_ghosts.len() as f64,
            self.again_ghosts.len() as f64,
        );
        let capacity = self.capacity as f64;
        if self.once_ghosts.contains(&block) {
            self.target = (self.target + (again / once).max(1.0)).min(capacity);
            self.once_ghosts.retain(|&other| other != block);
            self.again.push_back(block);
        } else if self.again_ghosts.contains(&block) {
            self.target = (self.target - (once / again).max(1.0)).max(0.0);
            self.again_ghosts.retain(|&other| other != block);
            self.again.push_back(block);
        } else {
            self.once.push_back(block);
        }
        while self.once.len() + self.once_ghosts.len() > self.capacity
            && self.once_ghosts.pop_front().is_some()
        {}
        let all = |arc: &NaiveArc| {
            let stored = arc.once.len() + arc.again.len();
            stored + arc.once_ghosts.len() + arc.again_ghosts.len()
        };
        while all(self) > 2 * self.capacity && self.again_ghosts.pop_front().is_some() {}
    }
}

#[derive(Default)]
struct NaiveS3Fifo {
    capacity: usize,
    small: VecDeque<(u32, u8)>,
    main: VecDeque<(u32, u8)>,
    ghosts: VecDeque<u32>,
}

impl NaiveS3Fifo {
    fn evict_from_main(&mut self) {
        while let Some((block, uses)) = self.main.pop_front() {
            if uses == 0 {
                return;
            }
            self.main.push_back((block, uses - 1));
        }
    }

    fn evict(&mut self) {
        let small = (self.capacity / 10).max(1);
        if self.small.len() >= small || self.main.is_empty() {
            while let Some((block, uses)) = self.small.pop_front() {
                if uses < 2 {
                    self.ghosts.push_back(block);
                    if self.ghosts.len() > self.capacity {
                        self.ghosts.pop_front();
                    }
                    return;
                }
                self.main.push_back((block, 0));
                if self.main.len() > self.capacity - small {
                    break;
                }
            }
        }
        self.evict_from_main();
    }
}

impl Naive for NaiveS3Fifo {
    fn has(&self, block: u32) -> bool {
        let mut all = self.small.iter().chain(&self.main);
        all.any(|&(other, _)| other == block)
    }

    fn touch_or_insert(&mut self, block: u32) {
        let mut all = self.small.iter_mut().chain(&mut self.main);
        if let Some((_, uses)) = all.find(|(other, _)| *other == block) {
            *uses = (*uses + 1).min(3);
            return;
        }
        if self.small.len() + self.main.len() == self.capacity {
            self.evict();
        }
        if self.ghosts.contains(&block) {
            self.ghosts.retain(|&other| other != block);
            self.main.push_back((block, 0));
        } else {
            self.small.push_back((block, 0));
        }
    }
}

/// Hits of a naive cache: the last block of a request is used first.
fn naive_hits(trace: &Trace, cache: &mut dyn Naive) -> u64 {
    let mut hits = 0;
    for request in trace.requests() {
        let leading = request.blocks.iter().take_while(|&&block| cache.has(block));
        hits += leading.count() as u64;
        for &block in request.blocks.iter().rev() {
            cache.touch_or_insert(block);
        }
    }
    hits
}

fn hits(trace: &Trace, kind: PolicyKind, capacity: u32) -> u64 {
    let settings = PolicySettings::from(kind);
    let mut cache = DryCache::new(&settings, capacity).unwrap();
    let totals = replay(trace, &mut cache, &mut |_| {}).unwrap();
    cache.pool().check_integrity();
    totals.hit_blocks
}

#[test]
fn stock_policies_hit_what_their_naive_references_hit() {
    for (workload, seed) in Workload::ALL.into_iter().zip(1..) {
        let trace = generate(workload, 300, seed).unwrap();
        for capacity in [60, 150, 400, 1000] {
            println!("{workload:?}, seed {seed}, {capacity} blocks");
            let room = usize::try_from(capacity).unwrap();
            let mut lru = NaiveLru(room, VecDeque::new());
            let mut arc = NaiveArc {
                capacity: room,
                ..NaiveArc::default()
            };
            let mut s3_fifo = NaiveS3Fifo {
                capacity: room,
                ..NaiveS3Fifo::default()
            };
            for (kind, naive) in [
                (PolicyKind::Lru, &mut lru as &mut dyn Naive),
                (PolicyKind::Arc, &mut arc),
                (PolicyKind::S3Fifo, &mut s3_fifo),
            ] {
                // A request of 240 blocks in a cache of fewer meets itself, from the other end.
                if kind == PolicyKind::Lru && capacity < 250 {
                    continue;
                }
                assert_eq!(
                    hits(&trace, kind, capacity),
                    naive_hits(&trace, naive),
                    "{kind}"
                );
            }
        }
    }
}

#[test]
fn the_bounds_are_bounds_and_the_default_is_near_them() {
    for workload in Workload::ALL {
        let trace = generate(workload, 1500, 7).unwrap();
        let everything = infinite(&trace).hit_blocks;
        for capacity in [500, 2000, 8000] {
            let best = belady(&trace, capacity as usize).hit_blocks;
            assert!(best <= everything, "{workload:?}");
            for kind in PolicyKind::ALL {
                let hits = hits(&trace, kind, capacity);
                assert!(
                    hits <= best,
                    "{workload:?}, {kind}, {capacity}: {hits} of {best}"
                );
            }
            let default = hits(&trace, PolicyKind::Gittins, capacity);
            assert!(
                default * 10 >= best * 7,
                "{workload:?}, {capacity}: {default} of {best}"
            );
        }
        let room = u32::try_from(trace.distinct_blocks()).unwrap();
        for kind in PolicyKind::ALL {
            assert_eq!(hits(&trace, kind, room), everything, "{workload:?}, {kind}");
        }
        assert_eq!(belady(&trace, room as usize).hit_blocks, everything);
    }
}

#[test]
fn one_long_scan_does_not_empty_the_cache_of_the_default() {
    let trace = generate(Workload::Scans, 4000, 3).unwrap();
    let (default, lru) = (
        hits(&trace, PolicyKind::Gittins, 2000),
        hits(&trace, PolicyKind::Lru, 2000),
    );
    assert!(default * 100 > lru * 103, "{default} against {lru}");
}

#[test]
fn more_requests_than_memory_is_for_are_not_made_up() {
    for requests in [(1 << 20) + 1, 1 << 36, usize::MAX] {
        let refused = generate(Workload::Chat, requests, 1).unwrap_err();
        assert!(
            refused.to_string().contains(&requests.to_string()),
            "{refused}"
        );
    }
}

#[test]
fn blocks_of_any_size_are_replayed_or_refused() {
    let trace = generate(Workload::Chat, 20, 1).unwrap();
    for bytes in [0, 1, 3, (1 << 40) + 2, 1 << 62, u64::MAX - 1, u64::MAX] {
        for blocks in [0, 1, u32::MAX] {
            let refused = RealCache::open(&trace, (bytes, blocks), |settings| settings);
            assert!(refused.is_err(), "{bytes} bytes, {blocks} blocks");
        }
    }
    assert!(RealCache::open(&trace, (4096, u32::MAX), |settings| settings).is_err());
}
