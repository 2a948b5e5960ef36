//! The folder changes as a whole: it appears, is resized, cleared, replaced, converted, or belongs
//! to another identity.

use kvtile_layout::identity::Rope;
use kvtile_tiers::{
    MismatchError, TierError,
    disk::{
        BlockPieces, ConvertSettings, DiskFollower, DiskTier, FollowCondition, StoreIdentity,
        convert,
    },
    tier::Tier,
};

use crate::common::{DISK_BYTES, FolderReader, FollowRig, chain};

/// The identity of the rig's blocks with another rotary embedding.
fn other_rope(rig: &FollowRig) -> StoreIdentity {
    let mut identity = rig.identity().clone();
    let rope = Rope::new("llama3", 77.0).unwrap();
    identity.logical = identity.logical.with_rope(rope);
    identity
}

#[test]
fn a_folder_that_is_created_later_is_picked_up() {
    for (threads, exists) in [(0, false), (0, true), (2, false), (2, true)] {
        let rig = FollowRig::new(threads);
        if exists {
            std::fs::create_dir(rig.path()).unwrap();
        }
        let reader = rig.follower();
        let blocks = chain(1, 5);
        for _ in 0..3 {
            assert_eq!(reader.fresh(&blocks), 0);
            assert!(matches!(reader.tier.condition(), FollowCondition::Missing));
        }
        reader.read_none(&blocks);
        assert_eq!(rig.path().exists(), exists, "the follower creates nothing");
        let writer = rig.writer();
        assert_eq!(reader.fresh(&blocks), 0);
        assert!(matches!(reader.tier.condition(), FollowCondition::Followed));
        writer.store(&blocks);
        reader.until_found(&blocks, 5);
        reader.read_all(&blocks);
        let stats = reader.tier.follower_stats();
        assert_eq!(
            (stats.loads, stats.refusals, stats.refresh_failures),
            (1, 0, 0)
        );
    }
}

/// The same checks by field as the writer makes.
#[test]
fn a_folder_of_another_identity_is_refused_by_field() {
    let rig = FollowRig::new(0);
    drop(rig.writer());
    let mut whole = rig.identity().clone();
    whole.pieces = BlockPieces::whole(whole.block_bytes());
    let mut longer = rig.identity().clone();
    longer.pieces = BlockPieces::whole(longer.block_bytes() + 4);
    for (identity, field) in [
        (other_rope(&rig), "rope"),
        (whole, "piece_ends"),
        (longer, "block_bytes"),
    ] {
        let context = rig.context_of(identity);
        let error = match rig.try_follower(&context) {
            Ok(_) => panic!("{field} is accepted"),
            Err(error) => error,
        };
        let TierError::Mismatch(MismatchError::FolderDiffers { difference, .. }) = &error else {
            panic!("{error:?}");
        };
        assert!(difference.field.contains(field), "{difference}");
        let writer = DiskTier::open(&rig.settings(DISK_BYTES), &context);
        assert_eq!(writer.unwrap_err().to_string(), error.to_string());
    }
}

#[test]
fn a_folder_that_turns_out_to_be_of_another_identity_stays_empty() {
    for threads in [0, 2] {
        let rig = FollowRig::new(threads);
        let reader = rig.follower();
        let context = rig.context_of(other_rope(&rig));
        let other = DiskTier::open(&rig.settings(DISK_BYTES), &context).unwrap();
        let blocks = chain(1, 5);
        for _ in 0..4 {
            assert_eq!(reader.fresh(&blocks), 0);
        }
        let FollowCondition::Differs { difference } = reader.tier.condition() else {
            panic!("{:?}", reader.tier.condition());
        };
        assert!(difference.field.contains("rope"), "{difference}");
        assert_eq!(reader.tier.follower_stats().refusals, 1, "counted once");
        // The right writer takes the folder over.
        drop(other);
        rig.clear();
        let writer = rig.writer();
        writer.store(&blocks);
        assert_eq!(reader.fresh(&blocks), 5);
        reader.read_all(&blocks);
        // And another one takes it over again.
        drop(writer);
        rig.clear();
        drop(DiskTier::open(&rig.settings(DISK_BYTES), &context).unwrap());
        assert_eq!(reader.fresh(&blocks), 0);
        reader.read_none(&blocks);
        assert_eq!(reader.tier.follower_stats().refusals, 2);
    }
}

#[test]
fn a_writer_that_is_opened_again_is_followed() {
    let rig = FollowRig::new(2);
    let reader = rig.follower();
    let blocks = chain(1, 20);
    for round in 0..5 {
        let writer = rig.writer();
        let known = 4 * round;
        assert_eq!(reader.fresh(&blocks), known);
        writer.store(&blocks[known..known + 4]);
        // Unsynced writes and erasures are lost, or are made durable by the next opening.
        writer.write(&chain(9, 3));
        drop(writer);
        assert_eq!(reader.fresh(&blocks), known + 4);
        reader.read_all(&blocks[..known + 4]);
    }
    assert_eq!(reader.tier.follower_stats().loads, 1);
}

