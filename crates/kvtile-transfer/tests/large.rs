//! Transfers that need several rounds of staging: long runs, tiles longer than a round, odd
//! remainders, and pieces that lie far apart in a file. The reference executes the plan run by run.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{StoragePlace, over_image};
use kvtile_layout::{CopyPlan, RangePair, Selection, Shape, StridedLayout, Unit, Word};
use kvtile_testkit::{Image, execute, generate::LayoutCase, poison_byte};
use kvtile_transfer::{TransferManager, TransferOptions};

/// A shape and two words to copy between.
struct LargeCase {
    shape: Shape,
    from: &'static str,
    to: &'static str,
    alignment: u64,
}

fn image(layout: &StridedLayout, seed: u64) -> Image {
    let region = |(index, bytes): (usize, &u64)| {
        let byte = |at| poison_byte(index, at ^ (seed << 40));
        (0..*bytes).map(byte).collect()
    };
    layout
        .region_bytes()
        .iter()
        .enumerate()
        .map(region)
        .collect()
}

/// Copies `selection` in every combination of storage.
fn copies_everywhere(case: &LargeCase, selection: &Selection) {
    let side = |word: &str| LayoutCase {
        shape: case.shape.clone(),
        word: Word::parse(word).unwrap(),
        alignment: case.alignment,
    };
    let (src, dst) = (side(case.from), side(case.to));
    let resolve = |c: &LayoutCase| StridedLayout::resolve(&c.word, &c.shape, c.alignment).unwrap();
    let (src_layout, dst_layout) = (resolve(&src), resolve(&dst));
    let plan = CopyPlan::new(&src_layout, &dst_layout, selection).unwrap();
    let from_image = image(&src_layout, 1);
    let before = image(&dst_layout, 2);
    let mut expected = before.clone();
    execute(&plan, &from_image, &mut expected).unwrap();
    let folder = common::folder();
    let places = [
        StoragePlace::Borrowed,
        StoragePlace::File { direct: false },
        StoragePlace::File { direct: true },
    ];
    for from in places {
        for to in places {
            let manager = TransferManager::new();
            let (a, a_store) = over_image(&src, &from_image, from, folder.path()).unwrap();
            let (b, b_store) = over_image(&dst, &before, to, folder.path()).unwrap();
            let handles = (manager.register(a).unwrap(), manager.register(b).unwrap());
            let options = TransferOptions::new();
            let done = manager.execute_selection(handles.0, handles.1, selection.clone(), options);
            assert_eq!(done.unwrap().wait().unwrap().bytes, plan.bytes());
            drop(manager.unregister(handles.0).unwrap());
            drop(manager.unregister(handles.1).unwrap());
            assert!(
                a_store.image() == from_image,
                "source of {from:?} to {to:?}"
            );
            assert!(b_store.image() == expected, "{from:?} to {to:?}");
        }
    }
}

fn raw(bytes: u64) -> Unit {
    Unit::raw(bytes).unwrap()
}

fn whole(from: &[u64], to: &[u64], shape: &Shape) -> Selection {
    Selection::blocks(from, to, shape.page_size()).unwrap()
}

/// Runs longer than a round, with an odd remainder.
#[test]
fn runs_longer_than_a_round_are_cut_and_lose_nothing() {
    let shape = Shape::key_value(2, 1, 7, 3, 99_991, raw(1)).unwrap();
    let selection = whole(&[1], &[0], &shape);
    let case = LargeCase {
        shape,
        from: "BLKNHC",
        to: "BLKNHC",
        alignment: 1,
    };
    copies_everywhere(&case, &selection);
}

/// Tiles longer than a round that are not runs: the split loop has a remainder.
#[test]
fn tiles_longer_than_a_round_are_cut_and_lose_nothing() {
    let shape = Shape::key_value(2, 1, 37, 13, 5_003, raw(2)).unwrap();
    let selection = whole(&[0], &[1], &shape);
    for (from, to) in [("BLKNHC", "BLKHNC"), ("L|KBHNC", "BLKNHC")] {
        let case = LargeCase {
            shape: shape.clone(),
            from,
            to,
            alignment: 512,
        };
        copies_everywhere(&case, &selection);
    }
}

