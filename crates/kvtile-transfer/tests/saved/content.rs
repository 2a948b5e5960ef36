//! Saved blocks are restored: in any order, into any layout, in any process.

use super::*;

#[test]
fn blocks_are_restored_in_any_order_from_any_order() {
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
        files_in(folder.path())
            .iter()
            .all(|name| !name.contains("partial"))
    );
}

/// Loads single blocks of a cache whose word splits the blocks into groups.
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

/// Pitfall 25: another process loads a saved cache, into another order.
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
    let name = "content::another_process_loads_what_this_one_saved";
    child::passes(child::spawn(name, "loader", path.to_str().unwrap()));
}

/// More blocks than one batch holds, one of them damaged.
#[test]
fn large_caches_are_loaded_in_batches() {
    let folder = common::folder();
    let path = folder.path().join("cache");
    let shape = Shape::key_value(40, 4, 16, 8, 512, Unit::raw(2).unwrap()).unwrap();
    assert!(shape.total_bytes().unwrap() > 32 << 20);
    let manager = TransferManager::new();
    let from = manager.register(in_memory(&shape, "L|KBNHC")).unwrap();
    let ids: Vec<usize> = (0..40).collect();
    manager
        .fill(from, &ids, FillPattern::Distinct { seed: 1 })
        .unwrap();
    let identity = Identity::new("large", "1", &shape).unwrap();
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
