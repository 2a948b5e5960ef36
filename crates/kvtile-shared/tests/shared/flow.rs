//! Single flight, staging memory, renewals and the size of the index.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use kvtile_blocks::Tick;
use kvtile_shared::{
    memory::MemoryStore,
    store::{Deadline, SharedStore, SinkState, ValueName, ValueSink},
    tier::{SharedTierCounters, SharedTierSettings},
};
use kvtile_testkit::shared::{SharedTierRig, SimulatedStore};
use kvtile_tiers::tier::{NotWritten, Tier, WriteSuccess};

const PATIENCE: Duration = Duration::from_secs(20);

fn settings() -> SharedTierSettings {
    SharedTierSettings::new().bundle_blocks(4)
}

fn rig(store: &Arc<SimulatedStore>, settings: SharedTierSettings, threads: usize) -> SharedTierRig {
    SharedTierRig::open(
        Arc::clone(store) as Arc<dyn SharedStore>,
        settings,
        (4, threads),
    )
}

fn wait_until(rig: &SharedTierRig, is_so: impl Fn(SharedTierCounters) -> bool) {
    let start = Instant::now();
    while !is_so(rig.tier().counters()) {
        assert!(start.elapsed() < PATIENCE, "{:?}", rig.tier().counters());
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn writes_of_new_bundles_are_not_queried_first_and_those_of_present_ones_are() {
    let store = SimulatedStore::new(MemoryStore::new(), 1);
    // Blocks of 64 KiB: sending a bundle takes the store longer than a call.
    let open = || {
        let store = Arc::clone(&store) as Arc<dyn SharedStore>;
        SharedTierRig::open(store, settings(), (256, 0))
    };
    let bundle = |number: u64| SharedTierRig::chain(number, 4);
    let queries = || {
        let queried = store.queried();
        let is_bundle = |name: &&ValueName| name.as_str().ends_with(".4");
        queried.iter().filter(is_bundle).count()
    };
    let first = open();
    (0..40).for_each(|number| drop(first.write(&bundle(number))));
    let learned = queries();
    (40..60).for_each(|number| drop(first.write(&bundle(number))));
    assert_eq!(
        queries(),
        learned,
        "a query before each write of a new bundle"
    );
    assert_eq!(first.tier().counters().written, 60);
    // Another cache computes the same without having looked it up.
    let second = open();
    (0..60).for_each(|number| drop(second.write(&bundle(number))));
    let counters = second.tier().counters();
    assert_eq!((counters.written, counters.present), (0, 60));
    assert!(queries() > learned + 20, "{} of 60", queries() - learned);
}

#[test]
fn batches_with_blocks_of_one_bundle_share_one_call() {
    let store = SimulatedStore::new(MemoryStore::new(), 1);
    let chain = SharedTierRig::chain(1, 4);
    rig(&store, settings(), 2).write(&chain);
    let reader = rig(&store, settings(), 2);
    assert_eq!(reader.ask(&chain).leading, 4);
    let shut = store.gate().shut(1);
    // Each batch has one block, two of them the same one.
    let batches = [0, 1, 3, 3].map(|at: usize| reader.begin_read(&chain[at..=at]));
    drop(shut);
    for (_, read) in &batches {
        let report = read.wait_timeout(PATIENCE).unwrap();
        assert!(report.blocks[0].is_ok(), "{report:?}");
    }
    let counters = reader.tier().counters();
    assert_eq!(
        (counters.read, counters.read_blocks),
        (1, 4),
        "{counters:?}"
    );
    // A header, four blocks of 1 KiB, and no second time.
    assert_eq!(counters.read_bytes, 4096 + 4 * 1024);
}

#[test]
fn a_read_of_the_first_blocks_ends_the_call_there() {
    let store = SimulatedStore::new(MemoryStore::new(), 1);
    let chain = SharedTierRig::chain(1, 4);
    rig(&store, settings(), 0).write(&chain);
    let reader = rig(&store, settings(), 0);
    assert_eq!(reader.ask(&chain).leading, 4);
    reader.read_all(&chain[..1]);
    assert_eq!(reader.tier().counters().read_bytes, 4096 + 1024);
}

#[test]
fn a_read_of_later_blocks_reads_the_header_and_their_bytes() {
    let store = SimulatedStore::new(MemoryStore::new(), 1);
    // Blocks of 64 KiB: passing one of no use takes the store longer than a call.
    let open = |compress: bool| {
        let settings = settings().bundle_blocks(8).compress(compress);
        SharedTierRig::open(
            Arc::clone(&store) as Arc<dyn SharedStore>,
            settings,
            (256, 0),
        )
    };
    let (header, block) = (4096, 64 << 10);
    for compress in [false, true] {
        let chain = SharedTierRig::chain(u64::from(compress), 8);
        open(compress).write(&chain);
        let names = SharedTierRig::names(&*store);
        let reader = open(false);
        assert_eq!(reader.ask(&chain).leading, 8);
        let mut before = 0;
        let mut read = |blocks: std::ops::Range<usize>| {
            reader.read_all(&chain[blocks]);
            let now = reader.tier().counters().read_bytes;
            now - std::mem::replace(&mut before, now)
        };
        let (one, end, all) = (read(3..4), read(6..8), read(0..8));
        if !compress {
            assert_eq!(
                (one, end, all),
                (header + block, header + 2 * block, header + 8 * block)
            );
        }
        // What is not read is not verified either; damage of the blocks before is found where they are read.
        let bytes = |name| {
            let mut whole = Vec::new();
            let mut sink = GrowingValue(&mut whole, vec![0; 1 << 16]);
            assert!(
                store
                    .read(name, &mut sink, Deadline::within(PATIENCE))
                    .unwrap()
            );
            whole
        };
        let name = names
            .iter()
            .find(|name| bytes(*name).len() as u64 == all)
            .unwrap();
        let mut damaged = bytes(name);
        damaged[4096 + 100] ^= 1;
        store
            .remove(std::slice::from_ref(name), Deadline::within(PATIENCE))
            .unwrap();
        store
            .write(name, &[&damaged], None, Deadline::within(PATIENCE))
            .unwrap();
        reader.read_all(&chain[5..7]);
        let outcomes = reader.read(&chain[..2]);
        assert!(outcomes.iter().all(Result::is_err), "{outcomes:?}");
        assert_eq!(reader.tier().counters().damaged, 1);
        // A value that ends before the range is short, and nothing of it is served.
        let reader = open(false);
        store
            .write(name, &[&damaged[..5000]], None, Deadline::within(PATIENCE))
            .unwrap();
        assert_eq!(reader.ask(&chain).leading, 8);
        let outcomes = reader.read(&chain[5..7]);
        assert!(outcomes.iter().all(Result::is_err), "{outcomes:?}");
        assert_eq!(reader.tier().counters().short, 1);
    }
}

#[test]
fn blocks_join_the_read_of_a_part_of_a_compressed_bundle() {
    let store = SimulatedStore::new(MemoryStore::new(), 1);
    let open = || {
        let settings = settings().bundle_blocks(8).compress(true);
        let store = Arc::clone(&store) as Arc<dyn SharedStore>;
        SharedTierRig::open(store, settings, (256, 2))
    };
    for number in 0..8 {
        let chain = SharedTierRig::chain(number, 8);
        open().write(&chain);
        let reader = open();
        assert_eq!(reader.ask(&chain).leading, 8);
        let shut = store.gate().shut(1);
        let first = reader.begin_read(&chain[..1]);
        // The bytes of the first call may end within any of the others.
        let others = reader.begin_read(&chain[1..]);
        drop(shut);
        for (_, read) in [&first, &others] {
            let report = read.wait_timeout(PATIENCE).unwrap();
            assert!(report.blocks.iter().all(Result::is_ok), "{report:?}");
        }
        reader.read_all(&chain);
    }
}

/// Takes all bytes of a value.
struct GrowingValue<'a>(&'a mut Vec<u8>, Vec<u8>);

impl ValueSink for GrowingValue<'_> {
    fn space(&mut self) -> &mut [u8] {
        &mut self.1
    }

    fn filled(&mut self, bytes: usize) -> SinkState {
        self.0.extend(&self.1[..bytes]);
        SinkState::Open
    }
}

