//! What an operator sees of a store, and does to it.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use kvtile_shared::{
    folder::{FolderStore, FolderStoreSettings},
    store::SharedStore,
    survey::{SurveySettings, clear, survey, verify},
    tier::SharedTierSettings,
};
use kvtile_testkit::shared::SharedTierRig;

/// A folder with bundles of four blocks of 1 KiB, some of them of another form and prefix, and a
/// foreign file.
fn store(folder: &Path, bundles: u32) -> Arc<FolderStore> {
    let store = Arc::new(FolderStore::open(folder, FolderStoreSettings::new()).unwrap());
    let rig = |settings| {
        SharedTierRig::open(Arc::clone(&store) as Arc<dyn SharedStore>, settings, (4, 0))
    };
    let settings = SharedTierSettings::new().bundle_blocks(4);
    rig(settings.clone()).write(&SharedTierRig::chain(1, 4 * bundles));
    rig(SharedTierSettings::new().bundle_blocks(2)).write(&SharedTierRig::chain(2, 2));
    rig(settings.prefix("elsewhere")).write(&SharedTierRig::chain(3, 4));
    fs::create_dir_all(folder.join("kvt1/notes")).unwrap();
    fs::write(folder.join("kvt1/notes/a.txt"), "not a bundle").unwrap();
    store
}

/// The files of bundles of four blocks, below the empty prefix.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.join("kvt1")];
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
    files.sort();
    files
}

#[test]
fn a_survey_counts_bundles_by_their_form() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path(), 3);
    let found = survey(&*store, &SurveySettings::new()).unwrap();
    let forms: Vec<(u32, u64, u64)> = found
        .forms
        .iter()
        .map(|form| (form.bundle_blocks, form.bundles, form.bytes))
        .collect();
    assert_eq!(forms, [(2, 1, 4096 + 2048), (4, 3, 3 * (4096 + 4096))]);
    assert_eq!((found.bundles(), found.foreign), (4, 1));
    assert_eq!(found.forms[0].identity, found.forms[1].identity);
    assert!(found.forms[1].oldest >= found.forms[1].newest && found.forms[1].newest.is_some());
    let elsewhere = SurveySettings::new().prefix("elsewhere");
    assert_eq!(survey(&*store, &elsewhere).unwrap().bundles(), 1);
}

#[test]
fn a_verification_names_every_kind_of_damage_and_removes_what_caches_would() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path(), 8);
    let settings = SurveySettings::new();
    let mut seen = 0;
    let whole = verify(&*store, &settings, false, |number| seen = number).unwrap();
    assert_eq!((whole.whole, whole.foreign, seen), (9, 1, 9));
    assert_eq!(whole.unfit, []);
    let files = files(folder.path());
    let change = |at: usize, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = fs::read(&files[at]).unwrap();
        change(&mut bytes);
        fs::write(&files[at], bytes).unwrap();
    };
    change(0, &|bytes| bytes[5000] ^= 1);
    change(1, &|bytes| bytes[200] ^= 1);
    change(2, &|bytes| bytes.truncate(4096));
    change(3, &|bytes| bytes.truncate(8191));
    // A length that four blocks of another size have.
    change(4, &|bytes| bytes.truncate(8188));
    change(5, &|bytes| bytes.extend([0; 4]));
    change(6, &|bytes| bytes[12] = 9);
    let other = fs::read(&files[6]).unwrap();
    fs::copy(&files[0], &files[7]).unwrap();
    let check = verify(&*store, &settings, false, |_| {}).unwrap();
    assert_eq!(check.whole, 1, "{check:?}");
    let kinds: Vec<(&str, u64)> = check.kinds().into_iter().collect();
    assert_eq!(kinds, [("damaged", 3), ("other_identity", 1), ("short", 4)]);
    assert!(check.unfit.iter().all(|bundle| !bundle.is_removed));
    let removed = verify(&*store, &settings, true, |_| {}).unwrap();
    assert_eq!(
        removed
            .unfit
            .iter()
            .filter(|bundle| bundle.is_removed)
            .count(),
        7
    );
    // The value of a newer version stays.
    assert_eq!(fs::read(&files[6]).unwrap(), other);
    let left = verify(&*store, &settings, true, |_| {}).unwrap();
    assert_eq!((left.whole, left.unfit.len()), (1, 1));
}

#[test]
fn a_clearing_removes_the_bundles_of_its_prefix_alone() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path(), 3);
    let settings = SurveySettings::new();
    let cleared = clear(&*store, &settings).unwrap();
    assert_eq!((cleared.removed, cleared.foreign), (4, 1));
    assert_eq!(cleared.removed_bytes, 3 * 8192 + 6144);
    assert_eq!(survey(&*store, &settings).unwrap().bundles(), 0);
    assert!(folder.path().join("kvt1/notes/a.txt").is_file());
    let elsewhere = SurveySettings::new().prefix("elsewhere");
    assert_eq!(verify(&*store, &elsewhere, false, |_| {}).unwrap().whole, 1);
    assert_eq!(clear(&*store, &settings).unwrap().removed, 0);
}
