//! A store that only reads a folder while another one writes it.

use std::{path::Path, sync::Arc};

use kvtile_testkit::gate::wait_until;
use kvtile_tiers::block_store::BlockStore;

use super::common::{DIRECT, PERMUTED, TestRows, keys, manager, names, open, settings};

fn follow(folder: &Path, word: &str) -> (BlockStore, TestRows) {
    let manager = manager();
    let store = BlockStore::builder(settings(folder).read_only(true))
        .manager(Arc::clone(&manager))
        .open()
        .unwrap();
    let rows = TestRows::new(&store, &manager, word);
    (store, rows)
}

#[test]
fn a_reader_finds_what_the_writer_has_synced_and_stores_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kv");
    // The reader may start first.
    let (reader, read_rows) = follow(&path, PERMUTED);
    let group = read_rows.rows.group();
    assert_eq!(reader.contains(group, &keys(0..4)).unwrap(), [false; 4]);
    let (writer, rows) = open(&path, DIRECT);
    rows.store(&writer, &keys(0..4), 0);
    assert!(writer.flush(None).durable);
    wait_until("the reader finds the blocks", || {
        read_rows.load(&reader, &keys(0..4), 0) == ["ok"; 4]
    });
    let stored = read_rows.store(&reader, &keys(9..10), 0);
    assert_eq!(names(&stored), ["failed"]);
    assert_eq!(reader.forget(group, &keys(0..1)).unwrap(), 0);
    // A removed block is a miss of the reader, at the latest after the next sync.
    writer.forget(group, &keys(2..3)).unwrap();
    assert!(writer.flush(None).durable);
    wait_until("the removed block is a miss", || {
        read_rows.load(&reader, &keys(2..3), 0) == ["absent"]
    });
    assert_eq!(read_rows.load(&reader, &keys(3..4), 0), ["ok"]);
    // The reader holds no lock: the writer can be opened anew.
    drop(rows);
    drop(writer);
    let (writer, rows) = open(&path, DIRECT);
    rows.store(&writer, &keys(4..6), 0);
    assert!(writer.flush(None).durable);
    wait_until("the reader follows the next writer", || {
        read_rows.load(&reader, &keys(4..6), 0) == ["ok"; 2]
    });
}
