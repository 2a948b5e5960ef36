//! What a follower sees, and when.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use kvtile_blocks::events::{EventMirror, TierId};
use kvtile_tiers::{
    FolderError, TierError,
    disk::{DiskSettings, FollowCondition},
    tier::{AnswerTime, BlockName, BlockRead, BlockWrite, NotWritten, Tier, TierMiss, TierWrites},
};
use parking_lot::Mutex;

use crate::{
    common::{FollowRig, GROUP, NOW, TENANT, chain, ended, keys, name},
    hooked::{HookedFolder, HookedOperation},
};

#[test]
fn blocks_are_found_once_the_writer_has_synced_them_and_not_before() {
    for threads in [0, 2] {
        let rig = FollowRig::new(threads);
        let writer = rig.writer();
        let reader = rig.follower();
        let blocks = chain(1, 12);
        assert_eq!(reader.fresh(&blocks), 0);
        assert_eq!(writer.write(&blocks), 12);
        assert_eq!(reader.fresh(&blocks), 0, "before the sync");
        reader.read_none(&blocks);
        writer.sync();
        reader.read_none(&blocks[..1]);
        assert_eq!(reader.fresh(&blocks), 12, "after the sync");
        reader.read_all(&blocks);
        let hold = reader.tier.hold(GROUP, &keys(&blocks)).unwrap();
        for (at, block) in blocks.iter().enumerate() {
            assert_eq!((hold.parent(at), hold.tenant(at)), (block.parent, TENANT));
        }
        assert_eq!(reader.list(), writer.list());
        assert!(matches!(reader.tier.condition(), FollowCondition::Followed));
        let stats = reader.tier.follower_stats();
        assert_eq!((stats.misses_damaged, stats.misses_io), (0, 0), "{stats:?}");
        assert_eq!(stats.read_bytes, 12 * rig.identity().block_bytes());
    }
}

/// Lookups alone bring the index up to date, without a question.
#[test]
fn a_lookup_of_an_old_index_starts_a_refresh() {
    for threads in [0, 2] {
        let rig = FollowRig::new(threads);
        let writer = rig.writer();
        let reader = rig.follower();
        let blocks = chain(1, 12);
        writer.store(&blocks);
        reader.until_found(&blocks, 12);
        writer.forget(&blocks[4..]);
        reader.until_found(&blocks, 4);
    }
}

#[test]
fn a_young_index_is_not_refreshed_by_lookups() {
    let rig = FollowRig::new(0);
    let settings = DiskSettings::new(rig.path(), 1 << 20).refresh_after(Duration::from_hours(1));
    let tier = kvtile_tiers::disk::DiskFollower::open(&settings, &rig.context()).unwrap();
    let reader = crate::common::FolderReader::new(tier, &rig.host);
    let blocks = chain(1, 3);
    rig.writer().store(&blocks);
    for _ in 0..10 {
        assert_eq!(reader.found(&blocks), 0);
        reader.tier.maintain();
    }
    assert_eq!(reader.fresh(&blocks), 3, "a question refreshes");
}

#[test]
fn erased_blocks_vanish_and_a_stale_index_costs_misses_only() {
    let rig = FollowRig::new(0);
    let writer = rig.writer();
    let reader = rig.follower();
    let blocks = chain(1, 10);
    writer.store(&blocks);
    assert_eq!(reader.fresh(&blocks), 10);
    writer.forget(&blocks[5..]);
    // Not refreshed yet: the index still has them, and the reads find them erased.
    assert_eq!(reader.held(&blocks), 10);
    reader.read_none(&blocks[5..]);
    assert_eq!(
        reader.held(&blocks),
        5,
        "what a read missed is not offered again"
    );
    reader.read_all(&blocks[..5]);
    // Other blocks take the places of the erased ones.
    let others = chain(2, 34);
    writer.store(&others);
    assert_eq!(reader.fresh(&blocks), 5);
    assert_eq!(reader.fresh(&others), 34);
    reader.read_all(&others);
    // The same blocks again, in other places.
    writer.forget(&others);
    writer.store(&blocks[5..]);
    assert_eq!(reader.fresh(&blocks), 10);
    reader.read_all(&blocks);
}

/// No lock and no write: not while the writer runs, and not after it.
#[test]
fn a_follower_writes_nothing_and_needs_no_writer() {
    let rig = FollowRig::new(2);
    let blocks = chain(1, 8);
    let writer = rig.writer();
    writer.store(&blocks);
    let before = rig.files();
    let reader = rig.follower();
    assert_eq!(reader.fresh(&blocks), 8);
    reader.read_all(&blocks);
    assert_eq!(rig.files(), before);
    drop(writer);
    let second = rig.follower();
    for reader in [&reader, &second] {
        assert_eq!(reader.fresh(&blocks), 8);
        reader.read_all(&blocks);
    }
    assert_eq!(rig.files(), before);
    // The lock is free although two followers are open.
    drop(rig.writer());
}

