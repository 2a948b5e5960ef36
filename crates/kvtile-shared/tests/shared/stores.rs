//! The stores of this crate keep the rules, and tiers over them their guarantees.

use std::sync::Arc;

use kvtile_shared::{
    folder::{FolderStore, FolderStoreSettings},
    memory::MemoryStore,
    store::SharedStore,
};
use kvtile_testkit::shared::{OpenStoreAt, check_above_store, check_store};

pub(crate) fn memory() -> OpenStoreAt {
    let store = MemoryStore::new();
    Box::new(move || Arc::clone(&store) as Arc<dyn SharedStore>)
}

pub(crate) fn folder(syncs: bool) -> OpenStoreAt {
    let folder = tempfile::tempdir().unwrap();
    Box::new(move || {
        let settings = FolderStoreSettings::new().syncs(syncs);
        Arc::new(FolderStore::open(folder.path().join("store"), settings).unwrap())
    })
}

#[test]
fn memory_keeps_the_rules() {
    check_store(&memory);
}

#[test]
fn a_folder_keeps_the_rules() {
    check_store(&|| folder(true));
    check_store(&|| folder(false));
}

#[test]
fn tiers_over_memory_keep_their_guarantees() {
    check_above_store(&memory);
}

#[test]
fn tiers_over_a_folder_keep_their_guarantees() {
    check_above_store(&|| folder(true));
}