#[test]
fn open_bundles_make_room_for_others_and_are_dropped_after_a_time() {
    for threads in [0, 2] {
        let store = SimulatedStore::new(MemoryStore::new(), 1);
        // Room for five blocks of 1 KiB.
        let settings = settings()
            .staging_bytes(5 * 1024)
            .stage_within(Duration::from_millis(50));
        let writer = rig(&store, settings, threads);
        let [one, two] = [1, 2].map(|number| SharedTierRig::chain(number, 3));
        assert!(writer.write(&one).iter().all(Result::is_ok));
        // The third block does not fit beside the first chain, which is dropped for it.
        assert!(writer.write(&two).iter().all(Result::is_ok));
        assert_eq!(writer.ask(&one).leading, 0);
        assert_eq!(writer.ask(&two).leading, 3);
        assert_eq!(writer.tier().counters().incomplete_blocks, 3);
        std::thread::sleep(Duration::from_millis(60));
        writer.tier().maintain();
        assert_eq!(writer.ask(&two).leading, 0);
        assert_eq!(writer.tier().counters().incomplete_blocks, 6);
        // All of it is free again.
        let four = SharedTierRig::chain(3, 4);
        assert!(writer.write(&four).iter().all(Result::is_ok));
        assert_eq!(SharedTierRig::names(&*store).len(), 1);
        writer.tier().check_integrity();
    }
}

