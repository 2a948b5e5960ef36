//! Loads of blocks that leave host memory for two tiers, of which one is slow.

use std::{sync::Arc, thread, time::Duration};

use kvtile_blocks::events::TierId;
use kvtile_testkit::tier::TierFaults;
use kvtile_tiers::cache::{LoadReport, LoadStop};

use super::{
    bounds::VirtualClock,
    common::{TestEngine, chain, engine_layout, settings},
    departures::{CLOSED, found, gate, gate_of, gated, gated_named, id, open_gate, wait_until},
    keeper::{self, TestCache},
};

/// A chain of four blocks leaves host memory. The tier `gated` has the first block already, and lookups do not see it
/// there, because a read failed a moment ago. So the first block goes to the tier `first` alone, and the later ones go to both. A
/// load with one worker has two parts, of which the first one has a block of each kind.
/// The gates of both tiers are closed while a load of the blocks begins; then `go_on` opens gates.
fn load_of_leaving_blocks(
    answer_within: Duration,
    go_on: impl FnOnce(&TestCache),
) -> (TestCache, LoadReport, bool) {
    let builder = keeper::builder(settings(8).workers(1));
    // Its time stands still, and with it the pause after the failed read.
    let builder = builder.clock(Arc::new(VirtualClock::default()));
    let builder = gated_named(builder, "first", answer_within);
    let cache = gated(builder, Duration::from_secs(60));
    let cache = cache.open(engine_layout()).unwrap();
    let mut engine = TestEngine::new(&cache);
    let keys = chain(1, 4);
    engine.store(&keys[..1], 0);
    assert_eq!(cache.evict(TierId::HOST, 1).unwrap(), 1);
    assert_eq!(cache.evict(id("first"), 1).unwrap(), 1);
    let failing = TierFaults {
        wrong_count: 1,
        ..TierFaults::default()
    };
    gate(&cache).set_faults(failing);
    assert_eq!(engine.load(&keys[..1], 10), 0);
    assert_eq!(found(&cache, &keys[..1]), 0);
    assert_eq!(engine.store(&keys, 0), 4);
    gate_of(&cache, "first").set_faults(CLOSED);
    gate(&cache).set_faults(CLOSED);
    let (report, right) = thread::scope(|scope| {
        let evicts = scope.spawn(|| cache.evict(TierId::HOST, 4).unwrap());
        wait_until(|| gate_of(&cache, "first").kept() > 0);
        let found = cache.lookup(&keys);
        assert_eq!(found.blocks_in(id("first")), 4);
        let into = [20, 21, 22, 23];
        into.iter().for_each(|block| engine.poison(*block));
        let load = cache.load(found, &into).unwrap();
        assert!(load.wait_timeout(Duration::from_millis(20)).is_none());
        go_on(&cache);
        let report = load.wait();
        let loaded = keys.iter().zip(20..).take(report.blocks);
        let right = loaded
            .into_iter()
            .all(|(key, block)| engine.holds(key, block));
        open_gate(&cache, TierFaults::default());
        gate_of(&cache, "first").set_faults(TierFaults::default());
        gate_of(&cache, "first").release_all();
        assert_eq!(evicts.join().unwrap(), 4);
        (report, right)
    });
    drop(engine);
    (cache, report, right)
}

#[test]
fn a_load_takes_leaving_blocks_from_the_first_tier_that_has_them_all() {
    let (cache, report, right) = load_of_leaving_blocks(Duration::from_secs(30), |cache| {
        gate_of(cache, "first").set_faults(TierFaults::default());
        gate_of(cache, "first").release_all();
    });
    assert!(right, "it counts blocks that it has not copied: {report:?}");
    // The second tier still writes.
    assert!(report.stopped.is_none() && report.blocks == 4, "{report:?}");
    cache.check_integrity();
}

#[test]
fn blocks_of_a_load_that_was_late_do_not_count_although_they_have_arrived() {
    let (cache, report, right) = load_of_leaving_blocks(Duration::from_millis(300), |_| {});
    assert!(right, "{report:?}");
    assert!(matches!(report.stopped, Some(LoadStop::Late)), "{report:?}");
    cache.check_integrity();
}
