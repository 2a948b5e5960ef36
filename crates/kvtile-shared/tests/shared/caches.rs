//! Caches over shared stores, with engines of different layouts.

use std::{sync::Arc, time::Duration};

use kvtile_blocks::{
    BlockKey,
    events::{TierId, TierKind},
};
use kvtile_layout::{
    Shape,
    identity::{Fingerprint, Identity},
};
use kvtile_shared::{
    memory::MemoryStore,
    store::SharedStore,
    tier::{SharedTier, SharedTierSettings},
};
use kvtile_testkit::{
    disk::SplitMix64,
    shared::{SimulatedStore, StoreFaults},
};
use kvtile_tiers::{
    TokenHasher,
    block_store::{BlockStore, BlockStoreSettings, RowStoreOptions, StoreGroup},
    cache::{Cache, CacheSettings},
    tier::{TierSettings, TierWrites},
};
use kvtile_transfer::{FillPattern, PhysicalLayout};

use crate::stores::folder;

/// Blocks of an engine: the first half is stored, the other half is loaded to.
pub(crate) const ENGINE_BLOCKS: usize = 64;

const PATIENCE: Duration = Duration::from_secs(30);

fn shape(blocks: u64) -> Shape {
    Shape::key_value(blocks, 4, 16, 2, 64, "bf16").unwrap()
}

fn identity() -> Identity {
    Identity::new("a-model", "main", &shape(1)).unwrap()
}

fn tier_id() -> TierId {
    TierId::new(TierKind::Remote, "shared").unwrap()
}

/// The keys of a chain of some family.
pub(crate) fn keys(family: u32, blocks: u32) -> Vec<BlockKey> {
    let tokens: Vec<u32> = (0..blocks * 16).map(|at| family * 100_000 + at).collect();
    TokenHasher::new(&identity()).unwrap().keys(&tokens)
}

/// A cache over a store, and an engine whose blocks have contents that depend on their number.
pub(crate) fn cache(store: Arc<dyn SharedStore>, layout: &str, bundle_blocks: u32) -> Cache {
    cache_with(
        store,
        layout,
        SharedTierSettings::new().bundle_blocks(bundle_blocks),
    )
}

fn cache_with(store: Arc<dyn SharedStore>, layout: &str, settings: SharedTierSettings) -> Cache {
    let settings = settings
        .read_within(Duration::from_secs(2))
        .absent_for(Duration::ZERO);
    let writes = TierSettings::default().writes(TierWrites::AtOnce);
    let cache = Cache::builder(CacheSettings::new(identity()).host_bytes(4 << 20))
        .tier(writes, SharedTier::opener(tier_id(), store, settings));
    let engine = PhysicalLayout::builder().with_shape(shape(ENGINE_BLOCKS as u64));
    let engine = engine.layout(layout).allocate_system().build().unwrap();
    let cache = cache.open(engine).unwrap();
    let sources: Vec<usize> = (0..ENGINE_BLOCKS / 2).collect();
    let pattern = FillPattern::Distinct { seed: 7 };
    cache
        .manager()
        .fill(cache.engine(), &sources, pattern)
        .unwrap();
    cache
}

fn digest(cache: &Cache, block: usize) -> Fingerprint {
    cache.manager().block_digest(cache.engine(), block).unwrap()
}

/// Loads what a seek finds of a chain that was stored from the blocks `from..`, and compares the
/// bytes. Returns the number of blocks that came.
pub(crate) fn load(cache: &Cache, keys: &[BlockKey], from: usize) -> usize {
    let found = cache.seek(keys, PATIENCE).wait();
    let to: Vec<usize> = (0..found.blocks())
        .map(|at| ENGINE_BLOCKS / 2 + at)
        .collect();
    let report = cache.load(found, &to).unwrap().wait();
    for (at, &to) in to.iter().take(report.blocks).enumerate() {
        assert_eq!(digest(cache, to), digest(cache, from + at), "block {at}");
    }
    report.blocks
}