#[test]
fn an_open_bundle_that_is_dropped_leaves_the_blocks_that_another_one_has() {
    let store = SimulatedStore::new(MemoryStore::new(), 1);
    let writer = rig(&store, settings().staging_bytes(5 * 1024), 0);
    let chain = SharedTierRig::chain(1, 4);
    writer.write(&chain[..3]);
    // The last two blocks are evicted and one of them comes again: two bundles begin with the first block.
    assert_eq!(writer.tier().evict(2, Tick(0)), 2);
    assert!(writer.write(&chain[..2]).iter().all(Result::is_ok));
    // The older one makes room.
    let other = SharedTierRig::chain(2, 2);
    assert!(writer.write(&other).iter().all(Result::is_ok));
    writer.read_all(&chain[..2]);
    assert_eq!(writer.tier().stats().present, 4);
    assert_eq!(writer.ask(&chain).leading, 2);
    // It becomes whole, without a hole.
    assert!(writer.write(&chain).iter().all(Result::is_ok));
    assert_eq!(SharedTierRig::names(&*store).len(), 1);
    writer.read_all(&chain);
    writer.tier().check_integrity();
}

#[test]
fn writes_wait_for_room_until_their_time_is_up() {
    let store = SimulatedStore::new(MemoryStore::new(), 1);
    let settings = settings()
        .staging_bytes(5 * 1024)
        .room_within(Duration::from_millis(200))
        .write_within(Duration::from_secs(3600))
        .close_within(Duration::from_millis(100));
    let writer = rig(&store, settings, 2);
    let shut = store.gate().shut(1);
    writer.begin_write(&SharedTierRig::chain(1, 4)).wait();
    // The first bundle fills staging memory and is not written.
    let second = SharedTierRig::chain(2, 4);
    let report = writer.begin_write(&second).wait_timeout(PATIENCE).unwrap();
    assert!(
        matches!(report.blocks[0], Ok(WriteSuccess::New)),
        "{report:?}"
    );
    for outcome in &report.blocks[1..] {
        assert!(matches!(outcome, Err(NotWritten::NoRoom)), "{outcome:?}");
    }
    // The memory of 100 further batches does not wait for the store either, one after the other least of all.
    let chains = (3..103).map(|number| SharedTierRig::chain(number, 1));
    let batches: Vec<_> = chains.map(|chain| writer.begin_write(&chain)).collect();
    let start = Instant::now();
    for batch in &batches {
        let left = (PATIENCE / 2).saturating_sub(start.elapsed());
        let report = batch.wait_timeout(left).unwrap();
        assert!(
            matches!(report.blocks[0], Err(NotWritten::NoRoom)),
            "{report:?}"
        );
    }
    assert_eq!(writer.tier().counters().no_room_blocks, 3 + 100);
    assert_eq!(writer.host().free_blocks(), writer.host().blocks());
    drop(shut);
    assert!(writer.tier().wait_for_writes(PATIENCE));
    assert_eq!(writer.tier().counters().written, 1);
}

#[test]
fn a_hit_renews_a_value_at_most_once_in_a_quarter_of_its_lifetime() {
    let store = SimulatedStore::new(MemoryStore::new(), 1);
    let chain = SharedTierRig::chain(1, 4);
    let settings = settings().lifetime(Duration::from_millis(1600));
    rig(&store, settings.clone(), 0).write(&chain);
    let reader = rig(&store, settings, 2);
    assert_eq!(reader.ask(&chain).leading, 4);
    // It is not known when the value was written, so the first hit renews it.
    reader.read_all(&chain);
    wait_until(&reader, |counters| counters.renewed == 1);
    reader.read_all(&chain);
    std::thread::sleep(Duration::from_millis(900));
    assert_eq!(reader.tier().counters().renewed, 1);
    reader.read_all(&chain);
    wait_until(&reader, |counters| counters.renewed == 2);
    std::thread::sleep(Duration::from_millis(900));
    // Without the renewals the value would have ended before this.
    reader.read_all(&chain);
    std::thread::sleep(Duration::from_millis(2000));
    let names = SharedTierRig::names(&*store);
    let has = store.has(&names, Deadline::within(PATIENCE)).unwrap();
    assert_eq!(
        has,
        vec![false; names.len()],
        "a value outlived its lifetime"
    );
}

