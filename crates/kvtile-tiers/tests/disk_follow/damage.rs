//! Damaged folders: never a wrong byte, and nothing is repaired by those that only read.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt,
};

use kvtile_tiers::tier::{Tier, TierMiss};

use crate::common::{FolderReader, FollowRig, GROUP, chain, ended, keys};

/// Bytes of a slot: a block in whole pages.
const SLOT_BYTES: usize = 4096;

/// The place of a block whose bytes begin with `bytes`.
fn place(rig: &FollowRig, bytes: &[u8]) -> usize {
    let slots = fs::read(rig.path().join("slots")).unwrap();
    let mut slots = slots.chunks(SLOT_BYTES);
    slots.position(|slot| slot.starts_with(bytes)).unwrap()
}

/// Flips a bit of a file of the folder.
fn flip(rig: &FollowRig, file: &str, offset: usize) {
    let path = rig.path().join(file);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset as u64).unwrap();
    byte[0] ^= 4;
    file.write_all_at(&byte, offset as u64).unwrap();
}

fn cut(rig: &FollowRig, file: &str, bytes: u64) {
    let path = rig.path().join(file);
    OpenOptions::new()
        .write(true)
        .open(path)
        .unwrap()
        .set_len(bytes)
        .unwrap();
}

#[test]
fn a_flipped_bit_is_damage_and_stays_on_the_disk() {
    for threads in [0, 2] {
        let rig = FollowRig::new(threads);
        let blocks = chain(1, 10);
        let writer = rig.writer();
        writer.store(&blocks);
        let reader = rig.follower();
        assert_eq!(reader.fresh(&blocks), 10);
        let content =
            |at: usize| kvtile_testkit::tier::content(&crate::common::name(blocks[at].key), 64);
        flip(&rig, "slots", place(&rig, &content(6)) * SLOT_BYTES + 1000);
        let before = rig.files();
        let outcomes = reader.read(&blocks);
        for (at, outcome) in outcomes.iter().enumerate() {
            match at {
                6 => assert!(
                    matches!(outcome, Err(TierMiss::Damaged { .. })),
                    "{outcome:?}"
                ),
                _ => assert!(outcome.is_ok(), "{at}: {outcome:?}"),
            }
        }
        assert_eq!(rig.files(), before, "the follower repairs nothing");
        assert_eq!(reader.tier.stats().damaged, 1);
        // It is not offered again, although its record is still there.
        assert_eq!(reader.fresh(&blocks), 6);
        reader.read_none(&blocks[6..7]);
        reader.read_all(&blocks[7..]);
        // Another change in the page of its record does not bring it back.
        writer.store(&chain(2, 3));
        assert_eq!(reader.fresh(&chain(2, 3)), 3);
        assert_eq!(reader.fresh(&blocks), 6);
        // The writer finds the damage by itself and writes the block anew.
        writer.forget(&blocks[6..7]);
        writer.store(&blocks[6..7]);
        assert_eq!(reader.fresh(&blocks), 10);
        reader.read_all(&blocks);
    }
}

#[test]
fn a_damaged_record_is_no_block() {
    let rig = FollowRig::new(0);
    let blocks = chain(1, 10);
    rig.writer().store(&blocks);
    let reader = rig.follower();
    assert_eq!(reader.fresh(&blocks), 10);
    let content = kvtile_testkit::tier::content(&crate::common::name(blocks[3].key), 64);
    // A record of two pieces has 128 bytes; its key comes first.
    let record = place(&rig, &content) * 128;
    let bytes = fs::read(rig.path().join("records")).unwrap();
    assert_eq!(&bytes[record..record + 16], blocks[3].key.as_bytes());
    flip(&rig, "records", record + 70);
    reader.read_none(&blocks[3..4]);
    assert_eq!(reader.fresh(&blocks), 3);
    assert_eq!(rig.follower().fresh(&blocks), 3);
    flip(&rig, "records", record + 70);
    assert_eq!(reader.fresh(&blocks), 10);
    reader.read_all(&blocks);
}

