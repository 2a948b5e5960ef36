//! Blocks in flight between host memory and a tier: lookups find them, and loads of them wait.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use kvtile_blocks::{
    BlockKey,
    events::{TierId, TierKind},
};
use kvtile_testkit::tier::{MemoryTier, MisbehavingTier, TierFaults};
use kvtile_tiers::{
    cache::{Clock, LoadStop, TierSettings},
    tier::Tier,
};

use super::bounds::VirtualClock;
use super::common::{TestEngine, chain, engine_layout, settings, with_disk};
use super::keeper::{self, TestBuilder, TestCache};

pub(crate) fn id(name: &str) -> TierId {
    TierId::new(TierKind::Remote, name).unwrap()
}

fn memory(builder: TestBuilder, name: &str, room: usize) -> TestBuilder {
    let id = id(name);
    builder.tier(TierSettings::default(), move |context| {
        Ok(Arc::new(MemoryTier::new(id, room, context).unwrap()))
    })
}

/// A tier whose batches wait until they are released, while its gate is closed.
pub(crate) fn gated(builder: TestBuilder, answer_within: Duration) -> TestBuilder {
    gated_named(builder, "gated", answer_within)
}

pub(crate) fn gated_named(
    builder: TestBuilder,
    name: &'static str,
    answer_within: Duration,
) -> TestBuilder {
    let settings = TierSettings::default().answer_within(answer_within);
    builder.tier(settings, move |context| {
        let inner = MemoryTier::new(id(name), 64, context).unwrap();
        Ok(Arc::new(MisbehavingTier::new(Arc::new(inner), 1)) as Arc<dyn Tier>)
    })
}

pub(crate) fn gate(cache: &TestCache) -> &MisbehavingTier {
    gate_of(cache, "gated")
}

pub(crate) fn gate_of<'a>(cache: &'a TestCache, name: &str) -> &'a MisbehavingTier {
    let tier = cache.tier(id(name)).unwrap();
    tier.as_any().downcast_ref().unwrap()
}

pub(crate) const CLOSED: TierFaults = TierFaults {
    slow: 0,
    no_answer: 1,
    no_sync_answer: 0,
    lossy: 0,
    vanishing: 0,
    wrong_bytes: 0,
    read_error: 0,
    write_error: 0,
    sync_error: 0,
    denial: 0,
    wrong_count: 0,
    keeps_memory: 0,
};

pub(crate) fn open_gate(cache: &TestCache, faults: TierFaults) {
    gate(cache).set_faults(faults);
    gate(cache).release_all();
}

pub(crate) fn found(cache: &TestCache, keys: &[BlockKey]) -> usize {
    cache.lookup(keys).blocks()
}

pub(crate) fn wait_until(what: impl Fn() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "it did not happen in time"
        );
        thread::sleep(Duration::from_millis(1));
    }
}

/// Evicts `blocks` blocks, and calls `during` while their writes to the tier are in flight.
fn while_evicting(cache: &TestCache, blocks: usize, during: impl FnOnce()) {
    gate(cache).set_faults(CLOSED);
    thread::scope(|scope| {
        let evicts = scope.spawn(|| cache.evict(TierId::HOST, blocks).unwrap());
        wait_until(|| gate(cache).kept() > 0 || evicts.is_finished());
        during();
        assert_eq!(evicts.join().unwrap(), blocks);
    });
}

#[test]
fn every_lookup_finds_the_whole_chain_while_a_write_waits_and_a_load_gets_the_right_bytes() {
    for evicted in [1, 3, 6] {
        let builder = keeper::builder(settings(8).workers(2));
        let cache = gated(builder, Duration::from_secs(60));
        let cache = memory(cache, "behind", 64).open(engine_layout()).unwrap();
        let mut engine = TestEngine::new(&cache);
        let keys = chain(1, 6);
        engine.store(&keys, 0);
        while_evicting(&cache, evicted, || {
            for _ in 0..200 {
                let found = cache.lookup(&keys);
                assert_eq!(found.blocks(), 6);
                assert_eq!(found.blocks_in(TierId::HOST), 6 - evicted);
                assert_eq!(found.blocks_in(id("gated")), evicted);
            }
            let match_of = cache.lookup(&keys);
            let into: Vec<usize> = (20..26).collect();
            into.iter().for_each(|block| engine.poison(*block));
            let load = cache.load(match_of, &into);
            let load = load.unwrap();
            assert!(load.wait_timeout(Duration::from_millis(50)).is_none());
            open_gate(&cache, TierFaults::default());
            let report = load.wait();
            assert!(report.stopped.is_none(), "{report:?}");
            assert_eq!(report.blocks, 6);
            for (key, block) in keys.iter().zip(into) {
                assert!(engine.holds(key, block), "block {block}");
            }
        });
        assert_eq!(found(&cache, &keys), 6);
        assert_eq!(engine.load(&keys, 30), 6);
        cache.check_integrity();
    }
}

