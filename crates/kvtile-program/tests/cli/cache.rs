//! `kvtile cache` as a user runs it.
use std::path::{Path, PathBuf};

use crate::program::{Ran, kvtile};
use kvtile::{
    blocks::BlockKey,
    identity::{Identity, LayoutIdentity},
    layout::{PhysicalLayout, Shape, StridedLayout, Unit, Word},
    saved::SavedCache,
    tiers::{
        cache::STORAGE_WORD,
        disk::{
            BlockPieces, SlotFolder, SlotStore, SlotStoreSettings, SlotWrite, StoreIdentity,
            TierGroup,
        },
    },
    transfer::{LeaseMode, TransferManager},
};

const BLOCKS: u32 = 5;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn identity() -> StoreIdentity {
    let unit = Unit::new("bf16", 2, 1).unwrap();
    let shape = Shape::key_value(1, 2, 16, 2, 64, &unit).unwrap();
    let layout = StridedLayout::resolve(&STORAGE_WORD.parse().unwrap(), &shape, 1).unwrap();
    StoreIdentity {
        logical: Identity::new("toy", "0123abc", &shape).unwrap(),
        block_layout: LayoutIdentity::of_block(&layout),
        pieces: BlockPieces::whole(16_384),
    }
}

fn open(path: &Path) -> SlotStore {
    let settings = SlotStoreSettings::new(1 << 20);
    SlotStore::create_or_open(path, &settings, &identity())
        .unwrap()
        .0
}

/// A folder with a chain of blocks, each full of its number plus one.
fn tier(folder: &Path) -> PathBuf {
    let path = folder.join("tier");
    let store = open(&path);
    for slot in 0..BLOCKS {
        let number = u8::try_from(slot).unwrap() + 1;
        let bytes = vec![number; 16_384];
        let write = SlotWrite {
            slot,
            key: BlockKey::from_bytes([number; 16]),
            parent: (slot > 0).then(|| BlockKey::from_bytes([number - 1; 16])),
            position: slot,
            tenant: 3,
            bytes: &bytes,
        };
        assert!(store.write(&[write]).failed.is_empty());
    }
    assert!(store.sync().failure.is_none());
    path
}

/// Changes the first byte of the block that is full of `number`.
fn damage(path: &Path, number: u8) {
    let mut bytes = std::fs::read(path.join("slots")).unwrap();
    let at = bytes.iter().position(|byte| *byte == number).unwrap();
    *bytes.get_mut(at).unwrap() ^= 0x40;
    std::fs::write(path.join("slots"), bytes).unwrap();
}

#[test]
fn stat_tells_what_a_folder_holds_even_while_it_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let path = tier(folder.path());
    let report = kvtile(&["cache", "stat", text(&path)]).ok();
    for part in ["toy", "0123abc", "5 of ", "used", "by no process", "1 MiB"] {
        assert!(report.contains(part), "{part:?} is missing in\n{report}");
    }
    let store = open(&path);
    let json = kvtile(&["cache", "stat", text(&path), "--json"]).json();
    assert_eq!(json["blocks"], 5);
    assert_eq!(json["longest_chain"], 5);
    assert_eq!(json["tenants"], 1);
    assert_eq!(json["in_use"], true);
    assert_eq!(json["used_by_process"], std::process::id());
    assert_eq!(json["identity"]["model"], "toy");
    assert!(json["files_bytes"].as_u64().unwrap() <= 1 << 20);
    let args = ["cache", "clear", text(&path), "--yes"];
    let error = kvtile(&args).fails(1);
    let process = format!("process {}", std::process::id());
    assert!(error.contains(&process), "{error}");
    let verify = kvtile(&["cache", "verify", text(&path)]).ok();
    for part in ["5 of 5 blocks are whole", &process] {
        assert!(verify.contains(part), "{part:?} is missing in\n{verify}");
    }
    let file = folder.path().join("beside.safetensors");
    let args = ["cache", "export", text(&path), text(&file), "--json"];
    let json = kvtile(&args).json();
    assert_eq!(
        (&json["in_use"], &json["replaced"]),
        (&true.into(), &0.into())
    );
    assert_eq!(json["exported"]["blocks"], 5);
    drop(store);
}

