//! Storing, finding, loading, removing and reopening.

use std::os::fd::AsFd;

use kvtile_blocks::events::{EventKind, TierId};
use kvtile_tiers::block_store::{BlockStore, RowStoreOptions};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::common::{DIRECT, PERMUTED, keys, names, open, settings};

#[test]
fn rows_of_either_order_come_back_whatever_their_place() {
    for word in [DIRECT, PERMUTED] {
        let folder = tempfile::tempdir().unwrap();
        let (store, rows) = open(folder.path(), word);
        assert_eq!(rows.rows.is_direct(), word == DIRECT);
        let stored = keys(0..20);
        assert_eq!(names(&rows.store(&store, &stored, 0)), ["ok"; 20]);
        // At once, from staging memory or from disk.
        assert_eq!(rows.load(&store, &stored, 30), ["ok"; 20]);
        assert!(store.flush(None).durable);
        // From disk, in another order, with blocks in between that are not there.
        let mixed = keys([19, 100, 3, 0, 101, 7, 1]);
        let expected = ["ok", "absent", "ok", "ok", "absent", "ok", "ok"];
        assert_eq!(rows.load(&store, &mixed, 2), expected);
        let group = rows.rows.group();
        let there = store.contains(group, &mixed).unwrap();
        assert_eq!(there, expected.map(|name| name == "ok"));
        let stats = store.stats();
        assert_eq!(stats.lookup_blocks, 27);
        assert_eq!(stats.checksum_failures.values().sum::<u64>(), 0);
    }
}

#[test]
fn a_block_is_stored_once() {
    let folder = tempfile::tempdir().unwrap();
    let (store, rows) = open(folder.path(), DIRECT);
    rows.store(&store, &keys(0..4), 0);
    let again = rows.store(&store, &keys(2..6), 10);
    assert_eq!(names(&again), ["present", "present", "ok", "ok"]);
    let twice = keys([9, 9, 9]);
    let outcomes = rows.store(&store, &twice, 20);
    assert_eq!(outcomes.ok(), 3);
    assert!(store.flush(None).durable);
    assert_eq!(store.tier_stats(TierId::DISK).unwrap().present, 7);
    assert_eq!(rows.load(&store, &keys([9]), 0), ["ok"]);
}

#[test]
fn stored_blocks_are_there_after_a_restart_and_removed_ones_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let (store, rows) = open(folder.path(), PERMUTED);
    rows.store(&store, &keys(0..8), 0);
    let group = rows.rows.group();
    assert_eq!(store.forget(group, &keys([2, 5, 77])).unwrap(), 2);
    assert!(store.flush(None).durable);
    drop(rows);
    drop(store);
    // Rows of another order serve the same folder.
    let (store, rows) = open(folder.path(), DIRECT);
    let loaded = rows.load(&store, &keys(0..8), 0);
    let expected = ["ok", "ok", "absent", "ok", "ok", "absent", "ok", "ok"];
    assert_eq!(loaded, expected);
    assert_eq!(store.clear().unwrap(), 6);
    assert_eq!(store.contains(group, &keys(0..8)).unwrap(), [false; 8]);
    drop(rows);
    assert!(store.close(None).durable);
    let (store, rows) = open(folder.path(), DIRECT);
    assert_eq!(rows.load(&store, &keys(0..8), 0), ["absent"; 8]);
}

#[test]
fn a_block_that_is_removed_while_it_is_staged_stays_removed() {
    let folder = tempfile::tempdir().unwrap();
    let (store, rows) = open(folder.path(), DIRECT);
    let group = rows.rows.group();
    for round in 0..200 {
        let one = keys([round]);
        rows.store(&store, &one, 0);
        assert_eq!(store.forget(group, &one).unwrap(), 1);
        assert_eq!(store.contains(group, &one).unwrap(), [false]);
    }
    store.flush(None);
    let all = keys(0..200);
    assert!(store.contains(group, &all).unwrap().iter().all(|has| !has));
    assert_eq!(store.tier_stats(TierId::DISK).unwrap().present, 0);
}

#[test]
fn submitted_jobs_end_in_the_queue_whose_descriptor_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let (store, rows) = open(folder.path(), DIRECT);
    let options = RowStoreOptions::new();
    for (job, row) in (100..110).zip(0..) {
        let one = keys([job]);
        rows.fill(&one[0], row);
        store
            .submit_store(job, &one, &rows.rows, &[row], &options)
            .unwrap();
    }
    store.drain();
    assert_eq!(store.pending(), 0);
    let fd = store.finished_fd();
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    assert_eq!(poll(&mut fds, Some(&Timespec::default())).unwrap(), 1);
    let mut jobs: Vec<u64> = store
        .take_finished()
        .iter()
        .map(|(job, outcomes)| {
            assert_eq!(outcomes.ok(), 1);
            *job
        })
        .collect();
    jobs.sort_unstable();
    assert_eq!(jobs, (100..110).collect::<Vec<u64>>());
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    assert_eq!(poll(&mut fds, Some(&Timespec::default())).unwrap(), 0);
    store
        .submit_load(7, &keys([100, 1]), &rows.rows, &[20, 21])
        .unwrap();
    store.drain();
    let finished = store.take_finished();
    assert_eq!(finished.len(), 1);
    assert_eq!(names(&finished[0].1), ["ok", "absent"]);
    let _ = fd.as_fd();
}

#[test]
fn events_name_what_was_stored_and_what_left() {
    let folder = tempfile::tempdir().unwrap();
    let (store, rows) = open(folder.path(), DIRECT);
    let mut events = store.subscribe();
    rows.store(&store, &keys(0..3), 0);
    store.flush(None);
    store.forget(rows.rows.group(), &keys([1])).unwrap();
    let mut seen = Vec::new();
    events.poll(&mut seen, 100).unwrap();
    let stored = seen
        .iter()
        .filter(|event| matches!(event.kind, EventKind::Stored { .. }))
        .count();
    assert_eq!(stored, 3);
    assert!(seen.iter().any(|event| matches!(
        event.kind,
        EventKind::Removed { key } if key == keys([1])[0]
    )));
    assert_eq!(store.snapshot().blocks.len(), 2);
}

#[test]
fn more_blocks_than_staging_memory_are_stored_in_turns() {
    let folder = tempfile::tempdir().unwrap();
    // The smallest staging memory: two blocks.
    let smallest = 2 * super::common::block_bytes().next_multiple_of(4096);
    let store = BlockStore::builder(settings(folder.path()).staging_bytes(smallest));
    let manager = super::common::manager();
    let store = store.manager(manager.clone()).open().unwrap();
    for word in [DIRECT, PERMUTED] {
        let rows = super::common::TestRows::new(&store, &manager, word);
        let numbers = match word {
            DIRECT => 0..60,
            _ => 60..120,
        };
        let outcomes = rows.store(&store, &keys(numbers.clone()), 0);
        assert_eq!(names(&outcomes), ["ok"; 60]);
        assert_eq!(rows.load(&store, &keys(numbers), 0), ["ok"; 60]);
    }
    assert!(store.flush(None).durable);
}
