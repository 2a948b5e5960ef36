//! Loads while all of host memory is in use and one tier never completes its reads.

use std::{sync::Arc, time::Duration};

use kvtile_blocks::events::{TierId, TierKind};
use kvtile_testkit::tier::{MemoryTier, MisbehavingTier, TierFaults};
use kvtile_tiers::{
    cache::{Clock, LoadReport, LoadStop, Match, TierSettings},
    tier::GroupId,
};

use super::{
    bounds::VirtualClock,
    common::{TestEngine, chain, engine_layout, settings},
    keeper::{self, TestCache},
};

fn remote(name: &str) -> TierId {
    TierId::new(TierKind::Remote, name).unwrap()
}

fn open(clock: &Arc<VirtualClock>) -> TestCache {
    let builder =
        keeper::builder(settings(4).workers(0)).clock(Arc::clone(clock) as Arc<dyn Clock>);
    let hasty = TierSettings::default().answer_within(Duration::ZERO);
    let builder = builder.tier(hasty, |context| {
        let inner = MemoryTier::new(remote("silent"), 16, context).unwrap();
        Ok(Arc::new(MisbehavingTier::new(Arc::new(inner), 1)))
    });
    let builder = builder.tier(TierSettings::default(), |context| {
        Ok(Arc::new(
            MemoryTier::new(remote("prompt"), 16, context).unwrap(),
        ))
    });
    builder.open(engine_layout()).unwrap()
}

fn load(cache: &TestCache, found: Match) -> LoadReport {
    let load = cache.load(found, &[40, 41]);
    let load = load.unwrap();
    while cache.step() {}
    load.try_result().unwrap()
}

#[test]
fn a_tier_that_keeps_its_spare_block_stalls_no_load_of_another_tier_nor_of_its_own() {
    let clock = Arc::new(VirtualClock::default());
    let cache = open(&clock);
    let mut engine = TestEngine::new(&cache);
    let lookup = |number| cache.lookup(&chain(number, 2));
    // Chain 1 is only in the silent tier, chain 2 only in the prompt tier.
    for number in [1, 2] {
        assert_eq!(engine.store(&chain(number, 2), 0), 2);
        assert_eq!(cache.evict(TierId::HOST, 2).unwrap(), 2);
    }
    for (name, number) in [("silent", 2), ("prompt", 1)] {
        let tier = cache.tier(remote(name)).unwrap();
        assert_eq!(tier.forget(GroupId(0), &chain(number, 2)), 2);
    }
    // All of host memory is in use.
    assert_eq!(engine.store(&chain(3, 4), 0), 4);
    let pinned = cache.lookup(&chain(3, 4));
    assert_eq!(pinned.blocks_in(TierId::HOST), 4);
    let silent = cache.tier(remote("silent")).unwrap();
    let silent: &MisbehavingTier = silent.as_any().downcast_ref().unwrap();
    let found = [lookup(1), lookup(1), lookup(2)];
    assert!(found.iter().all(|found| found.blocks() == 2), "{found:?}");
    let [first, second, other] = found;
    silent.set_faults(TierFaults {
        no_answer: 1,
        ..TierFaults::default()
    });
    let report = load(&cache, first);
    assert_eq!(report.blocks, 0);
    assert!(matches!(report.stopped, Some(LoadStop::Late)), "{report:?}");
    assert_eq!(silent.kept(), 1);

    let report = load(&cache, other);
    assert_eq!((report.blocks, report.stopped.is_none()), (2, true));
    assert_eq!(report.from_below, [(remote("prompt"), 2)]);
    for (at, key) in chain(2, 2).iter().enumerate() {
        assert!(engine.holds(key, 40 + at));
    }
    // No read of the silent tier starts: the tier still holds its spare block.
    let report = load(&cache, second);
    assert_eq!(report.blocks, 0);
    assert!(matches!(report.stopped, Some(LoadStop::Late)), "{report:?}");
    assert_eq!(silent.kept(), 1);
    assert_eq!(lookup(1).blocks(), 0, "the tier is in a backoff");

    // The tier completes the read.
    silent.set_faults(TierFaults::default());
    silent.release_all();
    clock.advance(Duration::from_secs(2));
    let report = load(&cache, lookup(1));
    assert_eq!(report.from_below, [(remote("silent"), 2)]);
    for (at, key) in chain(1, 2).iter().enumerate() {
        assert!(engine.holds(key, 40 + at));
    }
    drop((pinned, engine));
    cache.check_integrity();
}
