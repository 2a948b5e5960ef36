//! Saved caches: what was saved comes back in any order, in any process; what is damaged or of
//! another model is refused; and a name never stands for half a cache.
#![expect(clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]

mod child;
mod common;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use common::in_memory;
use kvtile_layout::{
    LayoutError, Shape, Unit, Word,
    identity::{Fingerprint, LogicalIdentity, Rope},
};
use kvtile_transfer::{
    FillPattern, LayoutHandle, LeaseMode, PhysicalLayout, TransferError, TransferManager,
    saved::{BlockCheck, SaveOptions, SavedCache, save},
};

const SEED: u64 = 77;

fn shape(blocks: u64) -> Shape {
    Shape::key_value(blocks, 3, 8, 4, 16, &Unit::raw(2).unwrap()).unwrap()
}

fn identity(rope_base: f64) -> LogicalIdentity {
    let rope = Rope::new("default", rope_base).unwrap();
    LogicalIdentity::new("tiny", "rev-1", &shape(1), Some(rope)).unwrap()
}

/// A manager with a layout of `blocks` filled blocks.
fn filled(blocks: u64, word: &str) -> (TransferManager, LayoutHandle) {
    let manager = TransferManager::new();
    let handle = manager.register(in_memory(&shape(blocks), word)).unwrap();
    let ids: Vec<usize> = (0..usize::try_from(blocks).unwrap()).collect();
    let pattern = FillPattern::Distinct { seed: SEED };
    manager.fill(handle, &ids, pattern).unwrap();
    (manager, handle)
}

fn options(word: &str, tokens: u64) -> SaveOptions {
    let mut options = SaveOptions::new(identity(10_000.0), tokens).unwrap();
    options.word = Word::parse(word).unwrap();
    options
}

/// Six blocks, saved in the order 4, 0, 5.
fn saved(path: &Path) -> Vec<Fingerprint> {
    let (manager, handle) = filled(6, "L|BKNHC");
    let options = options("BHLKNC", 20);
    save(&manager, handle, &[4, 0, 5], path, &options).unwrap();
    [4, 0, 5]
        .map(|b| manager.block_digest(handle, b).unwrap())
        .to_vec()
}

