//! Groups on a real folder: equal keys, restarts, capacities, damage.

use std::{
    fs,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
};

use kvtile_tiers::{
    FileChange, FolderError, SettingsError, TierError,
    disk::{FolderUsage, Inspection, SlotFolder, SlotMiss, SlotState, SlotStoreSettings},
};

use super::{check_folder, check_group, group, groups, open, room, seed, sync, write_chains};
use crate::common::{content, key, verify};

#[test]
fn groups_keep_other_bytes_under_the_same_keys_and_are_recovered_together() {
    for count in 1..=3 {
        let folder = tempfile::tempdir().unwrap();
        let groups = groups(count);
        let (store, recovered) = open(folder.path(), 20, &groups).unwrap();
        assert!(recovered.iter().all(|recovered| recovered.created));
        assert_eq!(store.stores().len(), count);
        assert!(store.stores().iter().all(|store| store.slots() == 19));
        write_chains(&store, &groups, 0, 19);
        sync(&store);
        drop(store);
        let numbers: Vec<u64> = (0..19).collect();
        let store = check_folder(folder.path(), 20, &groups, &numbers);
        assert_eq!(group(&store, 0).block_bytes(), 12_288);
    }
}

/// Lengths of all files, and bytes that they take on the disk.
fn bytes_of(folder: &Path) -> (u64, u64) {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    files.fold((0, 0), |(long, kept), file| {
        let facts = file.metadata().unwrap();
        (long + facts.len(), kept + facts.blocks() * 512)
    })
}

