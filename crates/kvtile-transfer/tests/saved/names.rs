//! A name never refers to an incomplete cache: full disks, killed writers, leftover files.

use super::*;

/// Pitfall 10: an existing file is not touched without `replace`.
#[test]
fn an_existing_file_is_replaced_only_on_request() {
    let folder = common::folder();
    let path = folder.path().join("cache");
    fs::write(&path, b"another file").unwrap();
    let (manager, handle) = filled(4, "L|BKNHC");
    let mut options = options("BHLKNC", 20);
    let error = save(&manager, handle, &[0, 1, 2], &path, &options).unwrap_err();
    assert!(
        matches!(
            error,
            TransferError::Copy(CopyError::File {
                operation: "create",
                ..
            })
        ),
        "{error}"
    );
    assert_eq!(fs::read(&path).unwrap(), b"another file");
    assert_eq!(files_in(folder.path()), ["cache"]);
    options.replace = true;
    save(&manager, handle, &[0, 1, 2], &path, &options).unwrap();
    SavedCache::open(&path, &identity(10_000.0)).unwrap();
    assert_eq!(files_in(folder.path()), ["cache"]);
    // After a failure the old file remains.
    let before = fs::read(&path).unwrap();
    save(&manager, handle, &[0, 9], &path, &options).unwrap_err();
    assert_eq!(fs::read(&path).unwrap(), before);
}

/// Runs test `name` of this binary as a child in `role`, after the shell command `before`.
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

/// A disk that becomes full during the save: no new file appears, and an existing one stays
/// unchanged.
#[test]
fn a_full_disk_leaves_no_file() {
    let name = "names::a_full_disk_leaves_no_file";
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
        assert_eq!(files_in(folder), ["cache"]);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        // With enough space, the same manager saves.
        save(&manager, handle, &ids[..3], &path, &options).unwrap();
        assert_eq!(files_in(folder), ["cache"]);
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

/// Pitfall 35: a killed writer leaves nothing under the final name, and the next save of that name
/// removes its partial file.
#[test]
fn a_killed_writer_leaves_no_cache_and_the_next_one_cleans_up() {
    let name = "names::a_killed_writer_leaves_no_cache_and_the_next_one_cleans_up";
    if let Some((_, path)) = child::role() {
        let shape = Shape::key_value(64, 4, 16, 8, 512, Unit::raw(2).unwrap()).unwrap();
        let manager = TransferManager::new();
        let handle = manager.register(in_memory(&shape, "L|BKNHC")).unwrap();
        let ids: Vec<usize> = (0..64).collect();
        let identity = Identity::new("large", "1", &shape).unwrap();
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
        while !files_in(folder.path())
            .iter()
            .any(|name| name.contains(".partial-"))
        {
            assert!(child.try_wait().unwrap().is_none(), "the writer ended");
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
    assert_eq!(files_in(folder.path()), ["cache"]);
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
    fs::write(&live, b"in progress").unwrap();
    let lock = File::open(&live).unwrap();
    lock.lock().unwrap();
    saved(&path);
    let mut expected = vec!["cache", "cache.partial-2-2", "cache.partial-3-3"];
    expected.extend(kept);
    expected.sort_unstable();
    assert_eq!(files_in(folder.path()), expected);
}

/// In containers, process ids repeat: the partial file of a killed process does not block a new one
/// with the same id.
#[test]
fn a_partial_file_of_an_earlier_process_with_the_same_id_does_not_block() {
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
    assert_eq!(files_in(folder.path()).len(), 2);
}