#[test]
fn writes_are_refused_with_the_process_that_writes() {
    for threads in [0, 2] {
        let rig = FollowRig::new(threads);
        let writer = rig.writer();
        let blocks = chain(1, 2);
        writer.store(&blocks[..1]);
        let reader = rig.follower();
        let refused = |reader: &crate::common::FolderReader<'_>| {
            let (reserved, from) = rig.host.filled(&name(blocks[1].key));
            let write = BlockWrite {
                name: name(blocks[1].key),
                parent: blocks[1].parent,
                position: 1,
                tenant: TENANT,
                from,
            };
            let report = ended(&reader.tier.write(vec![write]));
            assert!(reserved.is_let_go());
            match &report.blocks[..] {
                [Err(NotWritten::Failed(error))] => error.clone(),
                other => panic!("{other:?}"),
            }
        };
        let error = refused(&reader);
        let TierError::Folder(FolderError::ReadsOnly { holder, .. }) = &error else {
            panic!("{error:?}");
        };
        assert_eq!(holder.as_ref().unwrap().pid, Some(std::process::id()));
        let text = error.to_string();
        let folder = rig.path().display().to_string();
        assert!(
            text.contains(&folder) && text.contains(&std::process::id().to_string()),
            "{text}"
        );
        drop(writer);
        let text = refused(&reader).to_string();
        assert!(text.contains("no process writes"), "{text}");
        let tier = &reader.tier;
        let all = keys(&blocks);
        assert_eq!(
            (
                tier.forget(GROUP, &all),
                tier.evict(9, NOW),
                tier.clear(NOW)
            ),
            (0, 0, 0)
        );
        assert_eq!(tier.durable(GROUP, &all), [false, false]);
        let synced = ended(&tier.sync());
        assert!(synced.failure.is_none() && synced.lost == 0);
        assert!(ended(&tier.write(Vec::new())).blocks.is_empty());
        let able = tier.abilities();
        assert!(able.is_shared && able.verifies && able.reads_pieces);
        assert!(!able.is_bounded && !able.is_durable);
        assert_eq!((able.answers, tier.id()), (AnswerTime::Later, TierId::DISK));
        assert_eq!(rig.settings(0).follower().writes, TierWrites::Never);
        assert_eq!(tier.stats().present, 1);
        reader.read_all(&blocks[..1]);
    }
}

