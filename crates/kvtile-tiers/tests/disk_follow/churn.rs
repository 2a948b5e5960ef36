//! A writer that evicts and rewrites all the time, on its own thread, with followers that read
//! meanwhile: every byte that is served is right, and nothing counts as damaged.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use kvtile_testkit::disk::SplitMix64;
use kvtile_tiers::tier::{Tier, TierMiss};

use crate::common::{FollowRig, GROUP, NOW, PATIENCE, chain, ended, keys};

const FOLLOWERS: u64 = 3;
const CHAINS: u64 = 12;
const CHAIN_BLOCKS: u32 = 9;

/// What the followers saw.
#[derive(Default)]
struct ChurnCounts {
    hits: AtomicU64,
    absent: AtomicU64,
    /// Reads that missed although the index had the block.
    raced: AtomicU64,
}

/// How often the writer is opened again, and the folder is cleared.
#[derive(Clone, Copy)]
struct ChurnRates {
    reopen: u64,
    clear: u64,
}

fn churn(seed: u64, length: Duration, rates: ChurnRates) {
    let rig = FollowRig::new(2);
    let counts = ChurnCounts::default();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for number in 0..FOLLOWERS {
            let (rig, counts, is_over) = (&rig, &counts, &is_over);
            scope.spawn(move || follow(rig, seed + 100 * number, counts, is_over));
        }
        let end = EndOfChurn(&is_over);
        write(&rig, seed, length, rates);
        drop(end);
    });
    let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let (hits, absent, raced) = (of(&counts.hits), of(&counts.absent), of(&counts.raced));
    println!("seed {seed}: {hits} hits, {absent} absent, {raced} of them known to the index");
    assert!(hits > 100, "{hits} hits");
}

/// Ends the followers, also if the writer panics.
struct EndOfChurn<'a>(&'a AtomicBool);

impl Drop for EndOfChurn<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn write(rig: &FollowRig, seed: u64, length: Duration, rates: ChurnRates) {
    let mut numbers = SplitMix64::new(seed);
    let mut writer = Some(rig.writer());
    let start = Instant::now();
    while start.elapsed() < length {
        let Some(tier) = &writer else {
            let bytes = (20 + numbers.below(60)) * 4096;
            writer = Some(rig.writer_of(bytes));
            continue;
        };
        let blocks = chain(numbers.below(CHAINS), CHAIN_BLOCKS);
        match numbers.below(4) {
            0 => drop(tier.tier.forget(GROUP, &keys(&blocks[numbers.index(9)..]))),
            1 => drop(tier.tier.evict(numbers.index(6), NOW)),
            _ => drop(tier.write(&blocks)),
        }
        if numbers.once_in(2) {
            tier.sync();
        }
        if numbers.once_in(rates.reopen) {
            writer = None;
            if numbers.once_in(rates.clear) {
                rig.clear();
            }
        }
    }
}

fn follow(rig: &FollowRig, seed: u64, counts: &ChurnCounts, is_over: &AtomicBool) {
    let mut numbers = SplitMix64::new(seed);
    let reader = rig.follower();
    let add = |count: &AtomicU64| count.fetch_add(1, Ordering::Relaxed);
    while !is_over.load(Ordering::Relaxed) {
        let blocks = chain(numbers.below(CHAINS), CHAIN_BLOCKS);
        match numbers.below(3) {
            // A refresh may meet a file that is being resized; that is a failure, and no more.
            0 => drop(ended(&reader.tier.ask(GROUP, &keys(&blocks)))),
            1 => drop(reader.found(&blocks)),
            _ => {}
        }
        let held = reader.held(&blocks);
        for (at, outcome) in reader.read(&blocks).into_iter().enumerate() {
            match outcome {
                Ok(()) => add(&counts.hits),
                Err(TierMiss::Absent) if at < held => add(&counts.raced) + add(&counts.absent),
                Err(TierMiss::Absent) => add(&counts.absent),
                Err(miss) => panic!("seed {seed}: {:?}: {miss:?}", blocks[at]),
            };
        }
    }
    reader.tier.check_integrity();
    let start = Instant::now();
    // The end of the churn is an ordinary folder again.
    while ended(&reader.tier.ask(GROUP, &[])).failure.is_some() {
        assert!(start.elapsed() < PATIENCE);
    }
}

#[test]
fn every_byte_is_right_while_the_writer_churns() {
    let rates = ChurnRates {
        reopen: 0,
        clear: 0,
    };
    for seed in [1, 2] {
        churn(seed, Duration::from_secs(2), rates);
    }
}

#[test]
fn every_byte_is_right_while_the_folder_is_resized_cleared_and_created() {
    let rates = ChurnRates {
        reopen: 6,
        clear: 2,
    };
    for seed in [3, 4] {
        churn(seed, Duration::from_secs(2), rates);
    }
}