/// Pitfall 36: a damaged block is named, and the exit code is 1.
#[test]
fn verify_names_bad_blocks() {
    let folder = tempfile::tempdir().unwrap();
    let path = tier(folder.path());
    let report = kvtile(&["cache", "verify", text(&path)]).ok();
    assert!(report.contains("5 of 5 blocks are whole"), "{report}");
    damage(&path, 3);
    let ran = kvtile(&["cache", "verify", text(&path), "--json"]);
    let json: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(json["verdict"], "damaged");
    assert_eq!(json["bad"][0]["key"], "03".repeat(16));
    assert!(ran.fails(1).contains("1 of 5 blocks are bad"));
}

#[test]
fn export_writes_the_whole_blocks_as_safetensors() {
    let folder = tempfile::tempdir().unwrap();
    let path = tier(folder.path());
    damage(&path, 2);
    let file = folder.path().join("blocks.safetensors");
    let args = ["cache", "export", text(&path), text(&file)];
    let ran = kvtile(&args);
    assert!(ran.stdout.contains("4 blocks are in"), "{}", ran.stdout);
    ran.fails(1);
    let bytes = std::fs::read(&file).unwrap();
    let (length, rest) = bytes.split_at(8);
    let length = u64::from_le_bytes(length.try_into().unwrap());
    let (header, data) = rest.split_at(usize::try_from(length).unwrap());
    let header: serde_json::Value = serde_json::from_slice(header).unwrap();
    assert_eq!(data.len(), 4 * 16_384);
    for number in [1, 3, 4, 5] {
        let tensor = &header[format!("{number:02x}").repeat(16)];
        assert_eq!(tensor["dtype"], "U8");
        let offset = |i: usize| usize::try_from(tensor["data_offsets"][i].as_u64().unwrap());
        let block = &data[offset(0).unwrap()..offset(1).unwrap()];
        assert!(block.len() == 16_384 && block.iter().all(|byte| *byte == number));
    }
    assert!(header["02".repeat(16)].is_null());
    let identity = header["__metadata__"]["identity"].as_str().unwrap();
    assert!(identity.contains("toy"), "{identity}");
    // An existing file is left alone.
    let error = kvtile(&args).fails(1);
    assert!(error.contains("cannot create"), "{error}");
    assert_eq!(std::fs::read(&file).unwrap(), bytes);
}

#[test]
fn clear_asks_and_gives_the_room_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = tier(folder.path());
    let error = kvtile(&["cache", "clear", text(&path)]).fails(2);
    assert!(error.contains("--yes"), "{error}");
    kvtile(&["cache", "verify", text(&path)]).ok();
    kvtile(&["cache", "clear", text(&path), "--yes"]).ok();
    assert!(!path.join("slots").exists());
    let error = kvtile(&["cache", "stat", text(&path)]).fails(1);
    assert!(error.contains("is empty: it was cleared, or"), "{error}");
    // A foreign folder is not cleared.
    std::fs::write(folder.path().join("notes"), b"mine").unwrap();
    kvtile(&["cache", "clear", text(folder.path()), "--yes"]).fails(1);
    assert!(folder.path().join("notes").exists());
    open(&path);
}

/// Exports as a saved cache.
fn export_saved(path: &Path, file: &Path, more: &[&str]) -> Ran {
    let args = [
        "cache",
        "export",
        text(path),
        text(file),
        "--format",
        "saved",
    ];
    kvtile(&[&args[..], more].concat())
}

/// What each block of a saved cache is full of, as a reader loads it in another order.
fn loaded(file: &Path) -> Vec<u8> {
    let cache = SavedCache::open(file, &identity().logical).unwrap();
    let layout = PhysicalLayout::builder()
        .with_shape(cache.header().shape.clone())
        .layout("BLKNHC".parse::<Word>().unwrap())
        .allocate_system()
        .build()
        .unwrap();
    let manager = TransferManager::new();
    let handle = manager.register(layout).unwrap();
    let ids: Vec<usize> = (0..cache.num_blocks()).collect();
    let pairs: Vec<(usize, usize)> = ids.iter().map(|id| (*id, *id)).collect();
    let checks = cache.load(&manager, handle, &pairs).unwrap();
    assert!(checks.iter().all(|check| check.result.is_ok()));
    let lease = manager.lease(handle, &ids, LeaseMode::Read).unwrap();
    let full_of = |id: &usize| {
        let bytes = lease.block(*id as u64).unwrap();
        let first = *bytes.first().unwrap();
        assert!(bytes.iter().all(|byte| *byte == first), "block {id}");
        first
    };
    ids.iter().map(full_of).collect()
}

