//! Random parts with random blocks against a naive search over layers and heads.

use std::collections::BTreeMap;

use kvtile_layout::Shard;
use kvtile_random::SplitMix64;

use crate::common::{HEADS, LAYERS, Rank, grid, shard};

/// Whether the parts with a block have each layer of each head of `wanted`.
fn covers(wanted: &Shard, parts: &[&Shard]) -> bool {
    let has = |shard: &Shard, layer: u64, head: u64| {
        let layers = shard.layers.start..shard.layers.start + shard.layers.count;
        let heads = shard.heads.start..shard.heads.start + shard.heads.count;
        layers.contains(&layer) && heads.contains(&head)
    };
    let cells = (0..LAYERS).flat_map(|layer| (0..HEADS).map(move |head| (layer, head)));
    let mut cells = cells.filter(|&(layer, head)| has(wanted, layer, head));
    cells.all(|(layer, head)| parts.iter().any(|part| has(part, layer, head)))
}

#[test]
fn a_block_is_there_exactly_if_its_parts_cover_the_reader() {
    const BLOCKS: u32 = 5;
    let some_grid = |random: &mut SplitMix64| {
        let stages = [1, 2, 4][random.index(3)];
        let ranks = [1, 2, 4, 8][random.index(4)];
        grid(stages, ranks)
    };
    let mut hits = 0;
    for seed in 0..8 {
        let mut random = SplitMix64::new(seed);
        let folder = tempfile::tempdir().unwrap();
        // The number of leading blocks of each part.
        let mut written: BTreeMap<String, (Shard, u32)> = BTreeMap::new();
        for _ in 0..3 {
            for shard in some_grid(&mut random) {
                let blocks = BLOCKS - random.below(3) as u32;
                let name = format!("{shard:?}");
                if random.once_in(6) || written.contains_key(&name) {
                    continue;
                }
                let rank = Rank::open(folder.path(), shard);
                rank.store(1, blocks);
                assert!(rank.cache.close().durable);
                written.insert(name, (shard, blocks));
            }
        }
        for reader in some_grid(&mut random) {
            let has = |block: u32| {
                let parts = written.values().filter(|(_, blocks)| *blocks > block);
                let parts: Vec<&Shard> = parts.map(|(shard, _)| shard).collect();
                covers(&reader, &parts)
            };
            let expected = (0..BLOCKS).take_while(|block| has(*block)).count();
            let rank = Rank::open(folder.path(), reader);
            // Compares every byte.
            assert_eq!(
                rank.load(1, BLOCKS),
                expected,
                "seed {seed}, {reader:?}, {written:?}"
            );
            rank.parts();
            hits += expected;
        }
    }
    assert!(hits > 50, "{hits} hits");
}

/// Two ranks evict all the time, independently of each other, while others read: a block that comes is right.
#[test]
fn readers_beside_writers_that_evict_get_right_bytes_or_misses() {
    /// Room for some 20 of 120 blocks.
    const DISK_BYTES: u64 = 26 * 4096;
    const PROMPTS: u64 = 40;
    const BLOCKS: u32 = 3;
    let folder = tempfile::tempdir().unwrap();
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let over = || is_over.load(std::sync::atomic::Ordering::Relaxed);
    let came = std::thread::scope(|scope| {
        for (seed, shard) in (0..).zip(grid(1, 2)) {
            let (folder, over) = (folder.path(), &over);
            scope.spawn(move || {
                let mut random = SplitMix64::new(seed);
                let rank = Rank::open_with(folder, shard, DISK_BYTES);
                while !over() {
                    rank.store(random.below(PROMPTS) as u32, BLOCKS);
                }
            });
        }
        let readers = [grid(1, 1), grid(4, 1), vec![shard(0..LAYERS, 3..5)]].concat();
        let readers: Vec<_> = (10..)
            .zip(readers)
            .map(|(seed, shard)| {
                let folder = folder.path();
                scope.spawn(move || {
                    let mut random = SplitMix64::new(seed);
                    let mut came = 0;
                    for _ in 0..12 {
                        // With empty host memory each time.
                        let rank = Rank::open(folder, shard);
                        for _ in 0..30 {
                            came += rank.load(random.below(PROMPTS) as u32, BLOCKS);
                        }
                    }
                    came
                })
            })
            .collect();
        let came: Vec<_> = readers.into_iter().map(|reader| reader.join()).collect();
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
        came.into_iter().map(Result::unwrap).sum::<usize>()
    });
    assert!(came > 50, "{came} blocks came");
}