/// Lookups answer while a refresh hangs in the file system.
#[test]
fn lookups_never_wait_for_the_disk() {
    let rig = FollowRig::new(2);
    let writer = rig.writer();
    let blocks = chain(1, 6);
    writer.store(&blocks);
    let hangs = Arc::new(AtomicBool::new(false));
    let reads = Arc::clone(&hangs);
    let medium = HookedFolder::new(&rig.path(), move |operation| {
        while operation == HookedOperation::Read && reads.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    let reader = rig.follower_on(Arc::new(medium)).unwrap();
    assert_eq!(reader.fresh(&blocks), 6);
    hangs.store(true, Ordering::SeqCst);
    let more = chain(2, 3);
    writer.store(&more);
    let question = reader.tier.ask(GROUP, &keys(&more));
    let start = Instant::now();
    for _ in 0..100 {
        assert_eq!(reader.found(&blocks), 6);
        assert!(reader.tier.has(GROUP, &blocks[0].key));
        assert_eq!(reader.list().len(), 6);
    }
    let elapsed = start.elapsed();
    assert!(!question.is_complete());
    hangs.store(false, Ordering::SeqCst);
    assert_eq!(ended(&question).leading, 3);
    assert!(elapsed < Duration::from_secs(5), "{elapsed:?}");
}

/// A panic in a refresh ends its questions, and the next refresh works.
#[test]
fn a_refresh_that_panics_ends_its_questions() {
    for threads in [0, 2] {
        let rig = FollowRig::new(threads);
        let writer = rig.writer();
        let blocks = chain(1, 6);
        writer.store(&blocks);
        let panics = Arc::new(AtomicBool::new(false));
        let reads = Arc::clone(&panics);
        let medium = HookedFolder::new(&rig.path(), move |_| {
            assert!(!reads.load(Ordering::SeqCst), "a defect of the medium");
        });
        let reader = rig.follower_on(Arc::new(medium)).unwrap();
        panics.store(true, Ordering::SeqCst);
        let answer = ended(&reader.tier.ask(GROUP, &keys(&blocks)));
        assert!(answer.failure.is_some(), "{answer:?}");
        panics.store(false, Ordering::SeqCst);
        assert_eq!(reader.fresh(&blocks), 6);
        reader.read_all(&blocks);
    }
}

/// Blocks that appear and disappear have events; those that are there at the opening have none.
#[test]
fn events_and_list_agree() {
    let rig = FollowRig::new(0);
    let writer = rig.writer();
    writer.store(&chain(1, 4));
    let context = rig.context();
    let subscriber = &mut context.events.subscribe();
    let reader = rig.try_follower(&context).unwrap();
    let mut events = Vec::new();
    subscriber.poll(&mut events, usize::MAX).unwrap();
    assert!(events.is_empty(), "{events:?}");
    let snapshot = context.events.snapshot(|list| reader.tier.list(list));
    let mut mirror = EventMirror::from_snapshot(&snapshot);
    let changes: [&dyn Fn(); 5] = [
        &|| writer.store(&chain(2, 9)),
        &|| writer.forget(&chain(2, 9)[3..]),
        &|| writer.store(&chain(3, 30)),
        &|| {
            writer.tier.clear(NOW);
            writer.sync();
        },
        &|| writer.store(&chain(1, 2)),
    ];
    let mut agree = || {
        reader.fresh(&[]);
        subscriber.poll(&mut events, usize::MAX).unwrap();
        for event in events.drain(..) {
            assert!(mirror.apply(&event));
        }
        let mirrored = mirror.blocks(TierId::DISK, GROUP).collect();
        assert_eq!(reader.list(), mirrored);
    };
    for change in changes {
        change();
        agree();
        assert_eq!(reader.list(), writer.list());
    }
    drop(writer);
    rig.clear();
    agree();
    assert!(reader.list().is_empty());
    rig.writer().store(&chain(4, 3));
    agree();
    assert_eq!(reader.list().len(), 3);
}

/// Only pages of records that changed are decoded.
#[test]
fn a_refresh_decodes_changed_pages_only() {
    let rig = FollowRig::new(0);
    // 300 places of records of 128 bytes: ten pages.
    let writer = rig.writer_of(312 * 4096);
    let blocks = chain(1, 250);
    for part in blocks.chunks(50) {
        writer.store(part);
    }
    let reader = rig.follower();
    assert_eq!(reader.fresh(&blocks), 250);
    let before = reader.tier.follower_stats();
    reader.fresh(&blocks);
    assert_eq!(
        reader.tier.follower_stats().changed_pages,
        before.changed_pages
    );
    writer.store(&chain(2, 2));
    assert_eq!(reader.fresh(&chain(2, 2)), 2);
    let after = reader.tier.follower_stats();
    let decoded = after.changed_pages - before.changed_pages;
    assert!(
        (1..=2).contains(&decoded),
        "{decoded} pages for 2 blocks: {after:?}"
    );
    assert!(before.changed_pages >= 8, "{before:?}");
}

#[test]
fn other_groups_are_absent() {
    let rig = FollowRig::new(0);
    let writer = rig.writer();
    let blocks = chain(1, 1);
    writer.store(&blocks);
    let reader = rig.follower();
    let other = kvtile_blocks::GroupId(3);
    assert_eq!(ended(&reader.tier.ask(other, &keys(&blocks))).leading, 0);
    assert!(reader.tier.hold(other, &keys(&blocks)).is_none());
    assert!(!reader.tier.has(other, &blocks[0].key));
    let (_reserved, into) = rig.host.empty();
    let name = BlockName {
        group: other,
        key: blocks[0].key,
    };
    let read = BlockRead { name, into };
    let report = ended(&reader.tier.read(vec![read]));
    assert!(
        matches!(report.blocks[0], Err(TierMiss::Absent)),
        "{report:?}"
    );
}

/// The writer erases a block and reuses its place between the follower's read of the record and its
/// read of the bytes.
#[test]
fn a_block_that_is_replaced_during_the_read_is_absent_and_not_damaged() {
    let rig = FollowRig::new(2);
    let writer = rig.writer_of(10 * 4096);
    let block = chain(1, 1);
    writer.store(&block);
    let (reached, reaches) = mpsc::channel();
    let (resume, resumes) = mpsc::channel();
    let waits = Mutex::new((reached, resumes));
    let reads = Arc::new(AtomicUsize::new(usize::MAX));
    let counted = Arc::clone(&reads);
    let medium = HookedFolder::new(&rig.path(), move |_| {
        // The record is read first, then the bytes.
        if counted.fetch_sub(1, Ordering::SeqCst) == 1 {
            let waits = waits.lock();
            waits.0.send(()).unwrap();
            waits.1.recv().unwrap();
        }
    });
    let reader = rig.follower_on(Arc::new(medium)).unwrap();
    assert_eq!(reader.fresh(&block), 1);
    for fills in [false, true] {
        reads.store(2, Ordering::SeqCst);
        let (reserved, into) = rig.host.empty();
        let read = BlockRead {
            name: name(block[0].key),
            into,
        };
        let read = reader.tier.read(vec![read]);
        reaches.recv().unwrap();
        writer.forget(&block);
        if fills {
            // Two places: this takes the one of the block.
            for number in 2..6 {
                let other = chain(number, 1);
                writer.store(&other);
                writer.forget(&other);
            }
        }
        resume.send(()).unwrap();
        let report = ended(&read);
        match fills {
            // The bytes are still there: right, although erased.
            false => assert!(report.blocks[0].is_ok(), "{report:?}"),
            true => assert!(
                matches!(report.blocks[0], Err(TierMiss::Absent)),
                "{report:?}"
            ),
        }
        assert!(reserved.is_let_go());
        writer.store(&block);
        assert_eq!(reader.fresh(&block), 1);
        reader.read_all(&block);
    }
    assert_eq!(reader.tier.follower_stats().misses_damaged, 0);
}
