//! A store that hangs, and one that misbehaves in every way.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use kvtile_blocks::Tick;
use kvtile_shared::{memory::MemoryStore, store::SharedStore, tier::SharedTierSettings};
use kvtile_testkit::{
    disk::SplitMix64,
    shared::{SharedTierRig, SimulatedStore, StoreFaults},
};
use kvtile_tiers::{
    RequestError, TierError,
    tier::{BlockName, NotWritten, Tier, TierMiss},
};

const PATIENCE: Duration = Duration::from_secs(20);

fn settings() -> SharedTierSettings {
    SharedTierSettings::new()
        .bundle_blocks(4)
        .read_within(Duration::from_millis(200))
        .write_within(Duration::from_millis(300))
        .close_within(Duration::from_millis(500))
        .absent_for(Duration::ZERO)
}

fn rig(store: &Arc<SimulatedStore>, threads: usize) -> SharedTierRig {
    let store = Arc::clone(store) as Arc<dyn SharedStore>;
    SharedTierRig::open(store, settings(), (4, threads))
}

/// One that compresses.
fn packing_rig(store: &Arc<SimulatedStore>, threads: usize) -> SharedTierRig {
    let store = Arc::clone(store) as Arc<dyn SharedStore>;
    SharedTierRig::open(store, settings().compress(true), (4, threads))
}

#[test]
fn a_read_that_hangs_ends_by_its_deadline_and_gives_its_memory_back() {
    let store = SimulatedStore::new(MemoryStore::new(), 1);
    let chain = SharedTierRig::chain(1, 8);
    rig(&store, 2).write(&chain);
    let reader = rig(&store, 2);
    assert_eq!(reader.ask(&chain).leading, 8);
    let shut = store.gate().shut(2);
    let start = Instant::now();
    let (reserved, read) = reader.begin_read(&chain);
    let report = read.wait_timeout(PATIENCE).unwrap();
    let took = start.elapsed();
    assert!(
        took >= Duration::from_millis(200) && took < Duration::from_millis(1500),
        "{took:?}"
    );
    for outcome in report.blocks.iter() {
        let Err(TierMiss::Failed(TierError::Request(RequestError::Late { .. }))) = outcome else {
            panic!("{outcome:?}");
        };
    }
    // The calls of the store have not returned, and hold no memory of the batch.
    assert!(reserved.iter().all(|block| block.is_let_go()));
    assert_eq!(reader.tier().counters().late, 2);
    // The positive entries died, and the breaker is open.
    assert!(!reader.tier().has(chain[0].group, &chain[0].key));
    assert_eq!(reader.ask(&chain).leading, 0);
    assert!(reader.tier().counters().breaker_open > 0);
    drop(shut);
    std::thread::sleep(Duration::from_millis(1100));
    assert_eq!(reader.ask(&chain).leading, 8);
    reader.read_all(&chain);
}

#[test]
fn writes_that_hang_hold_no_host_memory_and_are_refused_after_a_while() {
    let store = SimulatedStore::new(MemoryStore::new(), 1);
    let writer = rig(&store, 2);
    let shut = store.gate().shut(100);
    for number in 0..3 {
        let chain = SharedTierRig::chain(number, 4);
        let outcomes = writer.begin_write(&chain).wait_timeout(PATIENCE).unwrap();
        assert!(outcomes.blocks.iter().all(Result::is_ok), "{outcomes:?}");
    }
    assert!(writer.host().wait_until_free(PATIENCE));
    std::thread::sleep(Duration::from_millis(500));
    let chain = SharedTierRig::chain(7, 4);
    let outcomes = writer.begin_write(&chain).wait_timeout(PATIENCE).unwrap();
    let refused = |outcome: &Result<_, NotWritten>| matches!(outcome, Err(NotWritten::Failed(_)));
    assert!(refused(&outcomes.blocks[0]), "{outcomes:?}");
    drop(shut);
    assert!(writer.tier().wait_for_writes(PATIENCE));
}

