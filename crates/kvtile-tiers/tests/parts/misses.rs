//! Parts that are damaged, evicted, missing or of another kind are misses of the blocks that need them.

use kvtile_blocks::events::TierId;
use kvtile_layout::Shard;
use kvtile_tiers::disk::FollowCondition;

use crate::common::{HEADS, LAYERS, Rank, chain, damage, grid, shard, written};

#[test]
fn damage_in_one_part_is_a_miss_for_exactly_the_readers_that_need_it() {
    let folder = tempfile::tempdir().unwrap();
    let writers = grid(2, 4);
    written(folder.path(), &writers, 1, 4);
    // Layers 2 and 3, heads 2 and 3.
    let damaged = writers[5];
    damage(folder.path(), &damaged);
    let needs = |reader: &Shard| {
        let layers = reader.layers.intersection(damaged.layers);
        layers
            .and(reader.heads.intersection(damaged.heads))
            .is_some()
    };
    for readers in [(1, 1), (2, 1), (1, 8), (4, 2)] {
        for reader in grid(readers.0, readers.1) {
            let rank = Rank::open(folder.path(), reader);
            let came = if needs(&reader) { 0 } else { 4 };
            assert_eq!(rank.load(1, 4), came, "{reader:?}");
            let stats = rank.parts().unwrap().parts_stats();
            assert_eq!(stats.damaged > 0, needs(&reader), "{stats:?}");
            // A block that failed is not found again.
            assert_eq!(rank.cache.lookup(&chain(reader, 1, 4)).blocks(), came);
        }
    }
}

/// A damaged part has a substitute in the parts of another number of ranks.
#[test]
fn other_parts_take_the_place_of_a_damaged_one() {
    let folder = tempfile::tempdir().unwrap();
    written(folder.path(), &grid(1, 2), 1, 4);
    written(folder.path(), &grid(1, 4), 1, 4);
    damage(folder.path(), &shard(0..LAYERS, 0..4));
    let rank = Rank::open(folder.path(), Shard::whole(LAYERS, HEADS));
    assert_eq!(rank.load(1, 4), 4);
    drop(rank);
    damage(folder.path(), &shard(0..LAYERS, 2..4));
    let rank = Rank::open(folder.path(), Shard::whole(LAYERS, HEADS));
    assert_eq!(rank.load(1, 4), 0);
}

#[test]
fn a_part_that_its_writer_evicts_is_a_miss() {
    let folder = tempfile::tempdir().unwrap();
    let writers = grid(1, 2).into_iter();
    let writers: Vec<Rank> = writers
        .map(|shard| Rank::open(folder.path(), shard))
        .collect();
    writers.iter().for_each(|rank| rank.store(1, 5));
    let reader = Rank::open(folder.path(), Shard::whole(LAYERS, HEADS));
    reader.until_there(1, 5, 5);
    assert_eq!(writers[1].cache.evict(TierId::DISK, 2).unwrap(), 2);
    reader.until_there(1, 5, 3);
    assert_eq!(reader.load(1, 5), 3);
}

/// A rank that ended early leaves the blocks that it wrote, and those that it lacks are misses.
#[test]
fn blocks_that_a_rank_did_not_write_are_misses() {
    let folder = tempfile::tempdir().unwrap();
    let writers = grid(1, 4);
    for (shard, blocks) in writers.iter().zip([5, 2, 5, 4]) {
        written(folder.path(), &[*shard], 1, blocks);
    }
    for (reader, came) in [
        (shard(0..LAYERS, 0..HEADS), 2),
        (shard(0..LAYERS, 0..2), 5),
        (shard(0..LAYERS, 3..5), 2),
        (shard(1..3, 4..8), 4),
    ] {
        let rank = Rank::open(folder.path(), reader);
        assert_eq!(rank.load(1, 5), came, "{reader:?}");
    }
}

#[test]
fn folders_that_are_no_parts_of_this_model_are_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let whole = Shard::whole(LAYERS, HEADS);
    written(folder.path(), &grid(1, 2), 1, 3);
    // A part outside the model; a link; a file; another part's folder under the name of a missing one.
    let part = |name: &str| folder.path().join(name);
    std::fs::create_dir(part("layers-0-4.heads-8-16")).unwrap();
    std::os::unix::fs::symlink(part("layers-0-4.heads-0-4"), part("layers-0-4.heads-0-2")).unwrap();
    std::fs::write(part("layers-0-4.heads-2-4"), "").unwrap();
    std::fs::rename(part("layers-0-4.heads-4-8"), part("layers-0-4.heads-3-8")).unwrap();
    let rank = Rank::open(folder.path(), whole);
    assert_eq!(rank.load(1, 3), 0);
    let parts = rank.parts().unwrap().parts();
    let condition = |name: &str| {
        let mut parts = parts.iter();
        let found = parts.find(|status| status.part.to_string() == name);
        found.map(|status| status.condition.clone())
    };
    let followed = condition("layers-0-4.heads-0-4");
    assert!(
        matches!(followed, Some(FollowCondition::Followed)),
        "{followed:?}"
    );
    for (name, problem) in [
        (
            "layers-0-4.heads-8-16",
            "not inside a model of 4 layers and 8 heads",
        ),
        ("layers-0-4.heads-3-8", "planes.k.H"),
    ] {
        let Some(FollowCondition::Unusable { error }) = condition(name) else {
            panic!("{name}: {parts:?}")
        };
        assert!(error.to_string().contains(problem), "{error}");
    }
    for name in ["layers-0-4.heads-0-2", "layers-0-4.heads-2-4"] {
        assert!(condition(name).is_none(), "{name}");
    }
    drop(rank);
    std::fs::rename(part("layers-0-4.heads-3-8"), part("layers-0-4.heads-4-8")).unwrap();
    assert_eq!(Rank::open(folder.path(), whole).load(1, 3), 3);
}

#[test]
fn a_cleared_cache_does_not_find_the_parts_that_were_there() {
    let folder = tempfile::tempdir().unwrap();
    written(folder.path(), &grid(1, 2), 1, 3);
    let whole = Shard::whole(LAYERS, HEADS);
    let reader = Rank::open(folder.path(), whole);
    assert_eq!(reader.load(1, 3), 3);
    // Three in host memory and three in the parts.
    assert_eq!(reader.cache.clear().unwrap(), 6);
    reader.until_there(1, 3, 0);
    assert_eq!(reader.load(1, 3), 0);
    // Later blocks are found, and other caches find all.
    written(folder.path(), &grid(1, 2), 2, 3);
    reader.until_there(2, 3, 3);
    assert_eq!(reader.load(2, 3), 3);
    assert_eq!(reader.parts().unwrap().parts().len(), 2);
    drop(reader);
    assert_eq!(Rank::open(folder.path(), whole).load(1, 3), 3);
}
