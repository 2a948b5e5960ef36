//! Closing with jobs under way, and what is there afterwards.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, mpsc},
    task::{Context, Wake, Waker},
    time::Duration,
};

use parking_lot::Mutex;

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

/// A waker that runs a function once.
struct CallOnWake(Mutex<Option<Box<dyn FnOnce() + Send>>>);

impl Wake for CallOnWake {
    fn wake(self: Arc<Self>) {
        if let Some(call) = self.0.lock().take() {
            call();
        }
    }
}

#[test]
fn the_end_of_a_job_may_drain_release_and_close() {
    let folder = tempfile::tempdir().unwrap();
    let store = BlockStore::open(settings(folder.path())).unwrap();
    let rows = store.register("kv", layout(DIRECT)).unwrap();
    let stored = store.store(&keys(0..40), &rows, &(0..40).collect::<Vec<_>>());
    let mut stored = stored.unwrap();
    let (sender, ended) = mpsc::channel();
    let call = move || {
        store.drain();
        rows.release().unwrap();
        sender.send(store.close(None)).unwrap();
    };
    let waker = Waker::from(Arc::new(CallOnWake(Mutex::new(Some(Box::new(call))))));
    // If the job has ended already, the waker is not called.
    if Pin::new(&mut stored)
        .poll(&mut Context::from_waker(&waker))
        .is_ready()
    {
        waker.wake();
    }
    let flushed = ended.recv_timeout(Duration::from_secs(20)).unwrap();
    assert!(flushed.durable, "{flushed:?}");
    assert!(BlockStore::open(settings(folder.path())).is_ok());
}
