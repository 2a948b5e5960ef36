//! What an operator sees of a store, and does to it.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use kvtile_shared::{
    folder::{FolderStore, FolderStoreSettings},
    store::{Deadline, SharedStore, ValueName},
    survey::{SurveySettings, clear, survey, verify},
    sweep::{SweepSettings, sweep},
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

#[test]
fn a_manifest_states_what_the_bundles_of_an_identity_belong_to() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path(), 1);
    let settings = SurveySettings::new();
    let found = survey(&*store, &settings).unwrap();
    let identity = &found.forms[0].identity;
    assert_eq!(found.manifests.len(), 1);
    let manifest = found.manifests[identity].as_ref().unwrap();
    assert_eq!(&manifest.identity().fingerprint().to_string(), identity);
    assert_eq!(
        manifest.block_layout().fingerprint().to_string(),
        found.forms[0].layout
    );
    assert_eq!(
        (manifest.block_bytes(), manifest.identity().page_size()),
        (1024, 4)
    );
    assert_eq!(manifest.kvtile(), env!("CARGO_PKG_VERSION"));
    // It is written once, and neither damage nor a foreign text costs a bundle.
    let path = folder.path().join(format!("kvt1/{identity}/manifest.json"));
    let text = fs::read_to_string(&path).unwrap();
    let other = text.replacen("\"model\": \"", "\"model\": \"another ", 1);
    assert_ne!(other, text);
    let newer = text.replacen("\"version\": 1", "\"version\": 2", 1);
    let before = SharedTierRig::names(&*store);
    let deep = "[".repeat(100_000);
    let long = format!("{text}{}", " ".repeat(1 << 20));
    for (text, problem) in [
        (other.as_str(), "another identity"),
        (&newer, "version 2"),
        (&text[..100], "not readable"),
        ("", "not readable"),
        ("{}", "not readable"),
        (&deep, "not readable"),
        (&long, "more than 1048576 bytes"),
    ] {
        fs::write(&path, text).unwrap();
        let found = survey(&*store, &settings).unwrap();
        let error = found.manifests[identity].as_ref().unwrap_err().to_string();
        let problem = problem.replace("another identity", "that of the identity");
        assert!(error.contains(&problem), "{error}");
        let check = verify(&*store, &settings, true, |_| {}).unwrap();
        assert_eq!(
            (check.whole, check.unfit.len(), check.unfit_manifests.len()),
            (2, 0, 1)
        );
        // A tier leaves it as it is.
        let rig = SharedTierRig::open(
            Arc::clone(&store) as Arc<dyn SharedStore>,
            SharedTierSettings::new().bundle_blocks(4),
            (4, 0),
        );
        rig.write(&SharedTierRig::chain(9, 4));
        assert!(fs::read_to_string(&path).unwrap() == text);
        drop(rig);
        let names = SharedTierRig::names(&*store);
        let by = Deadline::within(Duration::from_secs(60));
        let is_new = |name: &&ValueName| !before.contains(name);
        let new: Vec<ValueName> = names.iter().filter(is_new).cloned().collect();
        assert_eq!(store.remove(&new, by).unwrap(), 1);
    }
}

#[test]
fn a_manifest_and_an_announcement_leave_with_the_last_bundle_of_their_identity() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path(), 1);
    let settings = SurveySettings::new();
    let cleared = clear(&*store, &settings).unwrap();
    assert_eq!((cleared.removed, cleared.foreign), (2, 1));
    assert_eq!(survey(&*store, &settings).unwrap().manifests.len(), 0);
    let elsewhere = SurveySettings::new().prefix("elsewhere");
    assert_eq!(survey(&*store, &elsewhere).unwrap().manifests.len(), 1);
    let sweeping = SweepSettings::new(0).prefix("elsewhere");
    assert_eq!(sweep(&*store, &sweeping).unwrap().leftovers, 0);
    assert_eq!(survey(&*store, &elsewhere).unwrap().manifests.len(), 1);
    let sweeping = sweeping.leftovers_after(Duration::ZERO);
    assert_eq!(sweep(&*store, &sweeping).unwrap().leftovers, 2);
    assert_eq!(survey(&*store, &elsewhere).unwrap().manifests.len(), 0);
}