fn good(checks: &[BlockCheck]) -> Vec<bool> {
    checks.iter().map(|check| check.result.is_ok()).collect()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Loads all blocks of the cache at `path` into an empty layout of `word`, turned, and compares.
fn loads(path: &Path, word: &str, expected: &[Fingerprint]) {
    let cache = SavedCache::open(path, &identity(10_000.0)).unwrap();
    assert_eq!(cache.num_blocks(), expected.len());
    let manager = TransferManager::new();
    let handle = manager.register(in_memory(&shape(5), word)).unwrap();
    let pairs: Vec<(usize, usize)> = (0..expected.len()).map(|b| (b, 4 - b)).collect();
    let checks = cache.load(&manager, handle, &pairs).unwrap();
    assert!(
        checks.iter().all(|check| check.result.is_ok()),
        "{checks:?}"
    );
    for (block, target) in pairs {
        assert_eq!(
            manager.block_digest(handle, target).unwrap(),
            expected[block]
        );
    }
    manager.unregister(handle).unwrap();
}

#[test]
fn blocks_come_back_in_any_order_from_any_order() {
    let folder = common::folder();
    let (manager, handle) = filled(6, "L|BKNHC");
    let stored = [
        "BHLKNC",
        "L|KBNHC",
        "BLKNHC",
        "KL|HBCN",
        "LBN2B3HNKC",
        "B@8192LKNHC",
    ];
    for (index, word) in stored.into_iter().enumerate() {
        let path = folder.path().join(format!("cache-{index}"));
        let mut options = options(word, 24);
        options.verify = index % 2 == 0;
        options.notes.insert("tokens".to_owned(), "abc".to_owned());
        let report = save(&manager, handle, &[1, 3, 0], &path, &options).unwrap();
        assert_eq!(report.bytes, 3 * shape(1).block_bytes().unwrap());
        let expected = [1, 3, 0].map(|b| manager.block_digest(handle, b).unwrap());
        for word in ["L|BH(kCN,vNC)", "BLKNHC", "L|KBHNC"] {
            loads(&path, word, &expected);
        }
        let cache = SavedCache::inspect(&path).unwrap();
        assert_eq!(cache.header().notes["tokens"], "abc");
        assert_eq!(cache.header().word, options.word);
        assert_eq!(cache.file_bytes(), fs::metadata(&path).unwrap().len());
        let mut seen = Vec::new();
        let checks = cache.check_blocks(|done| seen.push(done)).unwrap();
        assert_eq!(good(&checks), [true; 3]);
        assert_eq!(seen, [1, 2, 3]);
    }
    assert!(
        names(folder.path())
            .iter()
            .all(|name| !name.contains("partial"))
    );
}

/// One block of a cache whose word splits the blocks into groups.
#[test]
fn a_cache_in_groups_of_blocks_gives_single_blocks() {
    let folder = common::folder();
    let path = folder.path().join("cache");
    let (manager, handle) = filled(6, "BLKNHC");
    save(
        &manager,
        handle,
        &[0, 1, 2, 3, 4, 5],
        &path,
        &options("BLKNHB3C", 48),
    )
    .unwrap();
    let cache = SavedCache::open(&path, &identity(10_000.0)).unwrap();
    let target = manager.register(in_memory(&shape(2), "L|KBNHC")).unwrap();
    assert_eq!(
        good(&cache.load(&manager, target, &[(4, 1)]).unwrap()),
        [true]
    );
    assert_eq!(
        manager.block_digest(target, 1).unwrap(),
        manager.block_digest(handle, 4).unwrap()
    );
}

/// Pitfall 25: what one process saved, another one finds and takes, into another order.
#[test]
fn another_process_loads_what_this_one_saved() {
    if let Some((role, path)) = child::role() {
        assert_eq!(role, "loader");
        let (manager, handle) = filled(6, "BLKNHC");
        let expected = [4, 0, 5].map(|b| manager.block_digest(handle, b).unwrap());
        return loads(Path::new(&path), "L|BH(kCN,vNC)", &expected);
    }
    let folder = common::folder();
    let path = folder.path().join("cache");
    saved(&path);
    let name = "another_process_loads_what_this_one_saved";
    child::passes(child::spawn(name, "loader", path.to_str().unwrap()));
}

/// Where header and checksums end, and where the data starts.
fn bounds(bytes: &[u8]) -> (usize, usize) {
    let header = u64::from_le_bytes(bytes[16..24].try_into().unwrap());
    let blocks = u64::from_le_bytes(bytes[24..32].try_into().unwrap());
    let end = usize::try_from(64 + header + 8 * blocks).unwrap();
    (end, end.next_multiple_of(4096))
}

/// Every bit that decides anything is under a checksum: any one byte that changes is noticed, and
/// what is not (padding) changes nothing.
#[test]
fn every_flipped_byte_before_the_data_is_refused_or_harmless() {
    let folder = common::folder();
    let path = folder.path().join("cache");
    let expected = saved(&path);
    let bytes = fs::read(&path).unwrap();
    let (end, data) = bounds(&bytes);
    assert!(end < data && data < bytes.len());
    for at in 0..data {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        fs::write(&path, &flipped).unwrap();
        let result = SavedCache::inspect(&path);
        if at < end {
            let error = result.map(|_| ()).unwrap_err();
            let named = matches!(
                error,
                TransferError::NotASavedCache { .. } | TransferError::Damaged { .. }
            );
            assert!(named, "byte {at}: {error}");
        } else {
            result.unwrap();
        }
    }
    fs::write(&path, &bytes).unwrap();
    loads(&path, "BLKNHC", &expected);
}

/// Pitfall 36: a block whose bytes changed fails, alone, and its destination is as it was.
#[test]
fn a_flipped_data_byte_costs_exactly_its_block() {
    let folder = common::folder();
    let path = folder.path().join("cache");
    let expected = saved(&path);
    let bytes = fs::read(&path).unwrap();
    let (_, data) = bounds(&bytes);
    let block_bytes = usize::try_from(shape(1).block_bytes().unwrap()).unwrap();
    let stride = block_bytes.next_multiple_of(4096);
    for (block, at) in [
        (0, 0),
        (0, block_bytes - 1),
        (1, 777),
        (2, 0),
        (2, block_bytes - 1),
    ] {
        let mut flipped = bytes.clone();
        flipped[data + block * stride + at] ^= 0x40;
        fs::write(&path, &flipped).unwrap();
        let cache = SavedCache::open(&path, &identity(10_000.0)).unwrap();
        let healthy: Vec<bool> = (0..3).map(|b| b != block).collect();
        assert_eq!(good(&cache.check_blocks(|_| ()).unwrap()), healthy);
        let manager = TransferManager::new();
        let handle = manager.register(in_memory(&shape(3), "L|KBNHC")).unwrap();
        manager
            .fill(handle, &[0, 1, 2], FillPattern::Constant(9))
            .unwrap();
        let untouched = manager.block_digest(handle, 0).unwrap();
        let checks = cache
            .load(&manager, handle, &[(2, 0), (1, 1), (0, 2)])
            .unwrap();
        for check in checks {
            let found = manager.block_digest(handle, 2 - check.block).unwrap();
            if check.block == block {
                let Err(TransferError::ChecksumMismatch { block: b, .. }) = check.result else {
                    panic!("{:?}", check.result);
                };
                assert_eq!((b, found), (block as u64, untouched));
            } else {
                check.result.unwrap();
                assert_eq!(found, expected[check.block]);
            }
        }
    }
    // Padding between blocks holds nothing.
    assert!(block_bytes < stride || bytes.len() == data + 3 * stride);
}

#[test]
fn truncated_and_extended_files_are_refused() {
    let folder = common::folder();
    let path = folder.path().join("cache");
    saved(&path);
    let bytes = fs::read(&path).unwrap();
    let (end, data) = bounds(&bytes);
    let last = bytes.len() - 1;
    let lengths = [
        0,
        1,
        7,
        8,
        12,
        40,
        63,
        64,
        65,
        500,
        end - 24,
        end - 1,
        end,
        data - 1,
        data,
        data + 1,
        data + 5000,
        last,
    ];
    for length in lengths {
        fs::write(&path, &bytes[..length]).unwrap();
        let error = SavedCache::inspect(&path).map(|_| ()).unwrap_err();
        assert!(!error.to_string().is_empty(), "{length}");
    }
    for more in [1, 4096] {
        let mut longer = bytes.clone();
        longer.extend(vec![0; more]);
        fs::write(&path, &longer).unwrap();
        let error = SavedCache::inspect(&path).map(|_| ()).unwrap_err();
        assert!(matches!(error, TransferError::Damaged { .. }), "{error}");
    }
    // Cut after it was opened: nothing is served.
    fs::write(&path, &bytes).unwrap();
    let cache = SavedCache::inspect(&path).unwrap();
    let manager = TransferManager::new();
    let handle = manager.register(in_memory(&shape(3), "BLKNHC")).unwrap();
    let before = manager.block_digest(handle, 0).unwrap();
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(data as u64)
        .unwrap();
    assert!(cache.load(&manager, handle, &[(0, 0)]).is_err());
    assert!(cache.check_blocks(|_| ()).is_err());
    assert_eq!(manager.block_digest(handle, 0).unwrap(), before);
    // A folder, nothing, and an empty file are no caches either.
    for path in [
        folder.path().to_owned(),
        folder.path().join("none"),
        PathBuf::from("/dev/null"),
    ] {
        assert!(SavedCache::inspect(&path).is_err(), "{path:?}");
    }
}

/// Pitfall 23: the first field that differs is named, with both values.
#[test]
fn another_model_is_refused_by_name() {
    let folder = common::folder();
    let path = folder.path().join("cache");
    saved(&path);
    let of = |model: &str, revision: &str, shape: &Shape, base: f64| {
        let rope = Rope::new("default", base).unwrap();
        LogicalIdentity::new(model, revision, shape, Some(rope)).unwrap()
    };
    let other = |blocks, layers, page, heads, content, bytes| {
        Shape::key_value(
            blocks,
            layers,
            page,
            heads,
            content,
            &Unit::raw(bytes).unwrap(),
        )
        .unwrap()
    };
    let cases = [
        (of("other", "rev-1", &shape(1), 10_000.0), "model"),
        (of("tiny", "rev-2", &shape(1), 10_000.0), "revision"),
        (of("tiny", "rev-1", &shape(1), 500_000.0), "rope.base"),
        (
            of("tiny", "rev-1", &other(1, 3, 16, 4, 8, 2), 10_000.0),
            "page_size",
        ),
        (
            of("tiny", "rev-1", &other(1, 3, 8, 4, 32, 1), 10_000.0),
            "planes.k.codec",
        ),
        (
            of("tiny", "rev-1", &other(1, 3, 8, 8, 8, 2), 10_000.0),
            "planes.k",
        ),
        (
            of("tiny", "rev-1", &other(1, 2, 8, 4, 16, 2), 10_000.0),
            "shard",
        ),
    ];
    for (identity, field) in cases {
        let error = SavedCache::open(&path, &identity).map(|_| ()).unwrap_err();
        let TransferError::IdentityDiffers(difference) = &error else {
            panic!("{error}");
        };
        assert!(difference.field.starts_with(field), "{field}: {error}");
    }
    // Into a layout that says what it holds, nothing else is loaded.
    let cache = SavedCache::inspect(&path).unwrap();
    let manager = TransferManager::new();
    let theirs = PhysicalLayout::builder()
        .with_shape(shape(3), 1)
        .with_logical_fingerprint(identity(500_000.0).fingerprint())
        .layout(Word::parse("BLKNHC").unwrap())
        .allocate_system()
        .build()
        .unwrap();
    let theirs = manager.register(theirs).unwrap();
    let error = cache.load(&manager, theirs, &[(0, 0)]).unwrap_err();
    assert!(matches!(error, TransferError::LogicalDiffers { .. }));
    // And nothing that is of one model is saved as another's.
    let path = folder.path().join("mislabelled");
    let error = save(&manager, theirs, &[0], &path, &options("BHLKNC", 1)).unwrap_err();
    assert!(
        matches!(error, TransferError::LogicalDiffers { .. }),
        "{error}"
    );
    assert_eq!(names(folder.path()), ["cache"]);
}

#[test]
fn what_cannot_be_saved_leaves_no_file() {
    let folder = common::folder();
    let path = folder.path().join("cache");
    let (manager, handle) = filled(4, "L|BKNHC");
    let good = || options("BHLKNC", 20);
    let refused = |blocks: &[usize], path: &Path, options: &SaveOptions| {
        let error = save(&manager, handle, blocks, path, options).unwrap_err();
        assert!(names(folder.path()).is_empty(), "{error}");
        error
    };
    refused(&[], &path, &good());
    refused(&[0, 9], &path, &good());
    let error = refused(&[0, 1], &path, &options("BHLKNC", 17));
    assert!(matches!(
        error,
        TransferError::TooManyTokens {
            tokens: 17,
            blocks: 2,
            ..
        }
    ));
    refused(&[0, 1, 2], &path, &options("BHLKN", 1));
    let mut aligned = good();
    aligned.alignment = 3;
    refused(&[0, 1, 2], &path, &aligned);
    let mut of_another = good();
    let other = Shape::key_value(1, 3, 8, 2, 32, &Unit::raw(2).unwrap()).unwrap();
    of_another.identity = LogicalIdentity::new("tiny", "rev-1", &other, None).unwrap();
    let error = refused(&[0, 1, 2], &path, &of_another);
    assert!(
        matches!(error, TransferError::IdentityDiffers(_)),
        "{error}"
    );
    let lease = manager.lease(handle, &[2], LeaseMode::Write).unwrap();
    let error = refused(&[0, 1, 2], &path, &good());
    assert!(
        matches!(error, TransferError::BlockLeased { block: 2, .. }),
        "{error}"
    );
    drop(lease);
    let missing = folder.path().join("missing").join("cache");
    refused(&[0, 1, 2], &missing, &good());
    refused(&[0, 1, 2], Path::new("/proc/kvtile-cache"), &good());
    refused(&[0, 1, 2], Path::new("/"), &good());
    refused(&[0, 1, 2], Path::new(""), &good());
    save(&manager, handle, &[0, 1, 2], &path, &good()).unwrap();
    assert_eq!(names(folder.path()), ["cache"]);
}

/// Pitfall 10: a file that exists is not touched unless that is asked for.
#[test]
fn an_existing_file_is_replaced_only_when_asked() {
    let folder = common::folder();
    let path = folder.path().join("cache");
    fs::write(&path, b"somebody else's").unwrap();
    let (manager, handle) = filled(4, "L|BKNHC");
    let mut options = options("BHLKNC", 20);
    let error = save(&manager, handle, &[0, 1, 2], &path, &options).unwrap_err();
    assert!(
        matches!(
            error,
            TransferError::File {
                operation: "create",
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(fs::read(&path).unwrap(), b"somebody else's");
    assert_eq!(names(folder.path()), ["cache"]);
    options.replace = true;
    save(&manager, handle, &[0, 1, 2], &path, &options).unwrap();
    SavedCache::open(&path, &identity(10_000.0)).unwrap();
    assert_eq!(names(folder.path()), ["cache"]);
    // A failure leaves the old one.
    let before = fs::read(&path).unwrap();
    save(&manager, handle, &[0, 9], &path, &options).unwrap_err();
    assert_eq!(fs::read(&path).unwrap(), before);
}

/// Everything about a load that can be known is known before the first byte.
#[test]
fn loads_that_do_not_fit_are_refused_before_a_byte_moves() {
    let folder = common::folder();
    let path = folder.path().join("cache");
    saved(&path);
    let cache = SavedCache::open(&path, &identity(10_000.0)).unwrap();
    let (manager, handle) = filled(4, "BLKNHC");
    let digests = || {
        (0..4)
            .map(|b| manager.block_digest(handle, b).unwrap())
            .collect::<Vec<_>>()
    };
    let before = digests();
    for pairs in [
        vec![(0, 0), (3, 1)],
        vec![(0, 0), (1, 4)],
        vec![(0, usize::MAX)],
        vec![(0, 1), (1, 1)],
        vec![(0, 3), (1, 2), (2, 3)],
    ] {
        let error = cache.load(&manager, handle, &pairs).unwrap_err();
        let named = matches!(
            error,
            TransferError::Layout(
                LayoutError::BlockOutOfRange { .. } | LayoutError::DuplicateDestination { .. }
            )
        );
        assert!(named, "{error}");
    }
    let lease = manager.lease(handle, &[1], LeaseMode::Read).unwrap();
    assert!(cache.load(&manager, handle, &[(0, 0), (1, 1)]).is_err());
    drop(lease);
    let other = Shape::key_value(4, 3, 8, 2, 32, &Unit::raw(2).unwrap()).unwrap();
    let other = manager.register(in_memory(&other, "BLKNHC")).unwrap();
    assert!(cache.load(&manager, other, &[(0, 0)]).is_err());
    assert_eq!(digests(), before);
    assert!(cache.load(&manager, handle, &[]).unwrap().is_empty());
    // The same block may be loaded to several places.
    assert_eq!(
        good(&cache.load(&manager, handle, &[(1, 0), (1, 3)]).unwrap()),
        [true, true]
    );
    assert_eq!(digests()[0], digests()[3]);
}

/// More blocks than are staged at a time, one of them damaged.
#[test]
fn large_caches_are_loaded_in_batches() {
    let folder = common::folder();
    let path = folder.path().join("cache");
    let shape = Shape::key_value(40, 4, 16, 8, 512, &Unit::raw(2).unwrap()).unwrap();
    assert!(shape.total_bytes().unwrap() > 32 << 20);
    let manager = TransferManager::new();
    let from = manager.register(in_memory(&shape, "L|KBNHC")).unwrap();
    let ids: Vec<usize> = (0..40).collect();
    manager
        .fill(from, &ids, FillPattern::Distinct { seed: 1 })
        .unwrap();
    let identity = LogicalIdentity::new("large", "1", &shape, None).unwrap();
    let options = SaveOptions::new(identity, 640).unwrap();
    save(&manager, from, &ids, &path, &options).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let (_, data) = bounds(&bytes);
    let block_bytes = usize::try_from(shape.block_bytes().unwrap()).unwrap();
    bytes[data + 33 * block_bytes + 5] ^= 1;
    fs::write(&path, bytes).unwrap();
    let cache = SavedCache::inspect(&path).unwrap();
    let to = manager.register(in_memory(&shape, "BLKNHC")).unwrap();
    let pairs: Vec<(usize, usize)> = ids.iter().map(|&b| (b, 39 - b)).collect();
    let checks = cache.load(&manager, to, &pairs).unwrap();
    assert_eq!(checks.len(), 40);
    for check in checks {
        let block = check.block;
        let same = manager.block_digest(from, block).unwrap()
            == manager.block_digest(to, 39 - block).unwrap();
        assert_eq!(
            (check.result.is_ok(), same),
            (block != 33, block != 33),
            "{block}"
        );
    }
}

/// Runs this binary's test `name` as a child in `role` under the shell command `before`.
fn under_shell(name: &str, role: &str, argument: &str, before: &str) -> std::process::Output {
    let binary = std::env::current_exe().unwrap();
    let script = format!(
        "{before} && exec '{}' --exact {name} --nocapture --test-threads=1",
        binary.display()
    );
    Command::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .env("KVTILE_TEST_ROLE", format!("{role} {argument}"))
        .output()
        .unwrap()
}

/// A disk that is full in the middle leaves no file, and what existed is as it was.
#[test]
fn a_full_disk_leaves_no_file() {
    let name = "a_full_disk_leaves_no_file";
    if let Some((_, folder)) = child::role() {
        let folder = Path::new(&folder);
        let path = folder.join("cache");
        fs::write(&path, b"old").unwrap();
        let (manager, handle) = filled(400, "L|BKNHC");
        let ids: Vec<usize> = (0..400).collect();
        let mut options = options("BHLKNC", 20);
        options.replace = true;
        let error = save(&manager, handle, &ids, &path, &options).unwrap_err();
        assert!(error.to_string().contains("no room"), "{error}");
        assert_eq!(names(folder), ["cache"]);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        // With room, the same manager saves.
        save(&manager, handle, &ids[..3], &path, &options).unwrap();
        assert_eq!(names(folder), ["cache"]);
        return;
    }
    let folder = common::folder();
    let place = folder.path().to_str().unwrap();
    let mount = format!("mount -t tmpfs -o size=1m tmpfs '{place}'");
    let possible = Command::new("unshare")
        .args(["--mount", "sh", "-c", &mount])
        .output();
    if !possible.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: a small tmpfs cannot be mounted here (needs root and unshare)");
        return;
    }
    let output = under_shell(name, "full", place, &mount);
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}\n{errors}"
    );
}

/// Pitfall 35: a killed saver leaves nothing under the final name, and the next save of that name
/// removes what it left beside it.
#[test]
fn a_killed_saver_leaves_no_cache_and_the_next_one_cleans_up() {
    let name = "a_killed_saver_leaves_no_cache_and_the_next_one_cleans_up";
    if let Some((_, path)) = child::role() {
        let shape = Shape::key_value(64, 4, 16, 8, 512, &Unit::raw(2).unwrap()).unwrap();
        let manager = TransferManager::new();
        let handle = manager.register(in_memory(&shape, "L|BKNHC")).unwrap();
        let ids: Vec<usize> = (0..64).collect();
        let identity = LogicalIdentity::new("large", "1", &shape, None).unwrap();
        let mut options = SaveOptions::new(identity, 1).unwrap();
        options.replace = true;
        loop {
            save(&manager, handle, &ids, Path::new(&path), &options).unwrap();
            fs::remove_file(&path).unwrap();
        }
    }
    let folder = common::folder();
    let path = folder.path().join("cache");
    for pause in [0, 2, 5, 11, 23] {
        let mut child = child::spawn(name, "saver", path.to_str().unwrap());
        while !names(folder.path())
            .iter()
            .any(|name| name.contains(".partial-"))
        {
            assert!(child.try_wait().unwrap().is_none(), "the saver ended");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(pause));
        child.kill().unwrap();
        child.wait().unwrap();
        if path.exists() {
            let cache = SavedCache::inspect(&path).unwrap();
            let checks = cache.check_blocks(|_| ()).unwrap();
            assert!(checks.iter().all(|check| check.result.is_ok()));
            fs::remove_file(&path).unwrap();
        }
    }
    saved(&path);
    assert_eq!(names(folder.path()), ["cache"]);
}

#[test]
fn only_abandoned_partial_files_of_that_name_are_removed() {
    let folder = common::folder();
    let path = folder.path().join("cache");
    let kept = [
        "cache.partial-notes",
        "cache.partial-1-",
        "cache.partial--1",
        "cache.partial-1-1x",
        "other.partial-1-1",
        "cache2.partial-1-1",
    ];
    for name in kept {
        fs::write(folder.path().join(name), b"x").unwrap();
    }
    fs::create_dir(folder.path().join("cache.partial-3-3")).unwrap();
    fs::write(folder.path().join("cache.partial-1-1"), b"abandoned").unwrap();
    let live = folder.path().join("cache.partial-2-2");
    fs::write(&live, b"somebody writes it").unwrap();
    let lock = File::open(&live).unwrap();
    lock.lock().unwrap();
    saved(&path);
    let mut expected = vec!["cache", "cache.partial-2-2", "cache.partial-3-3"];
    expected.extend(kept);
    expected.sort_unstable();
    assert_eq!(names(folder.path()), expected);
}

/// In a container every process has the same number: what a killed one left is not in the way.
#[test]
fn a_partial_file_of_a_former_process_of_the_same_number_is_not_in_the_way() {
    let folder = common::folder();
    let path = folder.path().join("cache");
    for number in 0..40 {
        let name = format!("cache.partial-{}-{number}", std::process::id());
        fs::write(folder.path().join(name), b"abandoned").unwrap();
    }
    let locked = folder
        .path()
        .join(format!("cache.partial-{}-7", std::process::id()));
    let lock = File::open(&locked).unwrap();
    lock.lock().unwrap();
    saved(&path);
    assert_eq!(names(folder.path()).len(), 2);
}

/// What no reader takes is not written, and a cache of that name stays as it was.
#[test]
fn notes_that_no_header_has_room_for_are_refused() {
    let folder = common::folder();
    let (manager, handle) = filled(2, "L|BKNHC");
    let path = folder.path().join("cache");
    let mut options = options("BHLKNC", 8);
    options.replace = true;
    options
        .notes
        .insert("long".to_owned(), "n".repeat(32 << 20));
    save(&manager, handle, &[0, 1], &path, &options).unwrap();
    assert_eq!(SavedCache::inspect(&path).unwrap().num_blocks(), 2);
    let before = fs::read(&path).unwrap();
    options
        .notes
        .insert("longer".to_owned(), "n".repeat(33 << 20));
    let error = save(&manager, handle, &[0, 1], &path, &options).unwrap_err();
    assert!(
        matches!(error, TransferError::HeaderTooLong { bytes, bytes_max } if bytes > bytes_max),
        "{error}"
    );
    assert!(fs::read(&path).unwrap() == before);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}
