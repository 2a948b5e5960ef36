//! Conversions of the fixture of version 1.

use kvtile_layout::Word;
use kvtile_layout::{StridedLayout, identity::LayoutIdentity};
use kvtile_tiers::{
    cache::{Cache, CacheSettings},
    disk::{Inspection, SlotMiss, SlotStore, SlotStoreSettings, StoreIdentity},
    tier::BlockPieces,
};
use kvtile_transfer::{LeaseMode, PhysicalLayout};

use super::*;

#[test]
fn every_intact_block_is_converted_to_every_layout() {
    for word in [
        None,
        Some("BHLKNC"),
        Some("BLHKNC"),
        Some("BLKNHC"),
        Some("BCNHKL"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let from = version_1(folder.path());
        let before = files(&from);
        let to = folder.path().join("a/new/folder");
        let mut progress = Vec::new();
        let converted = convert(&from, &to, &settings(word), &mut |at| {
            progress.push((at.blocks, at.of));
        });
        let converted = converted.unwrap();
        assert_eq!(progress, [(7, 7)]);
        assert_eq!(converted.from_version, 1);
        assert_eq!(converted.stored_layout.to_string(), "BHLKNC");
        assert_eq!(converted.layout.to_string(), word_or_default(word));
        assert_eq!((converted.blocks, converted.bytes), (6, 6 * 3072));
        assert_eq!((converted.duplicates, &*converted.torn), (1, &[7][..]));
        assert!(converted.unreadable.is_empty() && converted.not_locked.is_none());
        assert!(!converted.is_whole());
        let [left_out] = &*converted.left_out else {
            panic!("{:?}", converted.left_out);
        };
        assert_eq!((left_out.block.key, left_out.block.slot), (key(5), 5));
        assert!(matches!(left_out.reason, SlotMiss::Checksum));
        let inspection = Inspection::open(&to).unwrap();
        let group = inspection.only().unwrap();
        assert!(group.torn().is_empty() && group.unreadable().is_empty());
        assert!(group.manifest().slots() >= 11);
        assert_eq!(group.manifest().identity(), &logical());
        check_converted(inspection, word_or_default(word));
        assert_eq!(files(&from), before, "the folder that was read");
    }
}

#[test]
fn a_cache_finds_and_loads_the_chain() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("to");
    let converted = run(&version_1(folder.path()), &to, &settings(None)).unwrap();
    let engine: Word = "BLNHKC".parse().unwrap();
    let engine = PhysicalLayout::builder()
        .with_shape(shape(8))
        .layout(engine)
        .allocate_system()
        .build()
        .unwrap();
    let settings = CacheSettings::new(logical())
        .host_bytes(1 << 20)
        .disk(&to, converted.capacity_bytes);
    let cache = Cache::open(settings, engine).unwrap();
    let keys: Vec<_> = (0..5).map(key).collect();
    let found = cache.lookup(&keys);
    assert_eq!(found.blocks(), 5);
    let loaded = cache.load(found, &[7, 1, 3, 2, 0]);
    assert_eq!(loaded.unwrap().wait().blocks, 5);
    for (number, block) in (0..).zip([7, 1, 3, 2, 0]) {
        let lease = cache
            .manager()
            .lease(cache.engine(), &[block], LeaseMode::Read);
        let lease = lease.unwrap();
        let bytes = lease.block(block as u64).unwrap();
        assert!(bytes == content(number, "BLNHKC"), "block {number}");
    }
}

/// Blocks at equal positions keep the order of their ages.
#[test]
fn older_blocks_of_a_position_stay_older() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("to");
    let converted = run(&version_1(folder.path()), &to, &settings(Some("BHLKNC"))).unwrap();
    let layout = StridedLayout::resolve(&"BHLKNC".parse().unwrap(), &shape(1), 1).unwrap();
    let identity = StoreIdentity {
        logical: logical(),
        block_layout: LayoutIdentity::of_block(&layout),
        pieces: BlockPieces::whole(3072),
    };
    let settings = SlotStoreSettings::new(converted.capacity_bytes);
    let (store, recovered) = SlotStore::create_or_open(&to, &settings, &identity).unwrap();
    let numbers: Vec<u64> = recovered.entries.iter().map(number).collect();
    assert_eq!(numbers, WHOLE);
    assert!(recovered.entries.is_sorted_by_key(|entry| entry.sequence));
    assert_eq!(recovered.dropped.total(), 0);
    store.check_integrity();
}

#[test]
fn stat_refuses_the_old_folder_by_its_version() {
    let folder = tempfile::tempdir().unwrap();
    let error = Inspection::open(&version_1(folder.path())).unwrap_err();
    assert!(matches!(
        error,
        TierError::Folder(FolderError::FolderVersion {
            found: 1,
            ours: 2,
            ..
        })
    ));
    assert!(
        error.to_string().contains("kvtile cache convert"),
        "{error}"
    );
}
