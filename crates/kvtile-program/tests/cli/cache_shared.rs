//! `kvtile cache` on the store of a shared tier, as a user runs it.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use kvtile::{
    Cache, CacheSettings, Identity, PhysicalLayout, Shape, TierId, TokenHasher, Unit,
    shared::{
        folder::{FolderStore, FolderStoreSettings},
        tier::{SharedTier, SharedTierSettings},
    },
    tiers::tier::{TierSettings, TierWrites},
};

use crate::program::kvtile;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A store in a folder with two bundles of four blocks.
fn shared_store(folder: &Path) -> PathBuf {
    let path = folder.join("store");
    let shape = Shape::key_value(8, 2, 16, 2, 64, Unit::named("bf16").unwrap()).unwrap();
    let identity = Identity::new("toy", "1", &shape).unwrap();
    let tokens: Vec<u32> = (0..8 * 16).collect();
    let keys = TokenHasher::new(&identity).unwrap().keys(&tokens);
    let engine = PhysicalLayout::builder().with_shape(shape).layout("BLKNHC");
    let store = FolderStore::open(&path, FolderStoreSettings::new()).unwrap();
    let tier = SharedTierSettings::new().bundle_blocks(4);
    let cache = Cache::builder(CacheSettings::new(identity).host_bytes(1 << 20))
        .tier(
            TierSettings::default().writes(TierWrites::AtOnce),
            SharedTier::opener(TierId::SHARED, Arc::new(store), tier),
        )
        .open(engine.allocate_system().build().unwrap())
        .unwrap();
    let blocks: Vec<usize> = (0..8).collect();
    cache.store(&keys, &blocks).unwrap().wait();
    assert!(cache.flush().durable);
    path
}

#[test]
fn a_shared_store_is_shown_verified_and_cleared_by_path_and_by_url() {
    let folder = tempfile::tempdir().unwrap();
    let path = shared_store(folder.path());
    let url = format!("file://{}", path.display());
    for store in [text(&path), &url] {
        let shown = kvtile(&["cache", "stat", store]).ok();
        assert!(
            shown.contains("2 bundles") && shown.contains("all"),
            "{shown}"
        );
        let model =
            "toy, revision 1, 16 tokens a block, k bf16, v bf16, layers 0 to 2, heads 0 to 2";
        assert!(shown.contains(model), "{shown}");
        let stat = kvtile(&["cache", "stat", store, "--json"]).json();
        assert_eq!(
            (&stat["bundles"], &stat["forms"][0]["bundle_blocks"]),
            (&2.into(), &4.into())
        );
        let identity = stat["forms"][0]["identity"].as_str().unwrap();
        let manifest = &stat["manifests"][identity];
        assert_eq!(manifest["identity"]["model"], "toy");
        assert_eq!(manifest["kvtile"], env!("CARGO_PKG_VERSION"));
        let whole = kvtile(&["cache", "verify", store]).ok();
        assert!(whole.contains("2 bundles are whole"), "{whole}");
    }
    fs::write(path.join("kvt1/note"), "not a bundle").unwrap();
    let mut files = Vec::new();
    let mut folders = vec![path.join("kvt1")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false if path.extension().is_some_and(|end| end == "4") => files.push(path),
                false => {}
            }
        }
    }
    let mut bytes = fs::read(&files[0]).unwrap();
    bytes[5000] ^= 1;
    fs::write(&files[0], bytes).unwrap();
    let damaged = kvtile(&["cache", "verify", &url, "--json"]);
    assert_eq!(damaged.code, 1);
    let report: serde_json::Value = serde_json::from_str(&damaged.stdout).unwrap();
    assert_eq!(
        (&report["whole"], &report["kinds"]["damaged"]),
        (&1.into(), &1.into())
    );
    let error = kvtile(&["cache", "verify", text(&path)]).fails(1);
    assert!(error.contains("1 of 2 bundles cannot be used"), "{error}");
    let stat = kvtile(&["cache", "stat", &url, "--json"]).json();
    let identity = stat["forms"][0]["identity"].as_str().unwrap();
    let manifest = path.join("kvt1").join(identity).join("manifest.json");
    fs::write(&manifest, "{\"format\": \"\\u001b[2J\", \"version\": 7}").unwrap();
    let shown = kvtile(&["cache", "stat", text(&path)]).ok();
    assert!(
        shown.contains("version 7") && !shown.contains('\u{1b}'),
        "{shown:?}"
    );
    let removed = kvtile(&["cache", "verify", text(&path), "--remove"]).ok();
    assert!(removed.contains("version 7"), "{removed}");
    assert!(removed.contains("(removed)"), "{removed}");
    assert!(kvtile(&["cache", "clear", &url]).fails(2).contains("--yes"));
    let cleared = kvtile(&["cache", "clear", &url, "--yes"]).ok();
    assert!(
        cleared.contains("1 bundles removed") && cleared.contains("1 other values stay"),
        "{cleared}"
    );
    assert!(path.join("kvt1/note").is_file());
    let empty = kvtile(&["cache", "stat", text(&path)]).ok();
    assert!(empty.contains("0 bundles"), "{empty}");
}

#[test]
fn a_store_that_is_not_there_is_named_and_not_made() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nothing");
    let url = format!("file://{}", path.display());
    for command in ["stat", "verify", "clear"] {
        let error = kvtile(&["cache", command, &url]).fails(1);
        assert!(error.contains("does not exist"), "{error}");
    }
    assert!(!path.exists());
    let error = kvtile(&["cache", "stat", "redis://127.0.0.1:1/0", "--within", "2"]).fails(1);
    assert!(error.contains("127.0.0.1"), "{error}");
    let disk = kvtile(&["cache", "verify", text(folder.path()), "--remove"]).fails(2);
    assert!(disk.contains("--remove"), "{disk}");
}
