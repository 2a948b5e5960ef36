//! Disks that hang: loads keep their rows until the disk has let go of them, stores are bounded.

use std::{sync::Arc, time::Duration};

use kvtile_blocks::{BlockKey, events::TierId};
use kvtile_testkit::gate::{Gate, wait_until};
use kvtile_tiers::{block_store::BlockStore, disk::DiskSettings};

use super::{
    common::{DIRECT, PERMUTED, TestRows, keys, manager, names, settings},
    hooked::{HookedFolder, HookedOperation},
};

fn gated(
    folder: &std::path::Path,
    at: HookedOperation,
    word: &str,
) -> (BlockStore, TestRows, Arc<Gate>) {
    gated_within(folder, (at, word), Duration::from_millis(50))
}

/// A store whose disk stops at a gate, and should answer `within` a time.
fn gated_within(
    folder: &std::path::Path,
    (at, word): (HookedOperation, &str),
    within: Duration,
) -> (BlockStore, TestRows, Arc<Gate>) {
    let gate = Arc::new(Gate::default());
    let hook = Arc::clone(&gate);
    let medium = HookedFolder::new(folder, move |operation| {
        if operation == at {
            hook.pass();
        }
    });
    let manager = manager();
    let disk = DiskSettings::new(folder, 4 << 20).answer_within(within);
    let settings = settings(folder)
        .disk(disk)
        .stage_within(Duration::from_millis(50));
    let store = BlockStore::builder(settings)
        .manager(Arc::clone(&manager))
        .medium(Arc::new(medium))
        .open()
        .unwrap();
    let rows = TestRows::new(&store, &manager, word);
    (store, rows, gate)
}

/// Stores blocks until the disk has them and is late with nothing, however slow the machine is.
fn store_on_disk(store: &BlockStore, rows: &TestRows, keys: &[BlockKey]) {
    wait_until("the blocks are on the disk", || {
        rows.store(store, keys, 0);
        let is_durable = store.flush(None).durable;
        let health = store.tier_health(TierId::DISK).unwrap();
        let is_slow = health.is_late || health.reads_paused || health.writes_paused;
        let there = store.contains(rows.rows.group(), keys).unwrap();
        is_durable && !is_slow && there.iter().all(|there| *there)
    });
}

#[test]
fn a_load_into_rows_ends_only_when_the_disk_no_longer_touches_them() {
    let folder = tempfile::tempdir().unwrap();
    let (store, rows, gate) = gated(folder.path(), HookedOperation::Read, DIRECT);
    let group = rows.rows.group();
    store_on_disk(&store, &rows, &keys(0..2));
    let lost_before = store.stats().lost_hits.values().sum::<u64>();
    let shut = gate.shut(1);
    let load = rows.start_load(&store, &keys(0..1), 10);
    shut.wait_until_stopped(1);
    wait_until("the reads of the disk pause", || {
        store.contains(group, &keys(0..2)).unwrap() == [false, false]
    });
    assert!(load.wait_timeout(Duration::from_millis(20)).is_none());
    assert_eq!(store.pending(), 1);
    // While the disk hangs, further loads are misses.
    assert_eq!(rows.load(&store, &keys(1..2), 20), ["absent"]);
    shut.open();
    assert_eq!(names(&load.wait()), ["ok"]);
    assert!(rows.holds(&keys([0])[0], 10, 63));
    let lost = store.stats().lost_hits.values().sum::<u64>();
    assert_eq!(lost - lost_before, 1);
}

#[test]
fn a_load_through_staging_memory_ends_in_time() {
    let folder = tempfile::tempdir().unwrap();
    let (store, rows, gate) = gated(folder.path(), HookedOperation::Read, PERMUTED);
    store_on_disk(&store, &rows, &keys(0..2));
    let shut = gate.shut(1);
    let load = rows.start_load(&store, &keys(0..2), 10);
    assert_eq!(names(&load.wait()), ["failed", "failed"]);
    shut.open();
    store.drain();
    drop(rows);
    store.close(None);
}