#[test]
fn the_files_of_all_groups_together_stay_within_the_capacity_to_the_byte() {
    let groups = groups(3);
    let share = |shares: [Option<f64>; 3]| {
        let groups = groups.iter().cloned().zip(shares);
        let shared = groups.map(|(group, share)| group.share(share));
        shared.collect::<Vec<_>>()
    };
    let most: u64 = groups
        .iter()
        .map(|group| group.identity.block_bytes())
        .sum();
    for groups in [
        groups.clone(),
        share([Some(1.0), Some(0.1), None]),
        share([Some(1.0), Some(2.0), Some(3.0)]),
    ] {
        for capacity_bytes in [300_000, 300_001, 304_095, 1_234_567] {
            let folder = tempfile::tempdir().unwrap();
            let settings = SlotStoreSettings::new(capacity_bytes).preallocate(true);
            let opened = SlotFolder::create_or_open(folder.path(), &settings, &groups);
            let (store, _) = opened.unwrap();
            for (index, (store, group)) in store.stores().iter().zip(&groups).enumerate() {
                for slot in 0..store.slots() {
                    let bytes = content(seed(index, u64::from(slot)), &group.identity);
                    let written = store.write(&[super::write(slot, u64::from(slot), &bytes)]);
                    assert!(written.failed.is_empty());
                }
            }
            sync(&store);
            let (long, kept) = bytes_of(folder.path());
            assert!(long <= capacity_bytes, "{long} of {capacity_bytes}");
            assert!(kept <= capacity_bytes, "{kept} of {capacity_bytes}");
            // What is left is less than one slot and its rounding for each group.
            let spare = most + 3 * 2 * 4096 + 10 * 4096;
            assert!(long + spare > capacity_bytes, "{long} of {capacity_bytes}");
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let open = |bytes| {
        let settings = SlotStoreSettings::new(bytes);
        SlotFolder::create_or_open(folder.path(), &settings, &groups)
    };
    match open(60_000) {
        Err(TierError::Settings(SettingsError::GroupTooSmall {
            group,
            block_bytes,
            needed_bytes,
            ..
        })) => {
            assert_eq!((group.as_str(), block_bytes), ("full", 12_288));
            assert!(open(needed_bytes - 1).is_err());
            let (store, _) = open(needed_bytes).unwrap();
            assert!(store.stores().iter().all(|store| store.slots() == 1));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_group_grows_and_shrinks_with_the_capacity_and_keeps_what_fits() {
    let folder = tempfile::tempdir().unwrap();
    let groups = groups(3);
    let (store, _) = open(folder.path(), 10, &groups).unwrap();
    write_chains(&store, &groups, 0, 9);
    sync(&store);
    drop(store);
    let numbers: Vec<u64> = (0..9).collect();
    let store = check_folder(folder.path(), 30, &groups, &numbers);
    assert!(store.stores().iter().all(|store| store.slots() == 29));
    write_chains(&store, &groups, 9, 20);
    sync(&store);
    drop(store);
    let (store, recovered) = open(folder.path(), 6, &groups).unwrap();
    for (index, recovered) in recovered.iter().enumerate() {
        assert_eq!(recovered.dropped.over_capacity, 24, "group {index}");
        let found = check_group(group(&store, index), recovered, (index, &groups[index]));
        assert_eq!(found, [0, 1, 2, 3, 4]);
    }
    assert!(bytes_of(folder.path()).0 <= room(6, &groups).capacity_bytes);
    drop(store);
    check_folder(folder.path(), 30, &groups, &[0, 1, 2, 3, 4]);
}

#[test]
fn other_shares_move_room_from_one_group_to_another_within_the_capacity() {
    let folder = tempfile::tempdir().unwrap();
    let mut groups = groups(2);
    let settings = room(40, &groups);
    let open = |groups: &[_]| {
        let (store, recovered) =
            SlotFolder::create_or_open(folder.path(), &settings, groups).unwrap();
        assert!(bytes_of(folder.path()).0 <= settings.capacity_bytes);
        let slots: Vec<u32> = store.stores().iter().map(|store| store.slots()).collect();
        (store, recovered, slots)
    };
    let (store, _, even) = open(&groups);
    assert_eq!(even, [39, 39]);
    write_chains(&store, &groups, 0, 39);
    sync(&store);
    drop(store);
    // The second group gets most of the room, and the first loses the blocks that no longer fit.
    (groups[0].share, groups[1].share) = (Some(1.0), Some(4.0));
    let (store, recovered, slots) = open(&groups);
    assert!(slots[0] < 12 && slots[1] > 100, "{slots:?}");
    assert_eq!(recovered[0].entries.len(), slots[0] as usize);
    assert_eq!(recovered[1].entries.len(), 39);
    for index in 0..2 {
        let found = check_group(
            group(&store, index),
            &recovered[index],
            (index, &groups[index]),
        );
        let kept: Vec<u64> = (0..recovered[index].entries.len() as u64).collect();
        assert_eq!(found, kept);
    }
    drop(store);
    // Shares that are equal in proportion change nothing.
    (groups[0].share, groups[1].share) = (Some(0.25), Some(1.0));
    let (store, recovered, again) = open(&groups);
    assert_eq!(again, slots);
    assert!(
        recovered
            .iter()
            .all(|recovered| recovered.dropped.total() == 0)
    );
    drop(store);
    (groups[0].share, groups[1].share) = (None, None);
    let (_, recovered, back) = open(&groups);
    assert_eq!(back, even);
    assert_eq!(recovered[1].entries.len(), 39);
}

#[test]
fn damage_in_one_group_leaves_the_others_whole() {
    for damaged in 0..3 {
        let folder = tempfile::tempdir().unwrap();
        let groups = groups(3);
        let (store, _) = open(folder.path(), 10, &groups).unwrap();
        write_chains(&store, &groups, 0, 9);
        sync(&store);
        let name = |of: &str| match damaged {
            0 => folder.path().join(of),
            group => folder.path().join(format!("{of}-{group}")),
        };
        let slot_bytes = store.manifest().groups()[damaged].slot_bytes();
        let slots = fs::OpenOptions::new()
            .write(true)
            .open(name("slots"))
            .unwrap();
        let byte = content(seed(damaged, 4), &groups[damaged].identity)[100] ^ 4;
        slots.write_all_at(&[byte], 4 * slot_bytes + 100).unwrap();
        for (index, store) in store.stores().iter().enumerate() {
            let bad: Vec<u32> = verify(store, 9)
                .into_iter()
                .filter(|(_, read)| read.is_err())
                .map(|(slot, _)| slot)
                .collect();
            let expected: &[u32] = if index == damaged { &[4] } else { &[] };
            assert_eq!(bad, expected, "group {index}");
        }
        drop(store);
        // A record, and the end of the slots.
        let mut records = fs::read(name("records")).unwrap();
        records[130] ^= 1;
        fs::write(name("records"), &records).unwrap();
        slots.set_len(6 * slot_bytes).unwrap();
        let (store, recovered) = open(folder.path(), 10, &groups).unwrap();
        for (index, recovered) in recovered.iter().enumerate() {
            let left: Vec<u32> = recovered
                .entries
                .iter()
                .map(|entry| entry.position)
                .collect();
            if index == damaged {
                assert_eq!(left, [0, 2, 3, 4, 5]);
                assert_eq!(
                    (recovered.dropped.torn, recovered.dropped.truncated),
                    (1, 3)
                );
                let (slot, of) = (recovered.entries[3].slot, recovered.entries[3].key);
                let mut buffer = content(0, &groups[index].identity);
                let read = group(&store, index).read(slot, &of, &mut buffer);
                assert!(matches!(read, Err(SlotMiss::Checksum)));
            } else {
                let found = check_group(group(&store, index), recovered, (index, &groups[index]));
                assert_eq!(found, (0..9).collect::<Vec<u64>>());
            }
        }
    }
}

/// The seals of the records name the group: files of equal sizes that were swapped offer nothing.
#[test]
fn files_of_two_groups_that_were_swapped_hold_no_blocks() {
    let folder = tempfile::tempdir().unwrap();
    let mut groups = groups(2);
    groups[1].identity = groups[0].identity.clone();
    let (store, _) = open(folder.path(), 10, &groups).unwrap();
    write_chains(&store, &groups, 0, 9);
    sync(&store);
    drop(store);
    for file in ["slots", "records"] {
        let [a, b, c] = [file, &format!("{file}-1"), "away"].map(|name| folder.path().join(name));
        fs::rename(&a, &c).unwrap();
        fs::rename(&b, &a).unwrap();
        fs::rename(&c, &b).unwrap();
    }
    let (_, recovered) = open(folder.path(), 10, &groups).unwrap();
    for recovered in recovered {
        assert!(recovered.entries.is_empty());
        assert_eq!(recovered.dropped.torn, 9);
    }
}

#[test]
fn with_a_file_of_one_group_removed_nothing_of_any_group_is_durable() {
    for file in ["records", "slots", "records-1", "slots-1", "manifest.json"] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tier");
        let groups = groups(2);
        let (store, _) = open(&path, 10, &groups).unwrap();
        write_chains(&store, &groups, 0, 2);
        sync(&store);
        write_chains(&store, &groups, 2, 1);
        let (file, away) = (path.join(file), folder.path().join("away"));
        fs::rename(&file, &away).unwrap();
        let is_gone = |error: &TierError| {
            matches!(error, TierError::Folder(FolderError::FileGone { file: named, change })
                if *named == file.to_str().unwrap() && *change == FileChange::Removed)
        };
        for synced in store.sync() {
            assert!(is_gone(&synced.failure.unwrap()), "{}", file.display());
            assert_eq!((synced.blocks, synced.lost.len()), (0, 0));
        }
        for (index, one) in store.stores().iter().enumerate() {
            let error = one.are_durable(&[(0, key(0))]).unwrap_err();
            assert!(is_gone(&error), "{error}");
            let bytes = content(9, &groups[index].identity);
            let written = one.write(&[super::write(5, 5, &bytes)]);
            assert!(is_gone(&written.failed[0].error));
            assert_eq!(one.state(2), SlotState::Written);
        }
        fs::rename(&away, &file).unwrap();
        sync(&store);
        assert!(
            store
                .stores()
                .iter()
                .all(|one| one.state(2) == SlotState::Durable)
        );
        store.check_integrity();
    }
}

#[test]
fn an_inspection_shows_each_group_and_clearing_removes_all_files() {
    let folder = tempfile::tempdir().unwrap();
    let groups = groups(3);
    let (store, _) = open(folder.path(), 10, &groups).unwrap();
    write_chains(&store, &groups, 0, 4);
    sync(&store);
    let inspection = Inspection::open(folder.path()).unwrap();
    assert!(matches!(inspection.usage(), FolderUsage::Used(_)));
    assert_eq!(inspection.files_bytes(), bytes_of(folder.path()).0);
    assert_eq!(inspection.groups().len(), 3);
    for (index, group) in inspection.groups().iter().enumerate() {
        let manifest = group.manifest();
        assert_eq!(manifest.name(), Some(groups[index].name.as_str()));
        assert_eq!(manifest.blocks_max(), 9);
        assert!(group.torn().is_empty() && group.unreadable().is_empty());
        let mut buffer = vec![0; usize::try_from(manifest.block_bytes()).unwrap()];
        for (number, block) in (0..4).zip(group.blocks()) {
            assert_eq!(block.key, key(number));
            let read = group.read(usize::try_from(number).unwrap(), &mut buffer);
            read.unwrap();
            assert!(buffer == content(seed(index, number), &groups[index].identity));
        }
    }
    match inspection.only() {
        Err(TierError::Folder(FolderError::FolderGroups { groups, .. })) => {
            assert_eq!(groups, ["full", "state", "swa"]);
        }
        other => panic!("{other:?}"),
    }
    let medium = kvtile_tiers::disk::medium::FolderMedium::new(folder.path());
    assert!(matches!(
        kvtile_tiers::disk::clear(&medium),
        Err(TierError::Folder(FolderError::InUse { .. }))
    ));
    drop(store);
    kvtile_tiers::disk::clear(&medium).unwrap();
    let left = fs::read_dir(folder.path()).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["lock"]);
    let (_, recovered) = open(folder.path(), 10, &groups[..1]).unwrap();
    assert!(recovered[0].created);
}