#[test]
fn truncated_and_missing_files_cost_their_blocks_only() {
    let rig = FollowRig::new(2);
    let blocks = chain(1, 20);
    rig.writer().store(&blocks);
    let whole = rig.files();
    let restore = || {
        for (name, (bytes, _)) in &whole {
            fs::write(rig.path().join(name), bytes).unwrap();
        }
    };
    let readers = || [rig.follower(), rig.follower()];
    for (file, lengths) in [
        ("slots", [0, 1, 4096, 10 * 4096, 10 * 4096 + 100]),
        ("records", [0, 1, 128, 1000, 2000]),
    ] {
        for length in lengths {
            let [reader, stale] = readers();
            assert_eq!((reader.fresh(&blocks), stale.fresh(&blocks)), (20, 20));
            cut(&rig, file, length);
            // One of them does not know yet.
            let came = stale
                .read(&blocks)
                .iter()
                .filter(|outcome| outcome.is_ok())
                .count();
            assert!(came < 20, "{file} of {length} bytes: {came}");
            reader.fresh(&blocks);
            let came = reader
                .read(&blocks)
                .iter()
                .filter(|outcome| outcome.is_ok())
                .count();
            assert!(came < 20, "{file} of {length} bytes: {came}");
            let opened = rig.follower();
            opened.read(&blocks);
            restore();
            assert_eq!(rig.follower().fresh(&blocks), 20);
        }
        let [reader, stale] = readers();
        fs::remove_file(rig.path().join(file)).unwrap();
        stale.read(&blocks);
        reader.fresh(&blocks);
        let missing: &[_] = if file == "records" { &blocks } else { &[] };
        reader.read_none(missing);
        assert_eq!(
            reader
                .read(&blocks)
                .iter()
                .filter(|outcome| outcome.is_ok())
                .count(),
            0
        );
        restore();
        let answer = ended(&reader.tier.ask(GROUP, &keys(&blocks)));
        assert!(answer.failure.is_none(), "{answer:?}");
    }
}

#[test]
fn a_damaged_manifest_empties_the_tier_until_it_is_whole_again() {
    let rig = FollowRig::new(2);
    let blocks = chain(1, 5);
    rig.writer().store(&blocks);
    let reader = rig.follower();
    assert_eq!(reader.fresh(&blocks), 5);
    let manifest = fs::read(rig.path().join("manifest.json")).unwrap();
    let version_1 = String::from_utf8(manifest.clone()).unwrap();
    let version_1 = version_1.replace("\"version\": 2", "\"version\": 1");
    let mut flipped = manifest.clone();
    flipped[manifest.len() / 2] ^= 1;
    for bad in [
        &b""[..],
        &manifest[..100],
        &flipped,
        version_1.as_bytes(),
        b"{}",
    ] {
        let refusals = reader.tier.follower_stats().refusals;
        fs::write(rig.path().join("manifest.json"), bad).unwrap();
        for _ in 0..3 {
            assert_eq!(reader.fresh(&blocks), 0);
        }
        reader.read_none(&blocks);
        assert_eq!(reader.tier.follower_stats().refusals, refusals + 1);
        let condition = format!("{:?}", reader.tier.condition());
        assert!(condition.starts_with("Unusable"), "{condition}");
        assert!(rig.try_follower(&rig.context()).is_err(), "opened");
        fs::write(rig.path().join("manifest.json"), &manifest).unwrap();
        assert_eq!(reader.fresh(&blocks), 5);
        reader.read_all(&blocks);
    }
}

/// The follower has files open that are no longer those of the folder.
#[test]
fn blocks_of_a_cleared_folder_are_absent_and_not_damaged() {
    let rig = FollowRig::new(0);
    let blocks = chain(1, 4);
    rig.writer().store(&blocks);
    let reader = rig.follower();
    let content = kvtile_testkit::tier::content(&crate::common::name(blocks[2].key), 64);
    flip(&rig, "slots", place(&rig, &content) * SLOT_BYTES + 7);
    rig.clear();
    let writer = rig.writer();
    reader.read_none(&blocks[2..3]);
    assert_eq!(reader.fresh(&blocks), 0);
    writer.store(&blocks);
    assert_eq!(reader.fresh(&blocks), 4);
    reader.read_all(&blocks);
    assert_eq!(reader.tier.follower_stats().misses_damaged, 0);
}

/// A whole folder of random bytes, in each file.
#[test]
fn garbage_is_no_block() {
    let rig = FollowRig::new(0);
    let blocks = chain(1, 30);
    rig.writer().store(&blocks);
    let mut numbers = kvtile_testkit::disk::SplitMix64::new(3);
    let reader: FolderReader<'_> = rig.follower();
    for file in ["records", "slots"] {
        let bytes = fs::read(rig.path().join(file)).unwrap();
        let garbage: Vec<u8> = bytes
            .iter()
            .map(|_| numbers.any().to_le_bytes()[0])
            .collect();
        fs::write(rig.path().join(file), garbage).unwrap();
        for outcome in reader.read(&blocks) {
            assert!(outcome.is_err(), "{file}");
        }
        reader.fresh(&blocks);
        for outcome in reader.read(&blocks) {
            assert!(outcome.is_err(), "{file}");
        }
        fs::write(rig.path().join(file), bytes).unwrap();
    }
}