#[test]
fn where_the_write_fails_a_load_that_waited_ends_and_gives_nothing_wrong() {
    let builder = keeper::builder(settings(8).workers(2));
    let cache = gated(builder, Duration::from_secs(60));
    let cache = cache.open(engine_layout()).unwrap();
    let mut engine = TestEngine::new(&cache);
    let keys = chain(1, 6);
    engine.store(&keys, 0);
    while_evicting(&cache, 4, || {
        let match_of = cache.lookup(&keys);
        assert_eq!(match_of.blocks(), 6);
        let into: Vec<usize> = (20..26).collect();
        let load = cache.load(match_of, &into);
        let load = load.unwrap();
        let fails = TierFaults {
            write_error: 1,
            ..TierFaults::default()
        };
        open_gate(&cache, fails);
        let report = load.wait();
        assert!(
            matches!(report.stopped, Some(LoadStop::Evicted)),
            "{report:?}"
        );
        assert_eq!((report.blocks, report.wanted), (2, 6));
        assert!(engine.holds(&keys[1], 21));
    });
    assert_eq!(found(&cache, &keys), 2);
    assert_eq!(engine.load(&keys, 30), 2);
    cache.check_integrity();
}

#[test]
fn a_late_write_keeps_its_memory_until_it_ends_and_its_blocks_are_misses_until_then() {
    let builder = keeper::builder(settings(8).workers(2));
    let cache = gated(builder, Duration::from_millis(100));
    let cache = cache.open(engine_layout()).unwrap();
    let mut engine = TestEngine::new(&cache);
    let keys = chain(1, 6);
    engine.store(&keys, 0);
    while_evicting(&cache, 6, || {
        assert_eq!(found(&cache, &keys), 6);
    });
    // The wait has timed out, and the write is still in flight.
    assert_eq!(found(&cache, &keys), 0);
    let host = cache.pool_stats(TierId::HOST).unwrap();
    assert_eq!(
        (host.free, host.cached),
        (2, 0),
        "the tier holds six blocks"
    );
    let others = chain(2, 2);
    assert_eq!(engine.store(&others, 0), 2);
    open_gate(&cache, TierFaults::default());
    let host = cache.pool_stats(TierId::HOST).unwrap();
    assert_eq!(host.free + host.cached, 8, "{host:?}");
    // The late write was the eviction's, and it succeeded.
    assert_eq!(found(&cache, &keys), 6);
    assert_eq!(engine.load(&keys, 30), 6);
    assert_eq!(engine.load(&others, 40), 2);
    cache.check_integrity();
}

/// Ends the threads of a test when it is dropped, also after a panic.
struct OverOnDrop<'a>(&'a AtomicBool);