#[test]
fn a_disk_that_takes_no_write_fills_staging_memory_and_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let (store, rows, gate) = gated(folder.path(), HookedOperation::Write, DIRECT);
    let shut = gate.shut(1);
    let stored = rows.store(&store, &keys(0..40), 0);
    let ok = stored.ok();
    // Staging memory has 16 blocks, one of which is for loads; a batch that the disk failed to take
    // in time frees none.
    assert_eq!(ok, 15, "{:?}", names(&stored));
    assert_eq!(names(&stored)[ok..], vec!["no room"; 40 - ok]);
    // The blocks in staging memory are served from there.
    let flushed = store.flush(Some(Duration::from_millis(10)));
    let left = flushed.unwritten + flushed.failed;
    assert!(!flushed.durable && left > 0, "{flushed:?}");
    shut.open();
    wait_until("the disk takes blocks again", || {
        rows.store(&store, &keys(40..41), 0).ok() == 1
    });
    // What the first flush reported as failed is not there; all else is.
    let lost = flushed.failed + store.flush(None).failed;
    let there = store.contains(rows.rows.group(), &keys(0..16)).unwrap();
    let missing = there.iter().filter(|there| !**there).count();
    assert!(missing <= lost, "{missing} missing, {lost} reported");
    // A slow machine may be late once more.
    wait_until("all is durable", || store.flush(None).durable);
}

#[test]
fn staged_blocks_are_served_while_their_write_is_under_way() {
    let folder = tempfile::tempdir().unwrap();
    let gate = Arc::new(Gate::default());
    let hook = Arc::clone(&gate);
    let medium = HookedFolder::new(folder.path(), move |operation| {
        if operation == HookedOperation::Write {
            hook.pass();
        }
    });
    let manager = manager();
    let store = BlockStore::builder(settings(folder.path()))
        .manager(Arc::clone(&manager))
        .medium(Arc::new(medium))
        .open()
        .unwrap();
    for word in [DIRECT, PERMUTED] {
        let rows = TestRows::new(&store, &manager, word);
        let first = if word == DIRECT { 0 } else { 10 };
        let shut = gate.shut(1);
        assert_eq!(rows.store(&store, &keys(first..first + 10), 0).ok(), 10);
        shut.wait_until_stopped(1);
        assert_eq!(rows.load(&store, &keys(first..first + 10), 20), ["ok"; 10]);
        let group = rows.rows.group();
        let there = store.contains(group, &keys(first..first + 10)).unwrap();
        assert_eq!(there, [true; 10]);
        shut.open();
        assert!(store.flush(None).durable);
    }
}

#[test]
fn loads_that_permute_go_on_while_no_write_ends() {
    let folder = tempfile::tempdir().unwrap();
    let at = (HookedOperation::Write, PERMUTED);
    let (store, rows, gate) = gated_within(folder.path(), at, Duration::from_secs(20));
    rows.store(&store, &keys(0..8), 0);
    assert!(store.flush(None).durable);
    let shut = gate.shut(1);
    assert_eq!(rows.store(&store, &keys(8..48), 0).ok(), 15);
    shut.wait_until_stopped(1);
    assert_eq!(rows.load(&store, &keys(0..8), 20), ["ok"; 8]);
    shut.open();
}

#[test]
fn closing_begins_no_write_after_its_time() {
    let folder = tempfile::tempdir().unwrap();
    let medium = HookedFolder::new(folder.path(), |operation| {
        if operation == HookedOperation::Write {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let manager = manager();
    let block = super::common::block_bytes().next_multiple_of(4096);
    let store = BlockStore::builder(settings(folder.path()).staging_bytes(400 * block))
        .manager(Arc::clone(&manager))
        .medium(Arc::new(medium))
        .open()
        .unwrap();
    let rows = TestRows::new(&store, &manager, DIRECT);
    for first in 0..6 {
        let some = keys(60 * first..60 * first + 60);
        assert_eq!(rows.store(&store, &some, 0).ok(), 60);
    }
    // All writes would take seven seconds.
    let flushed = store.close(Some(Duration::from_millis(1)));
    assert!(!flushed.durable && flushed.unwritten > 0, "{flushed:?}");
}

#[test]
fn a_store_that_is_cancelled_while_it_waits_reports_what_it_left() {
    let folder = tempfile::tempdir().unwrap();
    let gate = Arc::new(Gate::default());
    let hook = Arc::clone(&gate);
    let medium = HookedFolder::new(folder.path(), move |operation| {
        if operation == HookedOperation::Write {
            hook.pass();
        }
    });
    let manager = manager();
    let store = BlockStore::builder(settings(folder.path()))
        .manager(Arc::clone(&manager))
        .medium(Arc::new(medium))
        .open()
        .unwrap();
    let rows = TestRows::new(&store, &manager, DIRECT);
    let shut = gate.shut(1);
    let stored = rows.start_store(&store, &keys(0..40), 0);
    shut.wait_until_stopped(1);
    // It waits for staging memory, which the stopped write holds.
    stored.cancel();
    shut.open();
    let stored = stored.wait();
    let ok = stored.ok();
    assert!((15..=40).contains(&ok), "{ok}");
    assert_eq!(names(&stored)[ok..], vec!["cancelled"; 40 - ok]);
    assert!(store.flush(None).durable);
}
