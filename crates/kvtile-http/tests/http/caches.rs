//! Caches with a disk and a store that they share.

use std::{path::Path, sync::Arc, time::Duration};

use kvtile::{
    BlockKey, Cache, CacheSettings, FillPattern, Identity, PhysicalLayout, Shape, TierId,
    TokenHasher,
    shared::{
        memory::MemoryStore,
        store::SharedStore,
        tier::{SharedTier, SharedTierSettings},
    },
    tiers::tier::{TierSettings, TierWrites},
};

/// A model name that every format has to escape.
pub(crate) const MODEL: &str = "a \"model\" of </script> {x}";

fn shape() -> Shape {
    Shape::key_value(64, 4, 16, 2, 64, "bf16").unwrap()
}

fn identity() -> Identity {
    Identity::new(MODEL, "main", &shape()).unwrap()
}

pub(crate) fn keys(family: u32, blocks: u32) -> Vec<BlockKey> {
    let tokens: Vec<u32> = (0..blocks * 16).map(|at| family * 100_000 + at).collect();
    TokenHasher::new(&identity()).unwrap().keys(&tokens)
}

/// A cache with eight host blocks, a disk of many, and a store with bundles of two blocks.
pub(crate) fn open(folder: &Path, store: Arc<dyn SharedStore>) -> Cache {
    let engine = PhysicalLayout::builder()
        .with_shape(shape())
        .layout("BLKNHC");
    let engine = engine.allocate_system().build().unwrap();
    let block = shape().block_bytes().unwrap();
    let settings = CacheSettings::new(identity())
        .host_bytes(8 * block)
        .disk(folder, 64 * block + (1 << 20));
    let shared = SharedTierSettings::new()
        .bundle_blocks(2)
        .absent_for(Duration::ZERO);
    let writes = TierSettings::default().writes(TierWrites::AtOnce);
    let cache = Cache::builder(settings)
        .tier(writes, SharedTier::opener(TierId::SHARED, store, shared))
        .open(engine)
        .unwrap();
    let blocks: Vec<usize> = (0..64).collect();
    let content = FillPattern::Distinct { seed: 1 };
    cache
        .manager()
        .fill(cache.engine(), &blocks, content)
        .unwrap();
    cache
}

/// Lets caches store, hit, miss, load and share, so that most counters are not zero.
pub(crate) fn use_two(folder: &Path) -> [Arc<Cache>; 2] {
    let store: Arc<dyn SharedStore> = MemoryStore::new();
    let [first, second] = ["one", "two"].map(|name| {
        let folder = folder.join(name);
        Arc::new(open(&folder, Arc::clone(&store)))
    });
    let chain = keys(1, 12);
    let ids: Vec<usize> = (0..12).collect();
    for (key, id) in [(6, 0), (12, 6)] {
        let stored = first.store_with(
            &chain[..key],
            &ids[id..key],
            &kvtile::StoreOptions::new().first(id),
        );
        stored.unwrap().wait();
    }
    while shared(&first).counters().written < 6 {
        std::thread::sleep(Duration::from_millis(1));
    }
    for (cache, blocks) in [(&first, 12), (&second, 12)] {
        let found = cache.seek(&keys(1, 14), Duration::from_secs(10)).wait();
        assert_eq!(found.blocks(), blocks);
        let load = cache
            .load(found, &(20..32).collect::<Vec<usize>>())
            .unwrap();
        assert_eq!(load.wait().blocks, blocks);
    }
    [first, second]
}

/// The shared tier of a cache.
pub(crate) fn shared(cache: &Cache) -> &SharedTier {
    let tier = cache.tier(TierId::SHARED).unwrap();
    tier.as_any().downcast_ref::<SharedTier>().unwrap()
}