impl Drop for OverOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Stores chains and evicts them, while other threads look up the latest chain.
fn stress(cache: &TestCache, tier: TierId, rounds: u64) {
    const BLOCKS: usize = 6;
    let stored = AtomicU64::new(0);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let looks = || {
            let mut looked = 0_u64;
            while !is_over.load(Ordering::Acquire) {
                let number = stored.load(Ordering::Acquire);
                if number == 0 {
                    continue;
                }
                let keys = chain(number, BLOCKS);
                let found = cache.lookup(&keys);
                let tiers: Vec<TierId> = found.tiers().collect();
                if tiers.len() != BLOCKS {
                    is_over.store(true, Ordering::Release);
                }
                assert_eq!(tiers.len(), BLOCKS, "chain {number}: {tiers:?}");
                looked += 1;
            }
            looked
        };
        let looking = [scope.spawn(looks), scope.spawn(looks)];
        let over = OverOnDrop(&is_over);
        let engine = TestEngine::new(cache);
        for number in 1..=rounds {
            if is_over.load(Ordering::Acquire) {
                break;
            }
            let keys = chain(number, BLOCKS);
            keys.iter()
                .enumerate()
                .for_each(|(block, key)| engine.compute(key, block));
            let blocks: Vec<usize> = (0..BLOCKS).collect();
            let report = cache.store(&keys, &blocks);
            let report = report.unwrap().wait();
            assert_eq!(report.stored, BLOCKS, "{report:?}");
            stored.store(number, Ordering::Release);
            thread::yield_now();
            for _ in 0..3 {
                cache.evict(TierId::HOST, 2).unwrap();
            }
        }
        drop(over);
        for looks in looking {
            assert!(looks.join().unwrap() > 0);
        }
    });
    let mut engine = TestEngine::new(cache);
    for number in 1..=rounds {
        assert_eq!(engine.load(&chain(number, BLOCKS), 0), BLOCKS, "{number}");
    }
    assert!(cache.tier_stats(tier).unwrap().present >= rounds);
    cache.check_integrity();
}

#[test]
fn no_lookup_sees_a_chain_shorter_while_it_moves_from_host_memory_to_another_tier() {
    let builder = memory(keeper::builder(settings(64).workers(2)), "memory", 4000);
    let cache = builder.open(engine_layout()).unwrap();
    stress(&cache, id("memory"), 300);
}

#[test]
fn no_lookup_sees_a_chain_shorter_while_it_moves_from_host_memory_to_disk() {
    let folder = tempfile::tempdir().unwrap();
    let settings = with_disk(64, folder.path(), 16 << 20).workers(2);
    let cache = keeper::open(settings, engine_layout()).unwrap();
    stress(&cache, TierId::DISK, 200);
}

/// One chain moves up and down: it is loaded into host memory, evicted from the tier, and evicted
/// from host memory.
#[test]
fn no_lookup_sees_a_chain_shorter_while_it_moves_up_and_down() {
    const BLOCKS: usize = 4;
    let builder = memory(keeper::builder(settings(64).workers(2)), "memory", 64);
    let cache = builder.open(engine_layout()).unwrap();
    let keys = chain(1, BLOCKS);
    let mut engine = TestEngine::new(&cache);
    engine.store(&keys, 0);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let looks = || {
            while !is_over.load(Ordering::Acquire) {
                let found = cache.lookup(&keys);
                let tiers: Vec<TierId> = found.tiers().collect();
                if tiers.len() != BLOCKS {
                    is_over.store(true, Ordering::Release);
                }
                assert_eq!(tiers.len(), BLOCKS, "{tiers:?}");
            }
        };
        let looking = [scope.spawn(looks), scope.spawn(looks)];
        let over = OverOnDrop(&is_over);
        for _ in 0..1000 {
            if is_over.load(Ordering::Acquire) {
                break;
            }
            cache.evict(TierId::HOST, BLOCKS).unwrap();
            assert_eq!(engine.load(&keys, 10), BLOCKS);
            cache.evict(id("memory"), BLOCKS).unwrap();
        }
        drop(over);
        for looks in looking {
            looks.join().unwrap();
        }
    });
    cache.check_integrity();
}

/// Otherwise each attempt after a pause would give the tier more host blocks.
#[test]
fn a_tier_that_keeps_host_memory_gets_no_more_of_it() {
    let keeps = TierFaults {
        no_answer: 0,
        keeps_memory: 1,
        ..CLOSED
    };
    for faults in [CLOSED, keeps] {
        let clock = Arc::new(VirtualClock::default());
        let builder = keeper::builder(settings(8).workers(0));
        let builder = builder.clock(Arc::clone(&clock) as Arc<dyn Clock>);
        let cache = gated(builder, Duration::ZERO)
            .open(engine_layout())
            .unwrap();
        gate(&cache).set_faults(faults);
        let engine = TestEngine::new(&cache);
        for number in 0..20 {
            clock.advance(Duration::from_secs(61));
            let report = engine.store_from(&chain(number, 2), 0, 0);
            assert_eq!(report.stored, 2, "{number}: {report:?}");
            cache.evict(TierId::HOST, 2).unwrap();
        }
    }
}