#[test]
fn the_index_is_bounded_and_forgets_leaves_first() {
    let store = SimulatedStore::new(MemoryStore::new(), 1);
    let chains: Vec<_> = (0..10)
        .map(|number| SharedTierRig::chain(number, 8))
        .collect();
    let writer = rig(&store, settings(), 0);
    for chain in &chains {
        writer.write(chain);
    }
    let reader = rig(&store, settings().known_blocks_max(32), 0);
    for chain in &chains {
        assert_eq!(reader.ask(chain).leading, 8);
        reader.tier().check_integrity();
        let stats = reader.tier().stats();
        assert!(stats.present <= 32, "{stats:?}");
    }
    assert!(reader.tier().stats().evicted_for_room >= 48);
    // What it has forgotten is found by a new query.
    assert_eq!(reader.ask(&chains[0]).leading, 8);
    reader.read_all(&chains[0]);
}

#[test]
fn an_estimate_follows_the_store() {
    let store = SimulatedStore::new(MemoryStore::new(), 1);
    let chain = SharedTierRig::chain(1, 8);
    rig(&store, settings(), 0).write(&chain);
    let reader = rig(&store, settings(), 0);
    let group = chain[0].group;
    assert_eq!(reader.tier().estimate(group, 8), None);
    // The query measures the latency, so the first read is estimated.
    assert_eq!(reader.ask(&chain).leading, 8);
    let first = reader.tier().estimate(group, 8).unwrap();
    assert!(first < Duration::from_millis(100), "{first:?}");
    assert!(reader.tier().estimate(group, 8000).unwrap() > first * 100);
}

#[test]
fn reads_that_wait_for_a_thread_too_long_are_no_failure_of_the_store() {
    let store = SimulatedStore::new(MemoryStore::new(), 1);
    let chains: Vec<_> = (0..40)
        .map(|number| SharedTierRig::chain(number, 4))
        .collect();
    let writer = rig(&store, settings(), 0);
    for chain in &chains {
        writer.write(chain);
    }
    drop(writer);
    let reader = rig(
        &store,
        settings().read_within(Duration::from_millis(300)),
        2,
    );
    for chain in &chains {
        assert_eq!(reader.ask(chain).leading, 4);
    }
    // All calls hang that the limit lets through.
    let shut = store.gate().shut(16);
    let reads: Vec<_> = chains
        .iter()
        .map(|chain| reader.begin_read(&chain[..1]))
        .collect();
    let is_late = |counters: SharedTierCounters| counters.late >= 40;
    wait_until(&reader, is_late);
    drop(shut);
    for (_, read) in reads {
        let report = read.wait_timeout(PATIENCE).unwrap();
        assert_eq!(report.blocks.len(), 1);
    }
    assert_eq!(reader.tier().counters().late, 40);
    // Bundles whose read did not begin are still known: 16 calls had begun at most.
    assert!(
        reader.tier().stats().present >= 24 * 4,
        "{:?}",
        reader.tier().stats()
    );
}

#[test]
fn a_full_store_loses_writes_and_serves_what_it_has() {
    let inner = MemoryStore::bounded(20_000);
    let store = SimulatedStore::new(inner, 1);
    let writer = rig(&store, settings(), 2);
    let chains: Vec<_> = (0..4)
        .map(|number| SharedTierRig::chain(number, 4))
        .collect();
    // Two bundles of 8 KiB fit. The breaker opens after three failures in a row.
    for chain in &chains {
        assert!(writer.write(chain).iter().all(Result::is_ok));
    }
    let counters = writer.tier().counters();
    assert_eq!((counters.written, counters.write_failed), (2, 2));
    assert_eq!(writer.tier().stats().damaged, 8);
    let there: Vec<usize> = chains
        .iter()
        .map(|chain| writer.ask(chain).leading)
        .collect();
    assert_eq!(there, [4, 4, 0, 0]);
    for chain in &chains[..2] {
        writer.read_all(chain);
    }
}
