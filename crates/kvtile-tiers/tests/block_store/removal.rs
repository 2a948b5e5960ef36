//! Removals while stores and writes are in flight: neither brings a removed block back, and a later
//! store of the same key is independent of it.

use std::{path::Path, sync::Arc, time::Duration};

use kvtile_blocks::BlockKey;
use kvtile_testkit::gate::{Gate, wait_until};
use kvtile_tiers::{block_store::BlockStore, disk::DiskSettings};

use super::{
    common::{DIRECT, TestRows, keys, manager, names, settings},
    hooked::{HookedFolder, HookedOperation},
};

/// A store whose writes to disk stop at a gate, and should end `within` a time.
fn gated(folder: &Path, within: Duration) -> (BlockStore, TestRows, Arc<Gate>) {
    let gate = Arc::new(Gate::default());
    let hook = Arc::clone(&gate);
    let medium = HookedFolder::new(folder, move |operation| {
        if operation == HookedOperation::Write {
            hook.pass();
        }
    });
    let manager = manager();
    let disk = DiskSettings::new(folder, 4 << 20).answer_within(within);
    let store = BlockStore::builder(settings(folder).disk(disk))
        .manager(Arc::clone(&manager))
        .medium(Arc::new(medium))
        .open()
        .unwrap();
    let rows = TestRows::new(&store, &manager, DIRECT);
    (store, rows, gate)
}

/// Removes blocks in one of the two ways.
fn remove(store: &BlockStore, rows: &TestRows, keys: &[BlockKey], all: bool) {
    match all {
        true => drop(store.clear().unwrap()),
        false => drop(store.forget(rows.rows.group(), keys).unwrap()),
    }
    let there = store.contains(rows.rows.group(), keys).unwrap();
    assert!(!there.contains(&true), "{there:?}");
}

#[test]
fn blocks_that_are_stored_again_during_the_write_of_the_removed_ones_stay() {
    for all in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let (store, rows, gate) = gated(folder.path(), Duration::from_secs(60));
        let group = rows.rows.group();
        let stored = keys(0..4);
        let shut = gate.shut(1);
        assert_eq!(rows.store(&store, &stored, 0).ok(), 4);
        shut.wait_until_stopped(1);
        remove(&store, &rows, &stored, all);
        // The same keys with other content, as after an update of the weights.
        let content = keys(100..104);
        for (row, key) in content.iter().enumerate() {
            rows.fill(key, row);
        }
        let again = rows.start_store(&store, &stored, 0).wait();
        assert_eq!(names(&again), ["ok"; 4]);
        assert_eq!(store.contains(group, &stored).unwrap(), [true; 4]);
        shut.open();
        assert!(store.flush(None).durable);
        assert_eq!(store.contains(group, &stored).unwrap(), [true; 4]);
        let loaded = rows.start_load(&store, &stored, 20).wait();
        assert_eq!(names(&loaded), ["ok"; 4]);
        for (row, key) in (20..).zip(&content) {
            assert!(
                rows.holds(key, row, 63),
                "row {row} has the removed content"
            );
        }
    }
}

#[test]
fn a_write_that_ends_late_brings_no_removed_block_back() {
    for all in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let (store, rows, gate) = gated(folder.path(), Duration::from_millis(20));
        let group = rows.rows.group();
        let stored = keys(0..4);
        let shut = gate.shut(1);
        rows.store(&store, &stored, 0);
        shut.wait_until_stopped(1);
        assert!(store.flush(None).failed > 0);
        remove(&store, &rows, &stored, all);
        shut.open();
        wait_until("the disk takes blocks again", || {
            rows.store(&store, &keys(10..11), 0);
            store.flush(None).durable
        });
        assert_eq!(store.contains(group, &stored).unwrap(), [false; 4]);
        drop(rows);
        store.close(None);
        let (store, rows, _) = gated(folder.path(), Duration::from_secs(60));
        assert_eq!(rows.load(&store, &stored, 0), ["absent"; 4]);
    }
}

#[test]
fn a_store_in_flight_keeps_no_block_that_is_removed_before_its_end() {
    for all in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let (store, rows, gate) = gated(folder.path(), Duration::from_secs(60));
        let group = rows.rows.group();
        // More blocks than staging memory has: the store waits for the disk.
        let stored = keys(0..40);
        for (row, key) in stored.iter().enumerate() {
            rows.fill(key, row);
        }
        let shut = gate.shut(1);
        let store_all = rows.start_store(&store, &stored, 0);
        shut.wait_until_stopped(1);
        wait_until("staging memory is full", || {
            store.contains(group, &stored[14..15]).unwrap() == [true]
        });
        remove(&store, &rows, &stored, all);
        shut.open();
        let outcomes = store_all.wait();
        assert_eq!(outcomes.blocks.len(), 40);
        assert!(store.flush(None).durable);
        let there = store.contains(group, &stored).unwrap();
        assert!(!there.contains(&true), "{there:?}");
        // A store after the removal is independent of it.
        assert_eq!(rows.store(&store, &stored[..8], 0).ok(), 8);
        assert_eq!(rows.load(&store, &stored[..8], 20), ["ok"; 8]);
    }
}

#[test]
fn stores_right_after_a_clearing_stay() {
    let folder = tempfile::tempdir().unwrap();
    let (store, rows, _) = gated(folder.path(), Duration::from_secs(60));
    let group = rows.rows.group();
    let stored = keys(0..8);
    for _ in 0..200 {
        assert_eq!(rows.store(&store, &stored, 0).ok(), 8);
        assert_eq!(store.contains(group, &stored).unwrap(), [true; 8]);
        remove(&store, &rows, &stored, true);
    }
    assert!(store.flush(None).durable);
    assert_eq!(store.contains(group, &stored).unwrap(), [false; 8]);
}
