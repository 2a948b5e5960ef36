//! Calls and settings that a store refuses, with the values that are wrong.

use std::{sync::Arc, time::Duration};

use kvtile_blocks::{BlockKey, GroupId};
use kvtile_layout::{Shape, identity::Identity};
use kvtile_tiers::{
    MismatchError, RequestError, TierError,
    block_store::{BlockStore, BlockStoreSettings, RowStoreOptions, StoreGroup},
    disk::DiskSettings,
    tier::TierWrites,
};

use super::common::{DIRECT, group, keys, layout, manager, open, settings};

fn refused<T>(result: Result<T, TierError>) -> TierError {
    match result {
        Ok(_) => panic!("it was accepted"),
        Err(error) => error,
    }
}

#[test]
fn jobs_that_do_not_fit_their_rows() {
    let folder = tempfile::tempdir().unwrap();
    let (store, rows) = open(&folder.path().join("a"), DIRECT);
    let one = keys([1]);
    let error = refused(store.load(&one, &rows.rows, &[64]));
    assert!(error.to_string().contains("64"), "{error}");
    let error = refused(store.load(&keys([1, 2]), &rows.rows, &[3, 3]));
    assert!(matches!(
        error,
        TierError::Request(RequestError::EngineBlockTwice { block: 3 })
    ));
    let error = refused(store.store(&keys([1, 2]), &rows.rows, &[3]));
    let unequal = RequestError::UnequalLists {
        keys: 2,
        list: "rows",
        found: 1,
    };
    assert_eq!(error.to_string(), TierError::Request(unequal).to_string());
    let options = RowStoreOptions::new().positions(vec![1, 2]);
    let error = refused(store.store_with(&one, &rows.rows, &[3], &options));
    assert!(error.to_string().contains("positions"), "{error}");
    let (other, _rows) = open(&folder.path().join("b"), DIRECT);
    let error = refused(other.load(&one, &rows.rows, &[0]));
    assert!(matches!(
        error,
        TierError::Request(RequestError::OtherStore)
    ));
    let kept = rows.rows.clone();
    rows.rows.clone().release().unwrap();
    let error = refused(store.load(&one, &kept, &[0]));
    assert!(matches!(
        error,
        TierError::Request(RequestError::RowsReleased)
    ));
    assert_eq!(store.pending(), 0);
    let none: [BlockKey; 0] = [];
    assert!(store.contains(GroupId(0), &none).unwrap().is_empty());
    let error = refused(store.contains(GroupId(1), &none));
    assert!(error.to_string().contains("kv"), "{error}");
    let error = refused(store.register("swa", layout(DIRECT)));
    assert!(error.to_string().contains("swa"), "{error}");
}

#[test]
fn rows_of_another_shape_or_identity() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _rows) = open(folder.path(), DIRECT);
    let narrow = Shape::key_value(4, 3, 4, 1, 32, "f32").unwrap();
    let narrow = kvtile_transfer::PhysicalLayout::builder()
        .with_shape(narrow)
        .layout(DIRECT.parse::<kvtile_layout::Word>().unwrap())
        .allocate_system()
        .build()
        .unwrap();
    assert!(matches!(
        refused(store.register("kv", narrow)),
        TierError::Mismatch(MismatchError::IdentityDiffers { .. })
    ));
}

#[test]
fn settings_that_contradict_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let good = || settings(folder.path());
    let no_tier = BlockStoreSettings::new(vec![group()]);
    let twice = {
        let mut settings = good();
        settings.groups.push(group());
        settings
    };
    let uses = DiskSettings::new(folder.path(), 4 << 20).writes(TierWrites::AfterUses(2));
    let shape = Shape::key_value(1, 1, 1, 1, 1, "f32").unwrap();
    let other = StoreGroup::new("kv", group().identity, shape);
    let cases = [
        (no_tier, "give it a disk"),
        (twice, "a name of its own"),
        (good().staging_bytes(4096), "staging memory"),
        (good().workers(0), "workers is 0"),
        (good().queue_capacity(0), "queue_capacity is 0"),
        (good().event_capacity(usize::MAX), "event_capacity"),
        (BlockStoreSettings::new(vec![]), "cannot keep 0 groups"),
        (good().disk(uses), "right after its store"),
        (
            BlockStoreSettings::new(vec![other]).disk(DiskSettings::new(folder.path(), 4 << 20)),
            "differs",
        ),
    ];
    for (settings, text) in cases {
        let error = refused(BlockStore::open(settings));
        assert!(error.to_string().contains(text), "{error}");
    }
    // None of them left a folder behind.
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_folder_of_another_identity_names_the_field() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path(), DIRECT));
    let mut other = group();
    other.identity = Identity::new("a-model", "another revision", &other.shape).unwrap();
    let settings =
        BlockStoreSettings::new(vec![other]).disk(DiskSettings::new(folder.path(), 4 << 20));
    let error = refused(BlockStore::open(settings));
    let TierError::Mismatch(MismatchError::FolderDiffers { difference, .. }) = error else {
        panic!("{error}");
    };
    assert!(
        difference.field.contains("revision"),
        "{}",
        difference.field
    );
}

#[test]
fn a_full_queue_ends_jobs_as_busy() {
    let folder = tempfile::tempdir().unwrap();
    let gate = Arc::new(kvtile_testkit::gate::Gate::default());
    let hook = Arc::clone(&gate);
    let medium = super::hooked::HookedFolder::new(folder.path(), move |operation| {
        if operation == super::hooked::HookedOperation::Read {
            hook.pass();
        }
    });
    let manager = manager();
    let store = BlockStore::builder(settings(folder.path()).queue_capacity(2).workers(1))
        .manager(Arc::clone(&manager))
        .medium(Arc::new(medium))
        .open()
        .unwrap();
    let rows = super::common::TestRows::new(&store, &manager, DIRECT);
    rows.store(&store, &keys(0..1), 0);
    store.flush(None);
    let shut = gate.shut(1);
    let first = rows.start_load(&store, &keys(0..1), 0);
    shut.wait_until_stopped(1);
    let waiting = [
        rows.start_load(&store, &keys(0..1), 1),
        rows.start_load(&store, &keys(0..1), 2),
    ];
    let busy = rows.start_load(&store, &keys(0..1), 3);
    let ended = busy.wait_timeout(Duration::ZERO).unwrap();
    assert_eq!(super::common::names(&ended), ["failed"]);
    assert_eq!(store.pending(), 3);
    shut.open();
    assert_eq!(first.wait().ok(), 1);
    for load in waiting {
        assert_eq!(load.wait().ok(), 1);
    }
}
