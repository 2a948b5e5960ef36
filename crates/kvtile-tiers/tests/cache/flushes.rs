//! Flush reports over blocks and tiers: durable tiers and others, tiers that fail and tiers that
//! recover.

use std::sync::Arc;

use kvtile_blocks::events::{TierId, TierKind};
use kvtile_testkit::{
    disk::{DiskFaults, SimulatedDisk},
    tier::{MemoryTier, MisbehavingTier, TierFaults},
};
use kvtile_tiers::{
    cache::{DiskSettings, FlushReport, TierFlush, TierSettings, TierWrites},
    disk::{DiskTier, medium::Medium},
    tier::Tier,
};

use super::common::{TestEngine, chain, engine_layout, settings};
use super::keeper::{self, TestBuilder, TestCache};

const BLOCKS: usize = 4;

fn builder() -> TestBuilder {
    keeper::builder(settings(8).workers(0))
}

fn open(builder: TestBuilder) -> TestCache {
    builder.open(engine_layout()).unwrap()
}

fn id(kind: TierKind, name: &str) -> TierId {
    TierId::new(kind, name).unwrap()
}

fn memory() -> TierId {
    id(TierKind::Remote, "memory")
}

fn with_memory(builder: TestBuilder) -> TestBuilder {
    builder.tier(TierSettings::default(), |context| {
        Ok(Arc::new(MemoryTier::new(memory(), 16, context).unwrap()))
    })
}

