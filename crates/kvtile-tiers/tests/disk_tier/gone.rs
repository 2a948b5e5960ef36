//! Files that are removed, renamed, replaced, truncated or overwritten under an open store: from
//! then on it reports nothing as durable, and its open files stay readable.

use std::{fs, path::Path};

use crate::common::{content, key, room_for, store_chain, usual, write};
use kvtile_blocks::BlockKey;
use kvtile_tiers::{
    FileChange, FolderError, TierError,
    disk::{SlotState, SlotStore},
};

const FILES: [&str; 3] = ["manifest.json", "records", "slots"];

/// A store in the subfolder `tier` of `folder`: blocks 0 and 1 durable, 2 written.
fn store(folder: &Path) -> SlotStore {
    let identity = usual();
    let settings = room_for(8, &identity);
    let opened = SlotStore::create_or_open(&folder.join("tier"), &settings, &identity);
    let (store, _) = opened.unwrap();
    store_chain(&store, &identity, 0, 2);
    let bytes = content(2, &identity);
    assert!(store.write(&[write(2, 2, &bytes)]).failed.is_empty());
    assert_eq!(store.are_durable(&blocks()).unwrap(), [true, true, false]);
    store
}

fn blocks() -> [(u32, BlockKey); 3] {
    [0, 1, 2].map(|number| (u32::try_from(number).unwrap(), key(number)))
}

fn gone(error: &TierError) -> (&str, FileChange) {
    match error {
        TierError::Folder(FolderError::FileGone { file, change }) => (file, *change),
        other => panic!("{other}"),
    }
}

/// Checks that every call about durability and every write reports `change` of `file`.
fn check_gone(store: &SlotStore, file: &Path, change: FileChange) {
    let expected = (file.to_str().unwrap(), change);
    // Twice: the error repeats.
    for _ in 0..2 {
        let synced = store.sync();
        assert_eq!(gone(&synced.failure.unwrap()), expected);
        assert_eq!((synced.blocks, synced.erased, synced.lost.len()), (0, 0, 0));
    }
    assert_eq!(gone(&store.are_durable(&blocks()).unwrap_err()), expected);
    assert!(store.are_durable(&[]).is_err());
    let identity = usual();
    let bytes = content(3, &identity);
    let written = store.write(&[write(3, 3, &bytes)]);
    assert_eq!(written.failed.len(), 1);
    assert_eq!(gone(&written.failed[0].error), expected);
    assert!(!store.is_durable(written.ticket));
    assert_eq!(store.state(3), SlotState::Empty);
    assert_eq!(store.state(2), SlotState::Written);
    let text = written.failed[0].error.to_string();
    assert!(text.contains("open it again"), "{text}");
    store.check_integrity();
}

fn check_readable(store: &SlotStore) {
    let identity = usual();
    let mut buffer = content(9, &identity);
    for (slot, key) in blocks() {
        store.read(slot, &key, &mut buffer).unwrap();
        assert!(buffer == content(u64::from(slot), &identity));
    }
}

#[test]
fn with_a_file_removed_or_replaced_nothing_is_durable_and_reads_succeed() {
    for file in FILES {
        for replace in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let store = store(folder.path());
            let path = folder.path().join("tier").join(file);
            let kept = fs::read(&path).unwrap();
            fs::remove_file(&path).unwrap();
            let change = match replace {
                true => FileChange::Replaced,
                false => FileChange::Removed,
            };
            if replace {
                // The same bytes do not help: the copy misses later writes.
                fs::write(&path, &kept).unwrap();
            }
            check_gone(&store, &path, change);
            check_readable(&store);
        }
    }
}

#[test]
fn a_file_that_is_renamed_and_renamed_back_is_durable_again() {
    for file in FILES {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let path = folder.path().join("tier").join(file);
        let away = folder.path().join("away");
        fs::rename(&path, &away).unwrap();
        check_gone(&store, &path, FileChange::Removed);
        check_readable(&store);
        fs::rename(&away, &path).unwrap();
        assert!(store.sync().failure.is_none());
        assert_eq!(store.are_durable(&blocks()).unwrap(), [true; 3]);
        check_readable(&store);
    }
}

#[test]
fn a_folder_that_is_removed_renamed_or_replaced_makes_nothing_durable() {
    for replace in [false, true] {
        for keep in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let store = store(folder.path());
            let (path, away) = (folder.path().join("tier"), folder.path().join("away"));
            match keep {
                true => fs::rename(&path, &away).unwrap(),
                false => fs::remove_dir_all(&path).unwrap(),
            }
            let change = match replace {
                true => FileChange::Replaced,
                false => FileChange::Removed,
            };
            if replace {
                fs::create_dir(&path).unwrap();
            }
            check_gone(&store, &path, change);
            check_readable(&store);
            if keep {
                if replace {
                    fs::remove_dir(&path).unwrap();
                }
                fs::rename(&away, &path).unwrap();
                assert!(store.sync().failure.is_none());
                assert_eq!(store.are_durable(&blocks()).unwrap(), [true; 3]);
            }
        }
    }
}

#[test]
fn a_folder_is_durable_while_its_link_leads_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let (real, link) = (folder.path().join("real"), folder.path().join("tier"));
    fs::create_dir(&real).unwrap();
    std::os::unix::fs::symlink(&real, &link).unwrap();
    let store = store(folder.path());
    fs::remove_file(&link).unwrap();
    check_gone(&store, &link, FileChange::Removed);
    std::os::unix::fs::symlink(&real, &link).unwrap();
    assert!(store.sync().failure.is_none());
}

#[test]
fn files_that_are_cut_and_a_manifest_that_is_overwritten_are_noticed() {
    for file in FILES {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let path = folder.path().join("tier").join(file);
        let opened = fs::OpenOptions::new().write(true).open(&path).unwrap();
        let before = opened.metadata().unwrap().len();
        for length_bytes in [0, before - 1] {
            opened.set_len(length_bytes).unwrap();
            check_gone(&store, &path, FileChange::Cut { length_bytes });
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let path = folder.path().join("tier/manifest.json");
    let mut bytes = fs::read(&path).unwrap();
    bytes[0] ^= 1;
    fs::write(&path, &bytes).unwrap();
    check_gone(&store, &path, FileChange::Overwritten);
    check_readable(&store);
}

/// Durability is per block, independent of the batch that wrote the block.
#[test]
fn durability_is_reported_for_each_block() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    assert!(store.sync().failure.is_none());
    store.erase(&[1]).unwrap();
    let asked = [
        (0, key(0)),
        (1, key(1)),
        (2, key(3)),
        (2, key(2)),
        (99, key(0)),
    ];
    let durable = store.are_durable(&asked).unwrap();
    assert_eq!(durable, [true, false, false, true, false]);
}

#[test]
fn the_working_directory_of_the_process_may_change() {
    let folder = tempfile::tempdir().unwrap();
    let before = std::env::current_dir().unwrap();
    let up: Vec<_> = before.components().skip(1).map(|_| "..").collect();
    let root = folder.path().strip_prefix("/").unwrap();
    let relative = Path::new(&up.join("/")).join(root).join("tier");
    let identity = usual();
    let settings = room_for(8, &identity);
    let (store, _) = SlotStore::create_or_open(&relative, &settings, &identity).unwrap();
    std::env::set_current_dir("/").unwrap();
    let synced = store.sync();
    std::env::set_current_dir(before).unwrap();
    assert!(synced.failure.is_none(), "{:?}", synced.failure);
}
