//! Parts that no rank writes any more: they serve hits, and give way as the new parts grow.

use std::path::Path;

use crate::common::{Rank, grid, written};

/// Bytes of the disk space of a model's folder.
const FOLDER_BYTES: u64 = 4 << 20;

/// Blocks of a prompt.
const BLOCKS: u32 = 8;

/// Bytes that a folder and the folders in it take on the disk.
fn kept(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap());
    let bytes = entries.map(|entry| {
        let facts = entry.metadata().unwrap();
        match facts.is_dir() {
            true => kept(&entry.path()),
            false => facts.blocks() * 512,
        }
    });
    bytes.sum()
}

fn open(folder: &Path, ranks: u64) -> Vec<Rank> {
    let shards = grid(1, ranks).into_iter();
    let open = |shard| Rank::open_with(folder, shard, FOLDER_BYTES / ranks);
    shards.map(open).collect()
}

/// Lets some time pass for the ranks, and looks a prompt up.
fn look(ranks: &[Rank], number: u32) {
    std::thread::sleep(std::time::Duration::from_millis(300));
    for rank in ranks {
        let keys = crate::common::chain(rank.shard, number, BLOCKS);
        drop(
            rank.cache
                .seek(&keys, std::time::Duration::from_secs(20))
                .wait(),
        );
    }
}

#[test]
fn parts_of_earlier_ranks_serve_hits_and_give_way_within_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    let before = open(folder.path(), 4);
    let mut prompts = 0;
    while kept(folder.path()) < FOLDER_BYTES * 15 / 16 {
        before.iter().for_each(|rank| rank.store(prompts, BLOCKS));
        prompts += 1;
    }
    before.into_iter().for_each(|rank| drop(rank.cache.close()));
    let full = kept(folder.path());
    assert!(full <= FOLDER_BYTES, "{full}");
    // Nothing goes before the new parts need the room.
    let after = open(folder.path(), 2);
    let newest = prompts - 1;
    for rank in &after {
        assert_eq!(rank.load(newest, BLOCKS), BLOCKS as usize);
    }
    let mut most = 0;
    for round in 0..4 {
        for number in 0..prompts / 4 {
            let number = 1000 + round * 1000 + number;
            after.iter().for_each(|rank| rank.store(number, BLOCKS));
        }
        look(&after, 0);
        most = most.max(kept(folder.path()));
        // What is found is right: every byte is compared.
        for rank in &after {
            (0..prompts).for_each(|number| {
                rank.load(number, BLOCKS);
            });
            assert_eq!(rank.load(1000 + round * 1000, BLOCKS), BLOCKS as usize);
        }
    }
    assert!(most <= FOLDER_BYTES, "{most} of {FOLDER_BYTES}");
}

#[test]
fn parts_that_are_open_and_copies_of_the_own_part_are_no_old_parts() {
    let folder = tempfile::tempdir().unwrap();
    let others = open(folder.path(), 4);
    others
        .iter()
        .for_each(|rank| (0..4).for_each(|number| rank.store(number, BLOCKS)));
    // Its limit is much smaller than what the open parts have.
    let reader = Rank::open_with(folder.path(), grid(1, 2)[0], 40_000);
    look(&[], 0);
    assert_eq!(reader.load(0, BLOCKS), BLOCKS as usize);
    for number in 0..4 {
        look(std::slice::from_ref(&reader), number);
        assert_eq!(reader.load(number, BLOCKS), BLOCKS as usize);
    }
    for rank in others {
        assert_eq!(
            rank.cache
                .tier_stats(kvtile_blocks::events::TierId::DISK)
                .unwrap()
                .present,
            32
        );
    }
}

/// A folder that cannot be shrunk in part is removed: the reader has misses and no wrong byte.
#[test]
fn a_limit_below_the_old_parts_removes_them() {
    let folder = tempfile::tempdir().unwrap();
    for number in 0..4 {
        written(folder.path(), &grid(1, 4), number, BLOCKS);
    }
    let reader = Rank::open_with(folder.path(), grid(1, 2)[0], 40_000);
    for number in 0..4 {
        look(std::slice::from_ref(&reader), number);
        reader.load(number, BLOCKS);
    }
    look(std::slice::from_ref(&reader), 0);
    let kept_of = |name: &str| kept(&folder.path().join(name));
    let old = kept_of("layers-0-4.heads-0-2") + kept_of("layers-0-4.heads-2-4");
    assert!(old < 40_000, "{old}");
    // Parts without a head of the reader are left to their own readers.
    assert!(kept_of("layers-0-4.heads-4-6") > 2 * 4096);
}

/// A copy of a folder may have bytes in place of the holes of its files.
#[test]
fn a_copy_without_holes_loses_no_block_that_has_room() {
    let folder = tempfile::tempdir().unwrap();
    let ranks = open(folder.path(), 4);
    ranks.iter().for_each(|rank| rank.store(0, BLOCKS));
    ranks.into_iter().for_each(|rank| drop(rank.cache.close()));
    let before = kept(folder.path());
    for part in std::fs::read_dir(folder.path()).unwrap() {
        let slots = part.unwrap().path().join("slots");
        if slots.exists() {
            let bytes = std::fs::read(&slots).unwrap();
            std::fs::write(&slots, bytes).unwrap();
        }
    }
    let copied = kept(folder.path());
    assert!(
        copied > FOLDER_BYTES * 3 / 4 && copied > 2 * before,
        "{before} to {copied}"
    );
    let readers: Vec<Rank> = grid(1, 2)
        .into_iter()
        .map(|shard| Rank::open_with(folder.path(), shard, FOLDER_BYTES / 8))
        .collect();
    for rank in &readers {
        look(std::slice::from_ref(rank), 0);
        assert_eq!(rank.load(0, BLOCKS), BLOCKS as usize);
    }
    assert!(kept(folder.path()) < copied / 2, "{copied}");
}
