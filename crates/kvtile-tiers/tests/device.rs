//! A cache whose engine is in memory of a device, under the stand-in driver: blocks go to host memory and to the disk and
//! come back, bit for bit. Not run on hardware.

use kvtile_blocks::{BlockKey, events::TierId};
use kvtile_layout::{Shape, identity::Identity};
use kvtile_standin::{Standin, StandinLeaks, StandinOptions};
use kvtile_tiers::cache::{Cache, CacheSettings};
use kvtile_transfer::{FillPattern, PhysicalLayout};

fn keys(chain: u8, blocks: u8) -> Vec<BlockKey> {
    let key =
        |block| BlockKey::from_bytes([chain, block, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    (0..blocks).map(key).collect()
}

#[test]
fn a_cache_over_a_device_keeps_blocks_in_registered_memory_and_on_the_disk() {
    for seed in 0..2 {
        let standin = Standin::start(StandinOptions::seeded(seed));
        let device = standin.driver().unwrap().device(0).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let shape = Shape::key_value(16, 3, 8, 2, 16, "bf16").unwrap();
        let open = || {
            let engine = PhysicalLayout::builder().with_shape(shape.clone());
            let engine = engine.layout("L|BH(kCN,vNC)").allocate_device(&device);
            let identity = Identity::new("a-model", "main", &shape).unwrap();
            let settings = CacheSettings::new(identity).host_bytes(1 << 20);
            let settings = settings.disk(folder.path(), 4 << 20);
            Cache::open(settings, engine.build().unwrap()).unwrap()
        };
        let cache = open();
        assert_eq!(
            standin.leaks().registrations,
            1,
            "host memory is registered"
        );
        let keys = keys(1, 6);
        let blocks = [0, 1, 2, 3, 4, 5];
        let pattern = FillPattern::Distinct { seed };
        cache
            .manager()
            .fill(cache.engine(), &blocks, pattern)
            .unwrap();
        let digest = |cache: &Cache, block| {
            let digest = cache.manager().block_digest(cache.engine(), block);
            digest.unwrap().to_string()
        };
        let expected: Vec<String> = blocks.map(|block| digest(&cache, block)).to_vec();
        assert_eq!(cache.store(&keys, &blocks).unwrap().wait().stored, 6);
        let load = |cache: &Cache, to: [usize; 6]| {
            let nothing = FillPattern::Constant(1);
            cache.manager().fill(cache.engine(), &to, nothing).unwrap();
            let found = cache.lookup(&keys);
            assert_eq!(found.blocks(), 6);
            let load = cache.load(found, &to).unwrap();
            for layer in 0..3 {
                assert!(load.wait_layer(layer).is_ok());
            }
            assert_eq!(load.wait().blocks, 6);
            let loaded: Vec<String> = to.map(|block| digest(cache, block)).to_vec();
            assert_eq!(loaded, expected, "seed {seed}");
        };
        load(&cache, [9, 7, 10, 15, 8, 6]);
        cache.flush();
        cache.check_integrity();
        drop(cache);
        // After a restart the blocks come from the disk, verified in host memory.
        let cache = open();
        load(&cache, [1, 0, 3, 2, 5, 4]);
        assert!(cache.tier_stats(TierId::DISK).is_some());
        drop((cache, device));
        assert_eq!(standin.complaints(), []);
        assert_eq!(standin.leaks(), StandinLeaks::default());
    }
}