/// Waits until another cache would find a number of blocks.
pub(crate) fn wait_for(store: &Arc<dyn SharedStore>, values: usize) {
    let start = std::time::Instant::now();
    while kvtile_testkit::shared::SharedTierRig::names(&**store).len() < values {
        assert!(start.elapsed() < PATIENCE, "the blocks are not written");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_second_cache_in_the_process_loads_what_the_first_stored_in_another_layout() {
    for (open, blocks) in [(folder(true), 4), (folder(false), 1)] {
        let store = open();
        let first = cache(open(), "L|BH(kCN,vNC)", blocks);
        let chain = keys(1, 12);
        let from: Vec<usize> = (0..12).collect();
        assert_eq!(first.store(&chain, &from).unwrap().wait().stored, 12);
        wait_for(&store, 12 / blocks as usize);
        let second = cache(open(), "BLKNHC", blocks);
        assert_eq!(second.lookup(&chain).blocks(), 0, "nobody has asked");
        let found = second.seek(&chain, PATIENCE).wait();
        assert_eq!(found.blocks_in(tier_id()), 12);
        drop(found);
        assert_eq!(load(&second, &chain, 0), 12);
        // Now they are in host memory.
        assert_eq!(second.lookup(&chain).blocks_in(TierId::HOST), 12);
        // The first cache closes with everything durable that is whole.
        drop(first.close());
        assert_eq!(load(&second, &keys(2, 3), 0), 0);
    }
}

#[test]
fn a_flush_waits_for_the_room_that_a_store_in_passing_does_not() {
    let store = folder(true)();
    let slow = SimulatedStore::new(Arc::clone(&store), 1);
    // Room for one bundle of four blocks, and no wait for it.
    let block_bytes = shape(1).block_bytes().unwrap();
    let settings = SharedTierSettings::new().bundle_blocks(4);
    let settings = settings
        .staging_bytes(4 * block_bytes)
        .room_within(Duration::ZERO);
    let cache = cache_with(Arc::clone(&slow) as _, "BLKNHC", settings);
    let shut = slow.gate().shut(1);
    let chain = keys(1, 16);
    let from: Vec<usize> = (0..16).collect();
    assert_eq!(cache.store(&chain, &from).unwrap().wait().stored, 16);
    let tier = cache.tier(tier_id()).unwrap();
    let tier = tier.as_any().downcast_ref::<SharedTier>().unwrap();
    let start = std::time::Instant::now();
    while tier.counters().no_room_blocks == 0 {
        assert!(start.elapsed() < PATIENCE, "{:?}", tier.counters());
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(shut);
    let flushed = cache.flush();
    assert!(flushed.durable && flushed.no_room == 0, "{flushed:?}");
    assert_eq!(
        kvtile_testkit::shared::SharedTierRig::names(&*store).len(),
        4
    );
}

#[test]
fn a_flush_makes_whole_bundles_durable() {
    let open = folder(true);
    let cache = cache(open(), "BLKNHC", 4);
    let chain = keys(1, 8);
    let from: Vec<usize> = (0..8).collect();
    cache.store(&chain, &from).unwrap().wait();
    let report = cache.flush();
    assert!(report.durable, "{report:?}");
    // A tail is not.
    cache.store(&keys(2, 6), &from[..6]).unwrap().wait();
    let report = cache.flush();
    assert!(!report.durable, "{report:?}");
    assert_eq!((report.wanted, report.no_tier), (14, 2), "{report:?}");
    assert_eq!((report.failed, report.late), (0, 0), "{report:?}");
    assert_eq!(report.tiers[0].wanted, 12, "{report:?}");
    assert_eq!(report.tiers[0].durable, 12, "{report:?}");
}

#[test]
fn block_stores_share_a_folder() {
    let open = folder(true);
    let group = || StoreGroup::new("kv", identity(), shape(1));
    let store = || {
        let settings = SharedTierSettings::new().bundle_blocks(4);
        let opener = SharedTier::opener(tier_id(), open(), settings);
        BlockStore::builder(BlockStoreSettings::new(vec![group()]))
            .tier(TierSettings::default(), opener)
            .open()
            .unwrap()
    };
    let rows = || {
        let rows = PhysicalLayout::builder().with_shape(shape(32));
        rows.layout("BLHKNC").allocate_system().build().unwrap()
    };
    let chain = keys(1, 8);
    let first = store();
    let registered = first.register("kv", rows()).unwrap();
    let parents = (0..8).map(|at: usize| at.checked_sub(1).map(|at| chain[at]));
    let options = RowStoreOptions::new()
        .parents(parents.collect())
        .positions((0..8).collect());
    let ids: Vec<usize> = (0..8).collect();
    let stored = first
        .store_with(&chain, &registered, &ids, &options)
        .unwrap();
    assert_eq!(stored.wait().ok(), 8);
    assert!(first.flush(None).durable);
    let second = store();
    let loaded = second.register("kv", rows()).unwrap();
    assert_eq!(second.contains(loaded.group(), &chain).unwrap(), [false; 8]);
    for answer in second.ask(loaded.group(), &chain).unwrap() {
        assert_eq!(answer.wait_timeout(PATIENCE).unwrap().leading, 8);
    }
    assert_eq!(second.contains(loaded.group(), &chain).unwrap(), [true; 8]);
    assert_eq!(second.load(&chain, &loaded, &ids).unwrap().wait().ok(), 8);
}

/// The number of writes to a store: of announcements of parts, and of bundles of four blocks.
fn writes(store: &SimulatedStore) -> (usize, usize) {
    let written = store.written();
    let count =
        |is_so: fn(&str) -> bool| written.iter().filter(|name| is_so(name.as_str())).count();
    (
        count(|name| name.contains("/parts/")),
        count(|name| name.ends_with(".4")),
    )
}

#[test]
fn a_block_store_announces_no_part_and_a_cache_announces_its_own() {
    let chain = keys(1, 8);
    let counting = SimulatedStore::new(MemoryStore::new(), 1);
    let as_store = Arc::clone(&counting) as Arc<dyn SharedStore>;
    let settings = SharedTierSettings::new().bundle_blocks(4);
    let opener = SharedTier::opener(tier_id(), Arc::clone(&as_store), settings);
    let group = StoreGroup::new("kv", identity(), shape(1));
    let blocks = BlockStore::builder(BlockStoreSettings::new(vec![group]))
        .tier(TierSettings::default(), opener)
        .open()
        .unwrap();
    let rows = PhysicalLayout::builder().with_shape(shape(8));
    let rows = rows.layout("BLHKNC").allocate_system().build().unwrap();
    let rows = blocks.register("kv", rows).unwrap();
    let parents = (0..8).map(|at: usize| at.checked_sub(1).map(|at| chain[at]));
    let options = RowStoreOptions::new()
        .parents(parents.collect())
        .positions((0..8).collect());
    let ids: Vec<usize> = (0..8).collect();
    let stored = blocks.store_with(&chain, &rows, &ids, &options).unwrap();
    assert_eq!(stored.wait().ok(), 8);
    wait_for(&as_store, 2);
    assert_eq!(writes(&counting), (0, 2), "{:?}", counting.written());
    // A cache over another store of the same blocks.
    let counting = SimulatedStore::new(MemoryStore::new(), 1);
    let as_store = Arc::clone(&counting) as Arc<dyn SharedStore>;
    let cache = cache(Arc::clone(&as_store), "BLKNHC", 4);
    assert_eq!(cache.store(&chain, &ids).unwrap().wait().stored, 8);
    wait_for(&as_store, 2);
    assert_eq!(writes(&counting), (1, 2), "{:?}", counting.written());
}

/// Caches that store, evict, look up and load over a store that misbehaves.
fn simulate(seed: u64) -> (usize, usize) {
    println!("seed {seed}");
    let store = SimulatedStore::new(MemoryStore::new(), seed);
    let mut numbers = SplitMix64::new(seed);
    let open = |number: usize| {
        let layout = ["L|BH(kCN,vNC)", "BLKNHC"][number];
        cache(Arc::clone(&store) as Arc<dyn SharedStore>, layout, 4)
    };
    let mut caches: Vec<Cache> = (0..2).map(open).collect();
    let (mut came, mut wanted) = (0, 0);
    for step in 0..120 {
        let faults = match step % 40 {
            0..28 => StoreFaults::all(30),
            _ => StoreFaults::default(),
        };
        store.set_faults(faults);
        let at = numbers.index(caches.len());
        // Four families of blocks, each stored from blocks of its own.
        let family = u32::try_from(numbers.below(4)).unwrap();
        let from = family as usize * 8;
        let chain = keys(family, 1 + u32::try_from(numbers.below(8)).unwrap());
        match numbers.below(10) {
            0..=3 => {
                let blocks: Vec<usize> = (from..from + chain.len()).collect();
                drop(caches[at].store(&chain, &blocks).unwrap().wait());
            }
            4..=7 => {
                wanted += chain.len();
                came += load(&caches[at], &chain, from);
            }
            8 => drop(caches[at].evict(TierId::HOST, numbers.index(12))),
            _ => caches[at] = open(at),
        }
    }
    (came, wanted)
}

#[test]
fn caches_over_a_store_that_misbehaves_load_no_wrong_byte() {
    let (mut came, mut wanted) = (0, 0);
    for seed in 0..6 {
        let (some, all) = simulate(seed);
        came += some;
        wanted += all;
    }
    println!("{came} of {wanted} blocks came");
    assert!(came > wanted / 10 && came < wanted, "{came} of {wanted}");
}