/// Runs of at least 256 KiB go between memory and file without staging; shorter ones are staged.
#[test]
fn long_and_short_runs_mix_in_one_transfer() {
    let shape = Shape::key_value(5, 3, 16, 8, 1024, raw(2)).unwrap();
    let selection = whole(&[3, 0, 2], &[0, 4, 1], &shape);
    for (from, to) in [("L|KBNHC", "BLKNHC"), ("L|BKNHC", "BHLKNC")] {
        let case = LargeCase {
            shape: shape.clone(),
            from,
            to,
            alignment: 4096,
        };
        copies_everywhere(&case, &selection);
    }
    let selection = selection.with_layers(RangePair {
        source: 0,
        destination: 1,
        count: 2,
    });
    let case = LargeCase {
        shape,
        from: "BLKNHC",
        to: "L|BKNHC",
        alignment: 1,
    };
    copies_everywhere(&case, &selection);
}

/// Units of 2 bytes that are adjacent in the destination and pages apart in the source.
#[test]
fn pieces_that_lie_far_apart_are_gathered_within_bounds() {
    let shape = Shape::key_value(64, 2, 16, 2, 64, raw(2)).unwrap();
    let blocks: Vec<u64> = (0..64).collect();
    let turned: Vec<u64> = blocks.iter().map(|b| (b * 11 + 5) % 64).collect();
    let selection = whole(&blocks, &turned, &shape);
    for (from, to) in [("LK|HCBN", "BLKNHC"), ("BLKNHC", "LK|HCBN")] {
        let case = LargeCase {
            shape: shape.clone(),
            from,
            to,
            alignment: 1,
        };
        copies_everywhere(&case, &selection);
    }
    // One head of many: no two units are adjacent on either side.
    let selection = selection.with_heads(RangePair {
        source: 1,
        destination: 0,
        count: 1,
    });
    let case = LargeCase {
        shape,
        from: "BLKNCH",
        to: "BNLKCH",
        alignment: 1,
    };
    copies_everywhere(&case, &selection);
}

/// Copies that several threads share, and copies that stay in the caches.
#[test]
fn threads_and_caches_change_the_speed_of_a_copy_and_nothing_else() {
    let shape = Shape::key_value(24, 4, 16, 8, 256, raw(2)).unwrap();
    let (ids, order): (Vec<u64>, Vec<u64>) = (0..24).map(|i| (i, i * 5 % 24)).unzip();
    let selection = whole(&ids, &order, &shape);
    for (from, to) in [
        ("L|KBNHC", "BLKNHC"),
        ("L|BKNHC", "BHLKNC"),
        ("L|BH(kCN,vNC)", "BHLKNC"),
        ("BLKNHC", "L|KBHCNC8"),
    ] {
        let side = |word: &str| LayoutCase {
            shape: shape.clone(),
            word: Word::parse(word).unwrap(),
            alignment: 64,
        };
        let (src, dst) = (side(from), side(to));
        let resolve = |c: &LayoutCase| StridedLayout::resolve(&c.word, &c.shape, 64).unwrap();
        let (src_layout, dst_layout) = (resolve(&src), resolve(&dst));
        let plan = CopyPlan::new(&src_layout, &dst_layout, &selection).unwrap();
        let from_image = image(&src_layout, 1);
        let before = image(&dst_layout, 2);
        let mut expected = before.clone();
        execute(&plan, &from_image, &mut expected).unwrap();
        for (threads, read_next) in [(0, false), (1, true), (3, false), (2, true)] {
            let manager = TransferManager::builder().copy_threads(threads).build();
            let folder = common::folder();
            let place = StoragePlace::Borrowed;
            let (a, _store) = over_image(&src, &from_image, place, folder.path()).unwrap();
            let (b, store) = over_image(&dst, &before, place, folder.path()).unwrap();
            let (a, b) = (manager.register(a).unwrap(), manager.register(b).unwrap());
            let options = TransferOptions::new().read_next(read_next);
            let done = manager.execute_selection(a, b, selection.clone(), options);
            done.unwrap().wait().unwrap();
            drop(manager.unregister(b).unwrap());
            assert!(
                store.image() == expected,
                "{from} {to} {threads} {read_next}"
            );
        }
    }
}
