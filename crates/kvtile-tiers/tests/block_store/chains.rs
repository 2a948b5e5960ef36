//! Parents and positions: the disk evicts a block before its parent.

use kvtile_blocks::{BlockKey, events::TierId};
use kvtile_tiers::{
    block_store::{BlockStore, RowStoreOptions},
    disk::DiskSettings,
};

use super::common::{DIRECT, TestRows, block_bytes, keys, manager, settings};

#[test]
fn a_chain_loses_its_end_and_not_its_beginning() {
    let folder = tempfile::tempdir().unwrap();
    let manager = manager();
    let disk = DiskSettings::new(folder.path(), 24 * block_bytes() + 65_536);
    let store = BlockStore::builder(settings(folder.path()).disk(disk))
        .manager(manager.clone())
        .open()
        .unwrap();
    let rows = TestRows::new(&store, &manager, DIRECT);
    let group = rows.rows.group();
    let chain = keys(0..16);
    store_chain(&store, &rows, &chain);
    // Single blocks push the chain out from its end.
    for number in 1000..1012 {
        rows.store(&store, &keys([number]), 20);
        store.flush(None);
        let there = store.contains(group, &chain).unwrap();
        let leading = there.iter().take_while(|there| **there).count();
        let all = there.iter().filter(|there| **there).count();
        assert_eq!(leading, all, "a hole in the chain: {there:?}");
    }
    let stats = store.tier_stats(TierId::DISK).unwrap();
    assert!(stats.evicted_for_room > 0, "{stats:?}");
    assert!(disk_bytes(folder.path()) <= 24 * block_bytes() + 65_536);
}

#[test]
fn a_block_whose_parent_is_missing_is_stored_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (store, rows) = super::common::open(folder.path(), DIRECT);
    let chain = keys(0..4);
    rows.fill(&chain[3], 3);
    let options = RowStoreOptions::new()
        .parents(vec![Some(chain[2])])
        .positions(vec![3]);
    let stored = store.store_with(&chain[3..], &rows.rows, &[3], &options);
    assert_eq!(stored.unwrap().wait().ok(), 1);
    assert!(store.flush(None).durable);
    assert_eq!(rows.load(&store, &chain[3..], 10), ["ok"]);
}

fn store_chain(store: &BlockStore, rows: &TestRows, chain: &[BlockKey]) {
    let parents: Vec<Option<BlockKey>> = std::iter::once(None)
        .chain(chain.iter().copied().map(Some))
        .take(chain.len())
        .collect();
    for (key, row) in chain.iter().zip(0..) {
        rows.fill(key, row);
    }
    let options = RowStoreOptions::new()
        .parents(parents)
        .positions((0..).take(chain.len()).collect());
    let ids: Vec<usize> = (0..chain.len()).collect();
    let stored = store.store_with(chain, &rows.rows, &ids, &options);
    assert_eq!(stored.unwrap().wait().ok(), chain.len());
    assert!(store.flush(None).durable);
}

fn disk_bytes(folder: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(folder).unwrap();
    entries
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum()
}
