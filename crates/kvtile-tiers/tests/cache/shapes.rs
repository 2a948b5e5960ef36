//! Caches of blocks that no layout config describes: recurrent states, and records with scales.

use kvtile_blocks::BlockKey;
use kvtile_layout::{Axis, Plane, Shape, Unit, Word, identity::Identity};
use kvtile_tiers::cache::CacheSettings;
use kvtile_transfer::{FillPattern, PhysicalLayout};

use super::common::chain;
use super::keeper::{self, TestCache};

/// Number of blocks of the chain.
const BLOCKS: usize = 6;

/// Number of blocks of the engine.
const ENGINE_BLOCKS: usize = 16;

/// 4,100 bytes for each page and layer, which is no multiple of the 16 tokens.
fn state() -> Shape {
    let unit = Unit::opaque("state", 4100).unwrap();
    let plane = Plane::new("s", unit).unwrap().per_page();
    Shape::new(ENGINE_BLOCKS as u64, 2, 16, vec![plane]).unwrap()
}

/// Records of 34 bytes for 32 values, and a scale of 4 bytes for each page.
fn quantised() -> Shape {
    let record = Unit::new("q8_0", 34, 32).unwrap();
    let record = Plane::new("k", record).unwrap().extent(Axis::C, 3);
    let scale = Plane::new("ks", Unit::raw(4).unwrap()).unwrap().per_page();
    Shape::new(ENGINE_BLOCKS as u64, 2, 16, vec![record, scale]).unwrap()
}

fn engine(shape: &Shape, word: &str) -> PhysicalLayout {
    let layout = PhysicalLayout::builder()
        .with_shape(shape.clone())
        .layout(word.parse::<Word>().unwrap())
        .allocate_system()
        .build()
        .unwrap();
    assert!(layout.config().is_err(), "a config describes {word}");
    layout
}

/// Fills the blocks from 0 on and stores them. Returns their digests.
fn store(cache: &TestCache, keys: &[BlockKey]) -> Vec<String> {
    let manager = cache.manager();
    let blocks: Vec<usize> = (0..keys.len()).collect();
    let pattern = FillPattern::Distinct { seed: 11 };
    manager.fill(cache.engine(), &blocks, pattern).unwrap();
    let stored = cache.store(keys, &blocks);
    assert_eq!(stored.unwrap().wait().stored, keys.len());
    digests(cache, 0)
}

/// The digests of the blocks of the chain, which starts at block `first`.
fn digests(cache: &TestCache, first: usize) -> Vec<String> {
    let digest = |block| cache.manager().block_digest(cache.engine(), block).unwrap();
    (first..first + BLOCKS)
        .map(|block| digest(block).to_string())
        .collect()
}

/// Loads the whole chain to the last blocks of the engine.
fn load(cache: &TestCache, keys: &[BlockKey]) -> Vec<String> {
    let first = ENGINE_BLOCKS - BLOCKS;
    let blocks: Vec<usize> = (first..ENGINE_BLOCKS).collect();
    let pattern = FillPattern::Constant(0xa5);
    let manager = cache.manager();
    manager.fill(cache.engine(), &blocks, pattern).unwrap();
    let found = cache.lookup(keys);
    assert_eq!(found.blocks(), BLOCKS);
    let loaded = cache.load(found, &blocks);
    assert_eq!(loaded.unwrap().wait().blocks, BLOCKS);
    digests(cache, first)
}

/// One engine stores the blocks and loads them from host memory. After a restart, an engine with
/// another layout loads them from disk.
#[test]
fn blocks_that_no_config_describes_survive_in_host_memory_and_on_disk() {
    for (shape, word, other) in [
        (state(), "BLs", "L|Bs"),
        (quantised(), "L|B(k,ks)NC", "BL(kCN,ks)"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let one = shape.with_num_blocks(1).unwrap();
        let identity = Identity::new("a-model", "main", &one).unwrap();
        let settings = || {
            CacheSettings::new(identity.clone())
                .host_bytes(1 << 20)
                .disk(folder.path(), 4 << 20)
        };
        let keys = chain(1, BLOCKS);
        let cache = keeper::open(settings(), engine(&shape, word)).unwrap();
        let stored = store(&cache, &keys);
        assert_eq!(load(&cache, &keys), stored, "{word} from host memory");
        drop(cache);

        let cache = keeper::open(settings(), engine(&shape, other)).unwrap();
        assert_eq!(load(&cache, &keys), stored, "{word} to {other} from disk");
    }
}