/// Files of the folder, without the folder of the tier.
fn files(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name != "tier").collect()
}

#[test]
fn export_writes_a_saved_cache_that_is_inspected_and_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let path = tier(folder.path());
    let file = folder.path().join("cache.kvtile");
    let report = export_saved(&path, &file, &[]).ok();
    assert!(report.contains("5 blocks are in"), "{report}");
    assert_eq!(files(folder.path()), ["cache.kvtile"]);
    assert_eq!(loaded(&file), [1, 2, 3, 4, 5]);
    let json = kvtile(&["inspect", text(&file), "--json"]).json();
    assert_eq!(json["verdict"], "whole");
    let blocks: serde_json::Value =
        serde_json::from_str(json["notes"]["blocks"].as_str().unwrap()).unwrap();
    assert_eq!(blocks[2]["key"], "03".repeat(16));
    assert_eq!(blocks[2]["parent"], "02".repeat(16));
    assert_eq!(blocks[2]["position"], 2);
    assert_eq!(blocks[0]["parent"], serde_json::Value::Null);
    // An existing file is left alone.
    let before = std::fs::read(&file).unwrap();
    let error = export_saved(&path, &file, &[]).fails(1);
    assert!(error.contains("cannot create"), "{error}");
    assert_eq!(std::fs::read(&file).unwrap(), before);
}

#[test]
fn a_saved_cache_has_the_whole_blocks_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = tier(folder.path());
    damage(&path, 2);
    let file = folder.path().join("cache.kvtile");
    let ran = export_saved(&path, &file, &["--json"]);
    let json: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(json["exported"]["blocks"], 4);
    ran.fails(1);
    assert_eq!(loaded(&file), [1, 3, 4, 5]);
}

#[test]
fn what_cannot_be_saved_is_refused_and_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = tier(folder.path());
    let file = folder.path().join("cache.kvtile");
    for (word, says) in [
        ("BHLKNC", "lie otherwise"),
        ("L|BHKNC", "lie otherwise"),
        ("BHLKN", "C"),
    ] {
        let error = export_saved(&path, &file, &["--store-layout", word]).fails(2);
        assert!(error.contains(says), "{word}: {error}");
    }
    let args = ["cache", "export", text(&path), text(&file)];
    let error = kvtile(&[&args[..], &["--store-layout", "BHLKNC"]].concat()).fails(2);
    assert!(error.contains("--format saved"), "{error}");
    // A folder without a whole block: a saved cache has one at least.
    for number in 1..=5 {
        damage(&path, number);
    }
    let error = export_saved(&path, &file, &[]).fails(1);
    assert!(error.contains("5 of 5 blocks are bad"), "{error}");
    let store = open(&folder.path().join("empty"));
    drop(store);
    let error = export_saved(&folder.path().join("empty"), &file, &[]).fails(1);
    assert!(error.contains("no block to save"), "{error}");
    std::fs::remove_dir_all(folder.path().join("empty")).unwrap();
    assert!(
        files(folder.path()).is_empty(),
        "{:?}",
        files(folder.path())
    );
}

/// A folder of two groups: the blocks of the second are full of their number plus 101.
fn groups(folder: &Path) -> PathBuf {
    let path = folder.join("groups");
    let small = StoreIdentity {
        pieces: BlockPieces::whole(600),
        ..identity()
    };
    let groups = [
        TierGroup::new("full", identity()),
        TierGroup::new("swa", small),
    ];
    let settings = SlotStoreSettings::new(1 << 20);
    let (store, _) = SlotFolder::create_or_open(&path, &settings, &groups).unwrap();
    for (store, first) in store.stores().iter().zip([1, 101]) {
        for slot in 0..3 {
            let number = u8::try_from(slot).unwrap() + 1;
            let bytes = vec![first + number - 1; usize::try_from(store.block_bytes()).unwrap()];
            let write = SlotWrite {
                slot,
                key: BlockKey::from_bytes([number; 16]),
                parent: None,
                position: 0,
                tenant: 3,
                bytes: &bytes,
            };
            assert!(store.write(&[write]).failed.is_empty());
        }
    }
    assert!(store.sync().iter().all(|synced| synced.failure.is_none()));
    path
}