#[test]
fn a_folder_that_is_resized_is_followed() {
    let rig = FollowRig::new(2);
    let reader = rig.follower();
    let blocks = chain(1, 40);
    rig.writer().store(&blocks);
    assert_eq!(reader.fresh(&blocks), 40);
    for places in [20, 90, 12, 47, 300, 8] {
        // As many bytes as the other files take.
        let writer = rig.writer_of((places + 6) * 4096);
        reader.read(&blocks);
        reader.fresh(&blocks);
        assert_eq!(reader.list(), writer.list(), "{places} places");
        writer.write(&chain(places, 90));
        writer.sync();
        reader.fresh(&blocks);
        assert_eq!(reader.list(), writer.list(), "{places} places");
        for block in chain(places, 90) {
            let there = writer.list().contains(&(block.key, block.parent));
            assert_eq!(
                reader.read(&[block])[0].is_ok(),
                there,
                "{places}: {block:?}"
            );
        }
        let stats = reader.tier.follower_stats();
        assert_eq!(
            (stats.misses_damaged, stats.misses_io),
            (0, 0),
            "{places}: {stats:?}"
        );
    }
}

#[test]
fn a_folder_that_is_cleared_and_created_anew_is_followed() {
    let rig = FollowRig::new(2);
    let blocks = chain(1, 20);
    rig.writer().store(&blocks);
    let reader = rig.follower();
    assert_eq!(reader.fresh(&blocks), 20);
    let old_records = std::fs::read(rig.path().join("records")).unwrap();
    rig.clear();
    // The removed files are still whole for those that have them open.
    reader.read_all(&blocks);
    assert_eq!(reader.fresh(&blocks), 0);
    reader.read_none(&blocks);
    let writer = rig.writer();
    let others = chain(2, 20);
    writer.store(&others);
    assert_eq!(reader.fresh(&blocks), 0);
    assert_eq!(reader.fresh(&others), 20);
    reader.read_all(&others);
    // Records of the old store in the files of the new one: their slots have other bytes.
    drop(writer);
    std::fs::write(rig.path().join("records"), old_records).unwrap();
    reader.read_none(&others);
    assert_eq!(reader.fresh(&blocks), 0);
    assert_eq!(reader.list().len(), 0);
    reader.read_none(&blocks);
    let stats = reader.tier.follower_stats();
    assert_eq!((stats.misses_damaged, stats.loads), (0, 2), "{stats:?}");
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir(to).unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

/// The folder's name refers to another folder.
#[test]
fn a_folder_that_is_moved_and_replaced_is_followed() {
    let rig = FollowRig::new(2);
    let blocks = chain(1, 6);
    rig.writer().store(&blocks);
    let reader = rig.follower();
    assert_eq!(reader.fresh(&blocks), 6);
    let aside = rig.folder.path().join("aside");
    std::fs::rename(rig.path(), &aside).unwrap();
    assert_eq!(reader.fresh(&blocks), 0);
    let others = chain(2, 7);
    let writer = rig.writer();
    writer.store(&others);
    assert_eq!((reader.fresh(&blocks), reader.fresh(&others)), (0, 7));
    reader.read_all(&others);
    drop(writer);
    std::fs::remove_dir_all(rig.path()).unwrap();
    std::fs::rename(&aside, rig.path()).unwrap();
    assert_eq!((reader.fresh(&blocks), reader.fresh(&others)), (6, 0));
    reader.read_all(&blocks);
    // A copy in its place has an equal manifest.
    copy(&rig.path(), &aside);
    let moved = rig.folder.path().join("moved");
    std::fs::rename(rig.path(), &moved).unwrap();
    std::fs::rename(&aside, rig.path()).unwrap();
    let writer = rig.writer();
    writer.store(&others);
    assert_eq!((reader.fresh(&blocks), reader.fresh(&others)), (6, 7));
    reader.read_all(&others);
    drop(writer);
    // No folder at all, and a file of its name.
    std::fs::remove_dir_all(rig.path()).unwrap();
    std::fs::write(rig.path(), b"a file of the folder's name").unwrap();
    let answer = crate::common::ended(&reader.tier.ask(crate::common::GROUP, &[]));
    assert_eq!(answer.leading, 0);
    reader.read(&blocks);
}

#[test]
fn the_target_of_a_conversion_is_followed() {
    let rig = FollowRig::new(2);
    let blocks = chain(1, 9);
    rig.writer().store(&blocks);
    let target = rig.folder.path().join("converted");
    let mut settings = rig.settings(DISK_BYTES);
    settings.folder.clone_from(&target);
    // A conversion cuts blocks into pieces of 64 KiB at least.
    let mut identity = rig.identity().clone();
    identity.pieces = BlockPieces::whole(identity.block_bytes());
    let tier = DiskFollower::open(&settings, &rig.context_of(identity)).unwrap();
    let reader = FolderReader::new(tier, &rig.host);
    let source = rig.follower();
    assert_eq!((source.fresh(&blocks), reader.fresh(&blocks)), (9, 0));
    convert(
        &rig.path(),
        &target,
        &ConvertSettings::default(),
        &mut |_| {
            reader.fresh(&blocks);
            assert_eq!(source.fresh(&blocks), 9);
        },
    )
    .unwrap();
    assert_eq!((source.fresh(&blocks), reader.fresh(&blocks)), (9, 9));
    reader.read_all(&blocks);
    source.read_all(&blocks);
}