/// Adds a disk with a name, and with faults.
fn with_disk(
    builder: TestBuilder,
    (disk, name, bytes): (&SimulatedDisk, &'static str, u64),
    (tier, faults): (TierSettings, TierFaults),
) -> TestBuilder {
    let medium: Arc<dyn Medium> = Arc::new(disk.clone());
    builder.tier(tier, move |context| {
        let mut settings = DiskSettings::new("simulated", bytes);
        settings.name = Some(name.to_owned());
        let disk = DiskTier::open_on(medium, &settings, context)?;
        let tier = MisbehavingTier::new(Arc::new(disk), 1);
        tier.set_faults(faults);
        Ok(Arc::new(tier) as Arc<dyn Tier>)
    })
}

const ROOM: u64 = 1 << 20;

fn sound() -> (TierSettings, TierFaults) {
    (TierSettings::default(), TierFaults::default())
}

fn failing(set: fn(&mut TierFaults)) -> (TierSettings, TierFaults) {
    let mut faults = TierFaults::default();
    set(&mut faults);
    (TierSettings::default(), faults)
}

/// The report of the named disk.
fn of(report: &FlushReport, name: &str) -> TierFlush {
    let tier = id(TierKind::Disk, name);
    let mut tiers = report.tiers.iter();
    *tiers.find(|flushed| flushed.tier == tier).unwrap()
}

/// The fields of the report after `tier`, in order.
fn counts(tier: TierFlush) -> [usize; 6] {
    let TierFlush {
        wanted,
        durable,
        written,
        no_room,
        late,
        failed,
        ..
    } = tier;
    [wanted, durable, written, no_room, late, failed]
}

#[test]
fn without_a_durable_tier_a_flush_writes_nothing_and_reports_that() {
    for has_memory in [false, true] {
        let cache = match has_memory {
            true => open(with_memory(builder())),
            false => open(builder()),
        };
        assert_eq!(TestEngine::new(&cache).store(&chain(1, BLOCKS), 0), BLOCKS);
        for report in [cache.flush(), cache.flush()] {
            assert_eq!((report.wanted, report.no_tier), (BLOCKS, BLOCKS));
            assert_eq!(
                (report.written, report.no_room, report.late, report.failed),
                (0, 0, 0, 0)
            );
            assert!(!report.durable && report.tiers.is_empty(), "{report:?}");
        }
        if has_memory {
            assert_eq!(cache.tier_stats(memory()).unwrap().present, 0);
        }
        let report = cache.close();
        assert_eq!((report.wanted, report.no_tier), (BLOCKS, BLOCKS));
        assert_eq!((report.written, report.durable), (0, false));
    }
}

#[test]
fn a_flush_writes_to_the_durable_tier_alone() {
    let disk = SimulatedDisk::new(1);
    let cache = open(with_disk(
        with_memory(builder()),
        (&disk, "one", ROOM),
        sound(),
    ));
    let keys = chain(1, BLOCKS);
    assert_eq!(TestEngine::new(&cache).store(&keys, 0), BLOCKS);
    let report = cache.flush();
    assert!(report.durable && report.written == BLOCKS, "{report:?}");
    assert_eq!(counts(of(&report, "one")), [4, 4, 4, 0, 0, 0]);
    assert_eq!(report.tiers.len(), 1);
    let present = |tier| cache.tier_stats(tier).unwrap().present;
    assert_eq!(present(memory()), 0);
    // Evicted blocks go to both tiers.
    assert_eq!(cache.evict(TierId::HOST, BLOCKS).unwrap(), BLOCKS);
    assert_eq!(present(memory()), BLOCKS as u64);
    cache.check_integrity();
    assert!(cache.close().durable);
}

/// The cache never syncs a tier that is not durable: this tier's syncs would fail.
#[test]
fn a_tier_that_is_not_durable_is_not_synced() {
    let cache = open(builder().tier(TierSettings::default(), |context| {
        let inner = MemoryTier::new(memory(), 16, context).unwrap();
        let tier = MisbehavingTier::new(Arc::new(inner), 1);
        tier.set_faults(TierFaults {
            sync_error: 1,
            ..TierFaults::default()
        });
        Ok(Arc::new(tier))
    }));
    assert_eq!(TestEngine::new(&cache).store(&chain(1, BLOCKS), 0), BLOCKS);
    cache.evict(TierId::HOST, BLOCKS).unwrap();
    cache.look_after();
    // A failed sync would have paused writes to the tier.
    assert_eq!(TestEngine::new(&cache).store(&chain(2, BLOCKS), 0), BLOCKS);
    cache.evict(TierId::HOST, BLOCKS).unwrap();
    let present = cache.tier_stats(memory()).unwrap().present;
    assert_eq!(present, 2 * BLOCKS as u64);
    assert_eq!(cache.clear().unwrap(), 2 * BLOCKS);
}

#[test]
fn blocks_are_durable_where_one_of_two_durable_tiers_fails_at_every_call() {
    let each = [
        failing(|faults| faults.write_error = 1),
        failing(|faults| faults.sync_error = 1),
        failing(|faults| (faults.write_error, faults.sync_error) = (1, 1)),
    ];
    for faults in each {
        for fails_first in [false, true] {
            let (good, bad) = (SimulatedDisk::new(1), SimulatedDisk::new(2));
            let mut builder = builder();
            for is_bad in [fails_first, !fails_first] {
                builder = match is_bad {
                    true => with_disk(builder, (&bad, "bad", ROOM), faults),
                    false => with_disk(builder, (&good, "good", ROOM), sound()),
                };
            }
            let cache = open(builder);
            assert_eq!(TestEngine::new(&cache).store(&chain(1, BLOCKS), 0), BLOCKS);
            let report = cache.flush();
            assert!(report.durable, "{faults:?}: {report:?}");
            assert_eq!((report.wanted, report.failed), (BLOCKS, 0), "{report:?}");
            assert_eq!(counts(of(&report, "good")), [4, 4, 4, 0, 0, 0]);
            let of_bad = of(&report, "bad");
            assert_eq!((of_bad.wanted, of_bad.durable, of_bad.failed), (4, 0, 4));
            good.crash();
            drop(cache);
            // The good disk alone has all of them.
            let cache = open(with_disk(self::builder(), (&good, "good", ROOM), sound()));
            let found = cache.lookup(&chain(1, BLOCKS));
            assert_eq!(found.blocks(), BLOCKS);
        }
    }
}

#[test]
fn blocks_count_once_where_all_durable_tiers_fail() {
    let (one, two) = (SimulatedDisk::new(1), SimulatedDisk::new(2));
    let writes = failing(|faults| faults.write_error = 1);
    let syncs = failing(|faults| faults.sync_error = 1);
    let builder = with_disk(builder(), (&one, "one", ROOM), writes);
    let cache = open(with_disk(builder, (&two, "two", ROOM), syncs));
    assert_eq!(TestEngine::new(&cache).store(&chain(1, BLOCKS), 0), BLOCKS);
    let report = cache.flush();
    assert!(!report.durable, "{report:?}");
    assert_eq!((report.wanted, report.failed), (BLOCKS, BLOCKS));
    assert_eq!(counts(of(&report, "one")), [4, 0, 0, 0, 0, 4]);
    // The blocks written there are not synced.
    assert_eq!(counts(of(&report, "two")), [4, 0, 4, 0, 0, 4]);
    assert!(!cache.close().durable);
}

#[test]
fn a_tier_that_recovers_gets_what_it_missed() {
    let (one, two) = (SimulatedDisk::new(1), SimulatedDisk::new(2));
    let builder = with_disk(builder(), (&one, "one", ROOM), sound());
    let cache = open(with_disk(builder, (&two, "two", ROOM), sound()));
    assert_eq!(TestEngine::new(&cache).store(&chain(1, BLOCKS), 0), BLOCKS);
    one.set_faults(DiskFaults {
        full: 1,
        ..DiskFaults::default()
    });
    let report = cache.flush();
    assert!(report.durable && report.failed == 0, "{report:?}");
    assert_eq!(counts(of(&report, "one")), [4, 0, 0, 0, 0, 4]);
    assert_eq!(counts(of(&report, "two")), [4, 4, 4, 0, 0, 0]);
    one.set_faults(DiskFaults::default());
    let report = cache.flush();
    assert!(report.durable && report.written == BLOCKS, "{report:?}");
    assert_eq!(counts(of(&report, "one")), [4, 4, 4, 0, 0, 0]);
    assert_eq!(counts(of(&report, "two")), [4, 4, 0, 0, 0, 0]);
}

/// A failure counts before a lack of room, because a repair of the tier would help.
#[test]
fn a_block_without_room_on_one_tier_has_failed_where_another_one_fails() {
    let (small, bad) = (SimulatedDisk::new(1), SimulatedDisk::new(2));
    let writes = failing(|faults| faults.write_error = 1);
    let builder = with_disk(builder(), (&small, "small", 46_000), sound());
    let cache = open(with_disk(builder, (&bad, "bad", ROOM), writes));
    let small_id = id(TierKind::Disk, "small");
    let room = usize::try_from(cache.tier_stats(small_id).unwrap().capacity).unwrap();
    assert!(0 < room && room < 8, "{room}");
    assert_eq!(TestEngine::new(&cache).store(&chain(1, 8), 0), 8);
    let report = cache.flush();
    let left = 8 - room;
    assert_eq!((report.failed, report.no_room), (left, 0), "{report:?}");
    assert_eq!(
        counts(of(&report, "small")),
        [8, room, room, left, 0, 0],
        "{report:?}"
    );
    assert_eq!(counts(of(&report, "bad")), [8, 0, 0, 0, 0, 8], "{report:?}");
}

/// The block's parent is neither in host memory nor on the disk, so no disk may store the block.
#[test]
fn a_block_whose_parent_is_only_on_a_volatile_tier_is_not_durable() {
    let disk = SimulatedDisk::new(1);
    let later = TierSettings::default().writes(TierWrites::AfterUses(9));
    let cache = open(with_disk(
        with_memory(builder()),
        (&disk, "one", ROOM),
        (later, TierFaults::default()),
    ));
    let engine = TestEngine::new(&cache);
    let keys = chain(1, BLOCKS);
    assert_eq!(engine.store(&keys[..3], 0), 3);
    assert_eq!(cache.evict(TierId::HOST, 3).unwrap(), 3);
    assert_eq!(engine.store_from(&keys, 3, 0).stored, 1);
    let report = cache.flush();
    assert_eq!((report.wanted, report.no_tier), (1, 1), "{report:?}");
    assert!(!report.durable, "{report:?}");
    assert_eq!(counts(of(&report, "one")), [0; 6]);
    // Closing does not write it, because of `AfterUses`.
    drop(engine);
    let report = cache.close();
    assert_eq!((report.wanted, report.durable), (0, true), "{report:?}");
}

/// A shared tier may evict held blocks, so the cache holds the parent of a host block on the other
/// tier.
#[test]
fn the_parent_of_a_host_block_is_kept_on_a_tier_that_is_not_shared() {
    let own = id(TierKind::Remote, "own");
    let shared = id(TierKind::Remote, "shared");
    let builder = builder().tier(TierSettings::default(), move |context| {
        Ok(Arc::new(MemoryTier::shared(shared, 16, context).unwrap()))
    });
    let cache = open(builder.tier(TierSettings::default(), move |context| {
        Ok(Arc::new(MemoryTier::new(own, 16, context).unwrap()))
    }));
    let mut engine = TestEngine::new(&cache);
    let keys = chain(1, BLOCKS);
    assert_eq!(engine.store(&keys[..3], 0), 3);
    assert_eq!(cache.evict(TierId::HOST, 3).unwrap(), 3);
    assert_eq!(engine.store_from(&keys, 3, 0).stored, 1);
    assert_eq!(cache.evict(shared, usize::MAX).unwrap(), 3);
    assert_eq!(cache.evict(own, usize::MAX).unwrap(), 0);
    assert_eq!(engine.load(&keys, 10), BLOCKS);
    cache.check_integrity();
}