#[test]
fn a_tier_closes_while_its_store_hangs() {
    let store = SimulatedStore::new(MemoryStore::new(), 1);
    let chain = SharedTierRig::chain(1, 8);
    rig(&store, 2).write(&chain);
    let reader = rig(&store, 2);
    assert_eq!(reader.ask(&chain).leading, 8);
    let shut = store.gate().shut(100);
    let (_reserved, read) = reader.begin_read(&chain);
    let written = reader.begin_write(&SharedTierRig::chain(2, 8));
    let synced = reader.tier().sync();
    let start = Instant::now();
    let host = reader.close();
    assert!(
        start.elapsed() < Duration::from_secs(3),
        "{:?}",
        start.elapsed()
    );
    assert!(read.is_complete() && written.is_complete() && synced.is_complete());
    drop((read, written));
    drop(shut);
    drop(_reserved);
    assert!(host.wait_until_free(PATIENCE));
}

/// A chain, of one of some families that share their first blocks.
fn some_chain(numbers: &mut SplitMix64) -> Vec<BlockName> {
    let family = numbers.below(3);
    let blocks = 1 + u32::try_from(numbers.below(14)).unwrap();
    let mut chain = SharedTierRig::chain(family, blocks);
    if numbers.once_in(2) {
        let at = numbers.index(chain.len());
        let other = SharedTierRig::chain(10 + family * 4 + numbers.below(4), blocks);
        // Another chain that branches off; where it does is part of its keys.
        chain.truncate(at);
        let branch = other.into_iter().skip(at).map(|mut name| {
            let mut key = *name.key.as_bytes();
            key[15] = u8::try_from(at).unwrap() + 1;
            name.key = kvtile_blocks::BlockKey::from_bytes(key);
            name
        });
        chain.extend(branch);
    }
    chain
}

fn simulate(seed: u64, threads: usize, steps: usize) -> (u64, u64) {
    println!("seed {seed}, {threads} threads");
    let store = SimulatedStore::new(MemoryStore::new(), seed);
    let mut numbers = SplitMix64::new(seed.wrapping_mul(31));
    let mut rigs = [rig(&store, threads), packing_rig(&store, threads)];
    let (mut came, mut missed) = (0, 0);
    for step in 0..steps {
        // Without faults at times, so that breakers close and blocks come.
        let faults = match step % 100 {
            0..70 => StoreFaults::all(25),
            _ => StoreFaults::default(),
        };
        store.set_faults(faults);
        let at = numbers.index(rigs.len());
        let chain = some_chain(&mut numbers);
        match numbers.below(12) {
            0..=4 => drop(rigs[at].write(&chain)),
            5..=9 => {
                drop(rigs[at].ask(&chain));
                // The rig compares the bytes.
                for outcome in rigs[at].read(&chain) {
                    match outcome {
                        Ok(()) => came += 1,
                        Err(_) => missed += 1,
                    }
                }
            }
            10 => drop(rigs[at].tier().evict(numbers.index(8), Tick(0))),
            _ => {
                let open = [rig, packing_rig][at];
                rigs[at] = open(&store, threads);
            }
        }
        rigs[at].tier().check_integrity();
    }
    (came, missed)
}

#[test]
fn a_store_that_misbehaves_serves_no_wrong_byte() {
    let (mut came, mut missed) = (0, 0);
    for seed in 0..12 {
        let (some, others) = simulate(seed, usize::try_from(seed % 2).unwrap() * 2, 300);
        came += some;
        missed += others;
    }
    println!("{came} blocks came, {missed} did not");
    assert!(came > 1000 && missed > 1000, "{came} {missed}");
}

#[test]
fn queries_of_a_store_that_hangs_for_ever_end_at_once_after_a_while() {
    let store = SimulatedStore::new(MemoryStore::new(), 1);
    let chain = SharedTierRig::chain(1, 64);
    rig(&store, 2).write(&chain);
    let reader = rig(&store, 2);
    assert_eq!(reader.ask(&chain).leading, 64);
    // All calls that the limit lets through hang.
    let shut = store.gate().shut(1000);
    let (_reserved, read) = reader.begin_read(&chain);
    assert!(read.wait_timeout(PATIENCE).is_some());
    let mut slow = 0;
    let end = Instant::now() + Duration::from_secs(4);
    while Instant::now() < end {
        let start = Instant::now();
        assert_eq!(reader.ask(&chain).leading, 0);
        slow += u32::from(start.elapsed() > Duration::from_millis(100));
        std::thread::sleep(Duration::from_millis(20));
    }
    // One trial at the end of each pause of 1, 2 and 4 seconds.
    assert!((1..=3).contains(&slow), "{slow} slow queries");
    drop(shut);
}