#[test]
fn a_folder_of_several_groups_is_shown_and_verified_by_group() {
    let folder = tempfile::tempdir().unwrap();
    let path = groups(folder.path());
    let report = kvtile(&["cache", "stat", text(&path)]).ok();
    for part in ["full", "swa", "3 of ", "600 bytes", "16 KiB", "1 MiB"] {
        assert!(report.contains(part), "{part:?} is missing in\n{report}");
    }
    let json = kvtile(&["cache", "stat", text(&path), "--json"]).json();
    let of = |group: usize, field: &str| json["groups"][group][field].clone();
    assert_eq!(
        (of(0, "name"), of(1, "name")),
        ("full".into(), "swa".into())
    );
    assert_eq!((of(0, "blocks"), of(1, "blocks")), (3.into(), 3.into()));
    assert_eq!(of(0, "blocks_max"), of(1, "blocks_max"));
    assert_eq!(of(1, "block_bytes"), 600);
    assert!(json.get("blocks").is_none());
    let report = kvtile(&["cache", "verify", text(&path)]).ok();
    assert!(report.contains("6 of 6 blocks are whole"), "{report}");
    let slots = path.join("slots-1");
    let mut bytes = std::fs::read(&slots).unwrap();
    bytes[4096] ^= 1;
    std::fs::write(&slots, bytes).unwrap();
    let ran = kvtile(&["cache", "verify", text(&path), "--json"]);
    let json: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    let bad = &json["bad"][0];
    assert_eq!(
        (&bad["group"], &bad["key"]),
        (&"swa".into(), &"02".repeat(16).into())
    );
    let file = folder.path().join("out");
    let target = folder.path().join("to");
    for args in [
        ["cache", "export", text(&path), text(&file)],
        ["cache", "convert", text(&path), text(&target)],
    ] {
        let error = kvtile(&args).fails(1);
        assert!(error.contains("2 groups (full, swa)"), "{error}");
    }
    assert!(!file.exists() && !target.exists());
    kvtile(&["cache", "clear", text(&path), "--yes"]).ok();
    assert!(!slots.exists());
}

/// A folder with values as shared tiers name them, of 1000 bytes each, the first ones the oldest.
fn shared_folder(folder: &Path, values: u64) -> PathBuf {
    let path = folder.join("shared");
    for number in 0..values {
        let (identity, key) = ("0".repeat(32), format!("{number:032x}"));
        let place = path.join(format!("kvt1/{identity}/{identity}/all/{}", &key[..2]));
        std::fs::create_dir_all(&place).unwrap();
        let file = place.join(format!("{key}.1"));
        std::fs::write(&file, vec![7; 1000]).unwrap();
        let age = std::time::Duration::from_secs(3600 * (values - number));
        let file = std::fs::File::options().write(true).open(&file).unwrap();
        file.set_modified(std::time::SystemTime::now() - age)
            .unwrap();
    }
    path
}

#[test]
fn a_sweep_counts_and_removes_the_oldest_values() {
    let folder = tempfile::tempdir().unwrap();
    let path = shared_folder(folder.path(), 10);
    let counted = kvtile(&["cache", "sweep", text(&path)]).ok();
    assert!(counted.contains("10 values of kvtile"), "{counted}");
    assert!(!counted.contains("removed"), "{counted}");
    let arguments = [
        "cache",
        "sweep",
        text(&path),
        "--capacity",
        "8kB",
        "--to",
        "50",
        "--json",
    ];
    let swept = kvtile(&arguments).json();
    assert_eq!(swept["values"], 10);
    assert_eq!(swept["removed"], 6);
    assert_eq!(swept["removed_bytes"], 6000);
    let old = kvtile(&["cache", "sweep", text(&path), "--older-than", "9000"]).ok();
    assert!(
        old.contains("4 values") && old.contains("removed 2"),
        "{old}"
    );
}

#[test]
fn a_store_that_does_not_exist_is_named() {
    for (store, named) in [
        ("ftp://host/kv", "ftp"),
        ("redis://127.0.0.1:1/0", "127.0.0.1"),
    ] {
        let error = kvtile(&["cache", "sweep", store, "--within", "2"]).fails(1);
        assert!(error.contains(named), "{error}");
    }
}
