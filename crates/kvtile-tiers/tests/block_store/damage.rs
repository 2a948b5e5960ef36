//! Damaged bytes are misses, each counted.

use std::{fs::OpenOptions, os::unix::fs::FileExt};

use kvtile_blocks::events::TierId;

use super::common::{DIRECT, PERMUTED, keys, open};

#[test]
fn a_flipped_bit_is_a_miss_of_its_block_alone() {
    for word in [DIRECT, PERMUTED] {
        let folder = tempfile::tempdir().unwrap();
        let (store, rows) = open(folder.path(), word);
        rows.store(&store, &keys(0..6), 0);
        assert!(store.flush(None).durable);
        flip(&folder.path().join("slots"), 2 * 4096 + 77);
        let loaded = rows.load(&store, &keys(0..6), 10);
        let damaged = loaded.iter().filter(|name| **name == "damaged").count();
        let whole = loaded.iter().filter(|name| **name == "ok").count();
        assert_eq!((damaged, whole), (1, 5), "{loaded:?}");
        // The next load does not find it, and a new store brings it back.
        let again = rows.load(&store, &keys(0..6), 10);
        assert_eq!(again.iter().filter(|name| **name == "absent").count(), 1);
        let group = rows.rows.group();
        let there = store.contains(group, &keys(0..6)).unwrap();
        assert_eq!(there.iter().filter(|there| **there).count(), 5);
        let stats = store.stats();
        assert_eq!(stats.checksum_failures[&TierId::DISK], 1);
        // It had been written: no write has failed since.
        let flushed = store.flush(None);
        assert!(flushed.durable && flushed.failed == 0, "{flushed:?}");
        rows.store(&store, &keys(0..6), 0);
        assert_eq!(rows.load(&store, &keys(0..6), 10), ["ok"; 6]);
        assert!(store.flush(None).durable);
    }
}

#[test]
fn a_folder_that_disappears_is_a_miss_and_no_success() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kv");
    let (store, rows) = open(&path, DIRECT);
    rows.store(&store, &keys(0..3), 0);
    assert!(store.flush(None).durable);
    std::fs::remove_dir_all(&path).unwrap();
    rows.store(&store, &keys(3..6), 0);
    let flushed = store.flush(None);
    assert!(!flushed.durable && flushed.failed == 3, "{flushed:?}");
    let loaded = rows.load(&store, &keys(3..6), 10);
    assert_eq!(loaded, ["absent"; 3]);
}

fn flip(file: &std::path::Path, at: u64) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(file)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    byte[0] ^= 0x10;
    file.write_all_at(&byte, at).unwrap();
}
