//! What any number of ranks wrote is read by any other number.

use kvtile_layout::Shard;

use crate::common::{HEADS, LAYERS, Rank, chain, grid, shard, written};

#[test]
fn keys_do_not_depend_on_the_part() {
    let whole = chain(Shard::whole(LAYERS, HEADS), 1, 5);
    for shard in grid(2, 4) {
        assert_eq!(chain(shard, 1, 5), whole);
    }
}

/// Every grid of ranks reads what every other one wrote: all bytes are those of the naive slice.
#[test]
fn all_grids_of_ranks_read_each_others_blocks() {
    let grids = [(1, 1), (1, 2), (1, 4), (1, 8), (2, 1), (2, 2), (4, 2)];
    for writers in grids {
        let folder = tempfile::tempdir().unwrap();
        written(folder.path(), &grid(writers.0, writers.1), 1, 5);
        for readers in grids {
            for shard in grid(readers.0, readers.1) {
                let rank = Rank::open(folder.path(), shard);
                assert_eq!(rank.load(1, 6), 5, "{shard:?} of {writers:?}");
                let assembled = rank.assembled();
                let is_own = grid(writers.0, writers.1).contains(&shard);
                assert_eq!(
                    assembled,
                    if is_own { 0 } else { 5 },
                    "{shard:?} of {writers:?}"
                );
            }
        }
    }
}

#[test]
fn a_part_that_appears_later_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let reader = Rank::open(folder.path(), shard(0..4, 2..6));
    written(folder.path(), &[shard(0..4, 0..4)], 1, 3);
    reader.until_there(1, 3, 0);
    written(folder.path(), &[shard(0..4, 4..8)], 1, 2);
    reader.until_there(1, 3, 2);
    assert_eq!(reader.load(1, 3), 2);
}
