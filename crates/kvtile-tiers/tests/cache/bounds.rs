//! Damage, slow tiers, deadlines and sizes: each failure is a counted miss, and resources are
//! bounded.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use kvtile_blocks::{
    events::TierId,
    pool::{TenantId, TenantQuota},
};
use kvtile_tiers::{
    cache::{Clock, LoadStop, LookupOptions, StoreOptions},
    metrics::MissReason,
};

use super::{
    common::{TestEngine, chain, engine_layout, settings, with_disk},
    keeper,
};

const DISK: u64 = 4 << 20;

/// A clock that advances only on request.
#[derive(Default)]
pub(crate) struct VirtualClock(AtomicU64);

impl VirtualClock {
    pub(crate) fn advance(&self, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap();
        self.0.fetch_add(nanoseconds, Ordering::Relaxed);
    }
}

impl Clock for VirtualClock {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

fn saved(folder: &Path, keys: &[kvtile_blocks::BlockKey]) {
    let cache = keeper::open(with_disk(16, folder, DISK), engine_layout()).unwrap();
    TestEngine::new(&cache).store(keys, 0);
    assert!(cache.flush().durable);
}

pub(crate) fn folder_bytes(folder: &Path) -> u64 {
    let files = fs::read_dir(folder).unwrap();
    files
        .map(|file| file.unwrap().metadata().unwrap().len())
        .sum()
}

/// Pitfall 36: stored data without a checksum.
#[test]
fn flipped_bits_on_disk_are_a_miss_that_is_counted_and_not_offered_again() {
    let folder = tempfile::tempdir().unwrap();
    let keys = chain(1, 6);
    saved(folder.path(), &keys);
    // In a new folder, block 3 of the chain is in slot 3.
    let slots = folder.path().join("slots");
    let mut bytes = fs::read(&slots).unwrap();
    bytes[3 * 4096 + 100] ^= 0x10;
    fs::write(&slots, bytes).unwrap();
    let settings = with_disk(32, folder.path(), DISK).workers(1);
    let cache = keeper::open(settings, engine_layout()).unwrap();
    let mut engine = TestEngine::new(&cache);
    let found = cache.lookup(&keys);
    let blocks: Vec<usize> = (0..found.blocks()).collect();
    let load = cache.load(found, &blocks).unwrap();
    let report = load.wait();
    assert_eq!((report.blocks, report.wanted), (3, 6), "{report:?}");
    assert!(matches!(report.stopped, Some(LoadStop::Lost)));
    let stats = cache.stats();
    assert_eq!(stats.lost_hits[&MissReason::Checksum], 1);
    assert_eq!(stats.checksum_failures[&TierId::DISK], 1);
    assert_eq!(engine.load(&keys, 20), 3, "its descendants are unusable");
    assert_eq!(engine.store(&keys, 30), 3, "computed and stored again");
    assert_eq!(engine.load(&keys, 20), 6);
    cache.check_integrity();
}

#[test]
fn a_data_file_that_was_cut_is_a_miss() {
    let folder = tempfile::tempdir().unwrap();
    let keys = chain(1, 6);
    saved(folder.path(), &keys);
    let slots = fs::OpenOptions::new()
        .write(true)
        .open(folder.path().join("slots"));
    slots.unwrap().set_len(2 * 4096).unwrap();
    let cache = keeper::open(with_disk(16, folder.path(), DISK), engine_layout()).unwrap();
    let mut engine = TestEngine::new(&cache);
    assert!(engine.load(&keys, 0) <= 2);
    assert!(engine.store(&keys, 20) >= 4);
    assert_eq!(engine.load(&keys, 40), 6);
}

/// Pitfall 35: a disk tier without capacity or eviction.
#[test]
fn the_disk_stays_within_its_capacity() {
    let folder = tempfile::tempdir().unwrap();
    let capacity = 300_000;
    let cache = keeper::open(with_disk(4, folder.path(), capacity), engine_layout()).unwrap();
    let mut engine = TestEngine::new(&cache);
    for number in 0..60 {
        engine.store(&chain(number, 4), 0);
        assert!(folder_bytes(folder.path()) <= capacity);
    }
    cache.flush();
    cache.check_integrity();
    let pool = cache.pool_stats(TierId::DISK).unwrap();
    assert!(pool.evicted_for_room > 100, "{pool:?}");
    let kept = (0..60).filter(|number| engine.load(&chain(*number, 4), 10) > 0);
    assert!(kept.count() >= 10);
}

/// Pitfall 34: a disk tier slower than computing.
#[test]
fn disk_blocks_that_load_slower_than_computing_count_as_missing() {
    let folder = tempfile::tempdir().unwrap();
    let keys = chain(1, 8);
    saved(folder.path(), &keys);
    let settings = with_disk(16, folder.path(), DISK).recompute_tokens_per_second(1e12);
    let cache = keeper::open(settings, engine_layout()).unwrap();
    let mut engine = TestEngine::new(&cache);
    // Without a measurement, the first blocks are loaded.
    assert_eq!(engine.load(&keys[..2], 0), 2);
    let found = cache.lookup(&keys);
    assert_eq!((found.blocks(), found.blocks_in(TierId::HOST)), (2, 2));
    assert_eq!(cache.stats().misses[&MissReason::SlowerThanComputing], 6);
}

#[test]
fn one_tenant_cannot_push_out_another() {
    let mut settings = settings(16);
    settings.quotas = vec![TenantQuota {
        tenant: TenantId(7),
        blocks: 4,
    }];
    let cache = keeper::open(settings, engine_layout()).unwrap();
    let mut engine = TestEngine::new(&cache);
    let theirs = chain(1, 10);
    engine.store(&theirs, 0);
    let options = StoreOptions::new().tenant(TenantId(7));
    for number in 10..20 {
        let keys = chain(number, 2);
        engine.compute(&keys[0], 20);
        engine.compute(&keys[1], 21);
        let stored = cache.store_with(&keys, &[20, 21], &options).unwrap().wait();
        assert_eq!(stored.stored, 2);
    }
    assert_eq!(engine.load(&theirs, 30), 10);
    cache.check_integrity();
}

#[test]
fn blocks_whose_lifetime_is_over_leave_first() {
    let clock = Arc::new(VirtualClock::default());
    let builder = keeper::builder(settings(16)).clock(Arc::clone(&clock) as Arc<dyn Clock>);
    let cache = builder.open(engine_layout()).unwrap();
    let engine = TestEngine::new(&cache);
    let [forever, short, extended] = [1, 2, 3].map(|number| chain(number, 4));
    engine.store(&forever, 0);
    for keys in [&short, &extended] {
        let options = StoreOptions::new().lifetime(Duration::from_secs(10));
        let stored = cache.store_with(keys, &[10, 11, 12, 13], &options).unwrap();
        assert_eq!(stored.wait().stored, 4);
    }
    let blocks = || {
        let plain = LookupOptions::new().lifetime(Duration::ZERO);
        let found = [&forever, &short, &extended].map(|keys| cache.lookup_with(keys, &plain));
        found.map(|found| found.blocks())
    };
    clock.advance(Duration::from_secs(8));
    let longer = LookupOptions::new().lifetime(Duration::from_secs(60));
    assert_eq!(cache.lookup_with(&extended, &longer).blocks(), 4);
    clock.advance(Duration::from_secs(4));
    assert_eq!(cache.evict(TierId::HOST, 4).unwrap(), 4);
    assert_eq!(blocks(), [4, 0, 4]);
    clock.advance(Duration::from_secs(58));
    assert_eq!(cache.evict(TierId::HOST, 4).unwrap(), 4);
    assert_eq!(blocks(), [4, 0, 0]);
}
