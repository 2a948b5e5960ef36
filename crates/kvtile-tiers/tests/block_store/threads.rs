//! Many threads on one store: every block that a load reports has the bytes of its key.

use std::sync::atomic::{AtomicUsize, Ordering};

use kvtile_testkit::disk::SplitMix64;
use kvtile_tiers::block_store::BlockStore;

use super::common::{DIRECT, PERMUTED, TestRows, keys, manager, settings};

#[test]
fn threads_that_store_load_and_remove_the_same_blocks_get_no_wrong_byte() {
    let folder = tempfile::tempdir().unwrap();
    let manager = manager();
    let disk = kvtile_tiers::disk::DiskSettings::new(folder.path(), 256 << 10);
    let store = BlockStore::builder(settings(folder.path()).disk(disk))
        .manager(manager.clone())
        .open()
        .unwrap();
    let loaded = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..6 {
            let (store, manager, loaded) = (&store, &manager, &loaded);
            scope.spawn(move || {
                let mut numbers = SplitMix64::new(thread);
                let word = if thread % 2 == 0 { DIRECT } else { PERMUTED };
                let rows = TestRows::new(store, manager, word);
                for _ in 0..150 {
                    let first = numbers.below(40);
                    let some = keys(first..first + 1 + numbers.below(8));
                    match numbers.below(8) {
                        0..=2 => drop(rows.store(store, &some, 0)),
                        3 => drop(store.forget(rows.rows.group(), &some)),
                        4 => drop(store.touch(rows.rows.group(), &some)),
                        _ => {
                            let names = rows.load(store, &some, 20);
                            let ok = names.iter().filter(|name| **name == "ok").count();
                            loaded.fetch_add(ok, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    assert!(loaded.into_inner() > 300);
    // Blocks that found no room, because all others were in use, count as failed once.
    store.flush(None);
    let flushed = store.flush(None);
    assert!(flushed.durable, "{flushed:?}");
}
