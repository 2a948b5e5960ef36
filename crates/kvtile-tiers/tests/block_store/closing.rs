//! Closing with jobs under way, and what is there afterwards.

use std::time::Duration;

use kvtile_tiers::block_store::BlockStore;

use super::common::{DIRECT, keys, layout, names, open, settings};

#[test]
fn closing_ends_every_job_and_keeps_what_was_stored() {
    for round in 0..20 {
        let folder = tempfile::tempdir().unwrap();
        let (store, rows) = open(folder.path(), DIRECT);
        for (key, row) in keys(0..32).iter().zip(0..) {
            rows.fill(key, row);
        }
        let jobs: Vec<_> = (0..16)
            .zip((0..).step_by(2))
            .map(|(job, row)| rows.start_store(&store, &keys(2 * job..2 * job + 2), row))
            .collect();
        if round % 2 == 0 {
            std::thread::sleep(Duration::from_micros(50 * round));
        }
        let flushed = store.close(None);
        assert_eq!((flushed.unwritten, flushed.failed), (0, 0));
        let ended: Vec<Vec<&str>> = jobs.iter().map(|job| names(&job.wait())).collect();
        drop(rows);
        let (store, rows) = open(folder.path(), DIRECT);
        for (job, ended) in (0..).zip(ended) {
            let expected = match ended[0] {
                "ok" => ["ok"; 2],
                "closed" => ["absent"; 2],
                other => panic!("{other}"),
            };
            assert_eq!(rows.load(&store, &keys(2 * job..2 * job + 2), 0), expected);
        }
    }
}

#[test]
fn a_store_that_is_dropped_releases_its_folder_and_rows_can_outlive_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = BlockStore::open(settings(folder.path())).unwrap();
    let rows = store.register("kv", layout(DIRECT)).unwrap();
    let stored = store.store(&keys(0..3), &rows, &[0, 1, 2]).unwrap();
    assert_eq!(stored.wait().ok(), 3);
    drop(store);
    let store = BlockStore::open(settings(folder.path())).unwrap();
    assert_eq!(
        store.contains(rows.group(), &keys(0..3)).unwrap(),
        [true; 3]
    );
    assert_eq!(rows.rows(), 64);
    rows.release().unwrap();
}
