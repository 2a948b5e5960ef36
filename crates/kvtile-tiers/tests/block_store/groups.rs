//! Several groups in one store: blocks of their own size, keys of their own, one folder.

use std::{os::unix::fs::MetadataExt, path::Path};

use kvtile_blocks::events::TierId;
use kvtile_layout::{Shape, identity::Identity};
use kvtile_tiers::{
    block_store::{BlockStore, BlockStoreSettings, StoreGroup, StoreRows},
    disk::DiskSettings,
};
use kvtile_transfer::{FillPattern, LayoutHandle, PhysicalLayout, TransferManager};

use super::common::{keys, manager, names};

const CAPACITY: u64 = 1 << 20;

/// A wide and a narrow group, and one whose blocks are no whole pages.
fn groups() -> Vec<StoreGroup> {
    let group = |name, heads, size| {
        let shape = Shape::key_value(16, 2, 4, heads, size, "f32").unwrap();
        let identity = Identity::new("a-model", "main", &shape).unwrap();
        StoreGroup::new(name, identity, shape)
    };
    vec![
        group("kv", 8, 32),
        group("swa", 1, 32),
        group("odd", 3, 7).share(0.5),
    ]
}

struct GroupRows {
    rows: StoreRows,
    handle: LayoutHandle,
}

fn open(folder: &Path, manager: &std::sync::Arc<TransferManager>) -> (BlockStore, Vec<GroupRows>) {
    let settings = BlockStoreSettings::new(groups())
        .disk(DiskSettings::new(folder, CAPACITY))
        .staging_bytes(1 << 20);
    let store = BlockStore::builder(settings).manager(manager.clone());
    let store = store.open().unwrap();
    let rows = groups().into_iter().map(|group| {
        let layout = PhysicalLayout::builder()
            .with_shape(group.shape)
            .layout("BLHKNC".parse::<kvtile_layout::Word>().unwrap())
            .allocate_system()
            .build()
            .unwrap();
        let handle = manager.register(layout).unwrap();
        let guard = std::sync::Arc::new(());
        GroupRows {
            rows: store.register_handle(&group.name, handle, guard).unwrap(),
            handle,
        }
    });
    let rows = rows.collect();
    (store, rows)
}

#[test]
fn equal_keys_of_groups_are_blocks_of_their_own_before_and_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let manager = manager();
    let (store, rows) = open(folder.path(), &manager);
    let stored = keys(0..6);
    let ids: Vec<usize> = (0..6).collect();
    for (rows, seed) in rows.iter().zip(1..) {
        let pattern = FillPattern::Distinct { seed };
        manager.fill(rows.handle, &ids, pattern).unwrap();
        let ended = store.store(&stored, &rows.rows, &ids).unwrap().wait();
        assert_eq!(names(&ended), ["ok"; 6]);
    }
    assert!(store.flush(None).durable);
    check(&store, &rows, &manager, &[true; 3]);
    assert_eq!(store.forget(rows[1].rows.group(), &stored).unwrap(), 6);
    check(&store, &rows, &manager, &[true, false, true]);
    assert!(store.flush(None).durable);
    drop(store);
    drop(rows);
    let files: u64 = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().blocks() * 512)
        .sum();
    assert!(files <= CAPACITY, "{files}");
    let (store, rows) = open(folder.path(), &manager);
    check(&store, &rows, &manager, &[true, false, true]);
    assert_eq!(store.tier_stats(TierId::DISK).unwrap().present, 12);
}

/// Loads the six blocks of each group that has them, and compares every byte.
fn check(store: &BlockStore, rows: &[GroupRows], manager: &TransferManager, there: &[bool]) {
    let all = keys(0..6);
    let (into, sources): (Vec<usize>, Vec<usize>) = ((6..12).collect(), (0..6).collect());
    for ((rows, there), seed) in rows.iter().zip(there).zip(1..) {
        let poison = FillPattern::Constant(0xa5);
        manager.fill(rows.handle, &into, poison).unwrap();
        let ended = store.load(&all, &rows.rows, &into).unwrap().wait();
        if !there {
            assert_eq!(names(&ended), ["absent"; 6]);
            continue;
        }
        assert_eq!(names(&ended), ["ok"; 6]);
        let pattern = FillPattern::Distinct { seed };
        manager.fill(rows.handle, &sources, pattern).unwrap();
        let digest = |row| manager.block_digest(rows.handle, row).unwrap();
        for (source, row) in sources.iter().zip(&into) {
            assert_eq!(digest(*source), digest(*row));
        }
    }
}

#[test]
fn a_folder_of_other_groups_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let manager = manager();
    drop(open(folder.path(), &manager));
    let mut other = groups();
    other.pop();
    let settings = BlockStoreSettings::new(other).disk(DiskSettings::new(folder.path(), CAPACITY));
    let error = BlockStore::open(settings).err().unwrap().to_string();
    assert!(error.contains("odd"), "{error}");
    let mut twice = groups();
    twice[1].name = "kv".to_owned();
    let settings = BlockStoreSettings::new(twice).disk(DiskSettings::new(folder.path(), CAPACITY));
    let error = BlockStore::open(settings).err().unwrap().to_string();
    assert!(error.contains("two groups are named kv"), "{error}");
}
