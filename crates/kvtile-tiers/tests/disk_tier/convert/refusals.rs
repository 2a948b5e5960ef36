//! Conversions that are refused before anything is written.

use std::os::unix::fs::symlink;

use kvtile_tiers::disk::{
    Inspection,
    medium::{FolderMedium, LockError},
};

use super::*;
use crate::hooked::{HookedFolder, HookedOperation};

/// Checks that a conversion is refused and changes neither folder.
fn refused(from: &Path, to: &Path, settings: &ConvertSettings) -> TierError {
    let (before, there) = (files(from), to.exists().then(|| files(to)));
    let error = run(from, to, settings).unwrap_err();
    assert_eq!(files(from), before, "{error}");
    assert_eq!(to.exists().then(|| files(to)), there, "{error}");
    error
}

#[test]
fn a_target_that_is_not_new_is_refused_before_anything_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let from = folder.path().join("not-there");
    fs::create_dir(&from).unwrap();
    let foreign = folder.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("thesis.tex"), b"mine").unwrap();
    let error = refused(&from, &foreign, &settings(None));
    assert!(
        matches!(&error, TierError::Folder(FolderError::ForeignFolder { found, .. }) if found == "thesis.tex")
    );
    let tier = folder.path().join("tier");
    fs::create_dir(&tier).unwrap();
    fs::write(tier.join("manifest.json"), b"{}").unwrap();
    let error = refused(&from, &tier, &settings(None));
    assert!(
        matches!(
            error,
            TierError::Convert(ConvertError::AlreadyAStore { .. })
        ),
        "{error}"
    );
    // The source is examined only after the target.
    let error = refused(&from, &folder.path().join("new"), &settings(None));
    assert!(
        matches!(error, TierError::Folder(FolderError::NotAStore { .. })),
        "{error}"
    );
}

#[test]
fn a_folder_is_not_converted_into_itself() {
    let folder = tempfile::tempdir().unwrap();
    let from = version_1(folder.path());
    fs::create_dir(folder.path().join("beside")).unwrap();
    symlink(&from, folder.path().join("link")).unwrap();
    let before = files(&from);
    for to in [
        "from",
        "from/new",
        "from/a/b",
        "link/new",
        "beside/../from/new",
        "new/../from/x",
        "link",
    ] {
        let error = run(&from, &folder.path().join(to), &settings(None)).unwrap_err();
        assert!(
            matches!(
                error,
                TierError::Convert(ConvertError::TargetInSource { .. })
            ),
            "{to}: {error}"
        );
        assert_eq!(files(&from), before, "{to}");
    }
    // A folder whose name starts with the same letters is another folder.
    run(&from, &folder.path().join("from-new"), &settings(None)).unwrap();
}

#[test]
fn an_empty_folder_and_the_remains_of_an_interrupted_creation_are_valid_targets() {
    let folder = tempfile::tempdir().unwrap();
    let from = version_1(folder.path());
    let empty = folder.path().join("empty");
    fs::create_dir(&empty).unwrap();
    run(&from, &empty, &settings(Some("BHLKNC"))).unwrap();
    let begun = folder.path().join("begun");
    fs::create_dir(&begun).unwrap();
    for file in ["lock", "records", "slots", "manifest.json.partial"] {
        fs::write(begun.join(file), vec![0x5a; 300_000]).unwrap();
    }
    run(&from, &begun, &settings(Some("BHLKNC"))).unwrap();
    for to in [empty, begun] {
        check_converted(Inspection::open(&to).unwrap(), "BHLKNC");
    }
}

#[test]
fn a_capacity_that_is_too_small_is_refused_with_the_needed_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let from = version_1(folder.path());
    let to = folder.path().join("to");
    let with = |bytes: u64| settings(Some("BHLKNC")).capacity_bytes(bytes);
    let error = refused(&from, &to, &with(20_000));
    let TierError::Convert(ConvertError::BlocksDoNotFit {
        blocks,
        needed_bytes,
        ..
    }) = error
    else {
        panic!("{error}");
    };
    assert_eq!(blocks, 7);
    let error = refused(&from, &to, &with(needed_bytes - 1));
    assert!(
        matches!(
            error,
            TierError::Convert(ConvertError::BlocksDoNotFit { .. })
        ),
        "{error}"
    );
    let error = refused(&from, &to, &with(u64::MAX));
    assert!(
        matches!(
            error,
            TierError::Settings(SettingsError::CapacityTooLarge { .. })
        ),
        "{error}"
    );
    let converted = run(&from, &to, &with(needed_bytes)).unwrap();
    assert_eq!(
        (converted.capacity_bytes, converted.blocks_max),
        (needed_bytes, 7)
    );
    check_converted(Inspection::open(&to).unwrap(), "BHLKNC");
}

#[test]
fn words_that_are_no_block_layout_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let from = version_1(folder.path());
    let to = folder.path().join("to");
    for word in ["L|BHKNC", "LBHKNC", "BL@4096HKNC"] {
        let error = refused(&from, &to, &settings(Some(word)));
        assert!(
            matches!(
                error,
                TierError::Settings(SettingsError::StorageNotContiguous { .. })
            ),
            "{word}: {error}"
        );
    }
    let error = refused(&from, &to, &settings(Some("BHLKC")));
    assert!(matches!(error, TierError::Transfer(_)), "{error}");
    let mut named = settings(None);
    named.stored_layout = Some("BLHKNC".parse().unwrap());
    let error = refused(&from, &to, &named);
    assert!(
        matches!(&error, TierError::Convert(ConvertError::StoredOrderDiffers { word, .. }) if word == "BLHKNC")
    );
}

/// The source folder is locked until the end, and nothing is written to it.
#[test]
fn no_cache_can_open_the_folder_while_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let from = version_1(folder.path());
    let before = files(&from);
    let held = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let (counted, read) = (Arc::clone(&held), from.clone());
    let to = HookedFolder::new(&folder.path().join("to"), move |operation| {
        if operation == HookedOperation::Write {
            let lock = FolderMedium::new(&read).lock_to_read("lock");
            let Err(LockError::Held(holder)) = lock else {
                panic!("{lock:?}");
            };
            assert_eq!(holder.pid, Some(std::process::id()));
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    });
    let source = Arc::new(FolderMedium::new(&from));
    kvtile_tiers::disk::convert_on(source, Arc::new(to), &settings(None), &mut |_| {}).unwrap();
    assert!(held.load(std::sync::atomic::Ordering::Relaxed) > 0);
    assert_eq!(files(&from), before);
    drop(FolderMedium::new(&from).lock("lock").unwrap());
}
