//! Folders of other groups, and groups that no folder can have, are refused by name.

use std::fs;

use kvtile_tiers::{
    ConvertError, FolderError, MismatchError, SettingsError, TierError,
    disk::{ConvertSettings, SlotFolder, SlotStore, SlotStoreSettings, TierGroup, convert},
};

use super::{SIZES, check_folder, groups, open, room, sync, write_chains};
use crate::common::{forged, identity, room_for, sized, store_chain, usual};

/// The names of a folder's groups and of the requested ones.
fn differ(error: &TierError) -> (&[String], &[String]) {
    match error {
        TierError::Mismatch(MismatchError::GroupsDiffer { ours, theirs, .. }) => (ours, theirs),
        other => panic!("{other}"),
    }
}

#[test]
fn a_folder_of_other_groups_is_refused_with_both_lists_and_stays_unchanged() {
    let folder = tempfile::tempdir().unwrap();
    let ours = groups(2);
    let (store, _) = open(folder.path(), 10, &ours).unwrap();
    write_chains(&store, &ours, 0, 5);
    sync(&store);
    drop(store);
    let swapped = [ours[1].clone(), ours[0].clone()];
    let mut renamed = ours.clone();
    renamed[1].name = "mamba".to_owned();
    for (others, names) in [
        (groups(3), vec!["full", "state", "swa"]),
        (groups(1), vec!["full"]),
        (swapped.to_vec(), vec!["state", "full"]),
        (renamed, vec!["full", "mamba"]),
    ] {
        let error =
            SlotFolder::create_or_open(folder.path(), &room(10, &ours), &others).unwrap_err();
        assert_eq!(
            differ(&error),
            (
                &names
                    .iter()
                    .map(|&name| name.to_owned())
                    .collect::<Vec<_>>()[..],
                &["full".to_owned(), "state".to_owned()][..]
            )
        );
        let text = error.to_string();
        assert!(
            text.contains("full, state") && text.contains("clear it"),
            "{text}"
        );
    }
    // Nor is it a folder of one group.
    let error = SlotStore::create_or_open(folder.path(), &room(10, &ours), &ours[0].identity);
    assert_eq!(differ(&error.unwrap_err()).1.len(), 2);
    check_folder(folder.path(), 10, &ours, &[0, 1, 2, 3, 4]);
}

/// A folder of one group has no name, so it fits any name, and no second group.
#[test]
fn a_folder_of_one_group_has_the_manifest_of_older_versions() {
    let folder = tempfile::tempdir().unwrap();
    let identity = usual();
    let settings = room_for(10, &identity);
    let (store, _) = SlotStore::create_or_open(folder.path(), &settings, &identity).unwrap();
    store_chain(&store, &identity, 0, 4);
    drop(store);
    let path = folder.path().join("manifest.json");
    let manifest = fs::read_to_string(&path).unwrap();
    let compact: String = manifest.split_whitespace().collect();
    assert!(compact.contains("\"groups\":[{\"identity\":{"), "{compact}");
    for name in ["kv", "full"] {
        let group = TierGroup::new(name, identity.clone());
        let opened = SlotFolder::create_or_open(folder.path(), &settings, &[group]);
        assert_eq!(opened.unwrap().1[0].entries.len(), 4);
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), manifest);
    let two = ["kv", "swa"].map(|name| TierGroup::new(name, identity.clone()));
    let error = SlotFolder::create_or_open(folder.path(), &settings, &two).unwrap_err();
    assert!(differ(&error).1.is_empty());
    assert!(
        error.to_string().contains("one group without a name"),
        "{error}"
    );
}

/// A manifest from before groups had names. Written anew, it has the same bytes.
#[test]
fn a_manifest_without_names_is_read_and_written_as_before() {
    const MANIFEST: &str = include_str!("manifest_without_names.json");
    let folder = tempfile::tempdir().unwrap();
    let identity = usual();
    let path = folder.path().join("manifest.json");
    fs::write(&path, MANIFEST).unwrap();
    for places in [40, 30, 40] {
        let settings = room_for(places, &identity);
        let opened = SlotStore::create_or_open(folder.path(), &settings, &identity);
        let (store, recovered) = opened.unwrap();
        assert!(!recovered.created);
        assert_eq!(u64::from(store.group().slots()), places);
        let now = fs::read_to_string(&path).unwrap();
        assert_eq!(now == MANIFEST, places == 40, "{now}");
    }
}

#[test]
fn a_group_that_differs_is_refused_with_its_name_in_the_field() {
    let folder = tempfile::tempdir().unwrap();
    let ours = vec![
        TierGroup::new("full", sized(12_288)),
        TierGroup::new("swa", usual()),
    ];
    let (store, _) = open(folder.path(), 10, &ours).unwrap();
    write_chains(&store, &ours, 0, 3);
    sync(&store);
    drop(store);
    for (other, field) in [
        (identity(2, "BHLKNC", 500_000.0), "groups[swa].rope.base"),
        (
            identity(2, "BLKNHC", 10_000.0),
            "groups[swa].layout.k.digits",
        ),
        (sized(1 << 20), "groups[swa].block_bytes"),
    ] {
        let others = [ours[0].clone(), TierGroup::new("swa", other)];
        match SlotFolder::create_or_open(folder.path(), &room(10, &ours), &others) {
            Err(TierError::Mismatch(MismatchError::FolderDiffers { difference, .. })) => {
                assert_eq!(difference.field, field);
            }
            other => panic!("{field}: {other:?}"),
        }
    }
    check_folder(folder.path(), 10, &ours, &[0, 1, 2]);
}

#[test]
fn groups_that_no_folder_can_have_are_refused_before_the_folder_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tier");
    let of = |names: &[&str]| -> Vec<TierGroup> {
        names
            .iter()
            .map(|name| TierGroup::new(*name, sized(600)))
            .collect()
    };
    let many: Vec<String> = (0..65).map(|number| number.to_string()).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let refused = |groups: &[TierGroup]| {
        let settings = SlotStoreSettings::new(1 << 30);
        match SlotFolder::create_or_open(&path, &settings, groups) {
            Err(TierError::Settings(error)) => error,
            other => panic!("{other:?}"),
        }
    };
    assert!(matches!(refused(&[]), SettingsError::GroupCount { .. }));
    assert!(matches!(
        refused(&of(&many)),
        SettingsError::GroupCount { .. }
    ));
    let twice = refused(&of(&["a", "b", "a"]));
    assert!(matches!(twice, SettingsError::GroupTwice { name } if name == "a"));
    assert!(matches!(
        refused(&of(&["a", ""])),
        SettingsError::GroupName { .. }
    ));
    let shared = of(&["a"]).remove(0).share(-1.0);
    assert!(matches!(
        refused(&[shared]),
        SettingsError::GroupShare { .. }
    ));
    assert!(!path.exists());
    let most =
        SlotFolder::create_or_open(&path, &SlotStoreSettings::new(1 << 24), &of(&many[..64]));
    let (store, _) = most.unwrap();
    assert!(path.join("slots-63").exists());
    store.check_integrity();
}

/// Manifests with the right checksum that no version of kvtile wrote.
#[test]
fn manifests_of_impossible_groups_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let groups = groups(2);
    drop(open(folder.path(), 10, &groups).unwrap());
    let path = folder.path().join("manifest.json");
    let text = fs::read_to_string(&path).unwrap();
    let change = |old: &str, new: &str| {
        let changed = forged(&text, &|body| {
            assert!(body.contains(old), "{old:?} is not in {body}");
            body.replacen(old, new, 1)
        });
        fs::write(&path, changed).unwrap();
        open(folder.path(), 10, &groups)
    };
    assert!(change("\"name\":\"full\"", "\"name\":\"full\"").is_ok());
    for (old, new) in [
        ("\"name\":\"full\",", ""),
        ("\"name\":\"full\"", "\"name\":\"state\""),
        ("\"name\":\"full\"", "\"name\":\"\""),
        ("\"name\":\"full\"", "\"name\":\"a b\""),
        ("\"name\":\"full\"", "\"name\":7"),
        ("\"name\":\"full\"", "\"name\":\"full\",\"share\":1"),
        ("\"slots\":10", "\"slots\":0"),
        // As many as one group may have, and ten more.
        ("\"slots\":10", "\"slots\":67108864"),
        ("\"slot_bytes\":4096", "\"slot_bytes\":8192"),
    ] {
        let error = change(old, new).unwrap_err();
        assert!(
            matches!(
                error,
                TierError::Folder(FolderError::ManifestDamaged { .. })
            ),
            "{new}: {error}"
        );
    }
    let (_, groups_text) = text.split_once("\"groups\": [").unwrap();
    let one = groups_text.lines().map(str::trim_start).collect::<String>();
    let one = one.replace("\": ", "\":");
    let end = one.rfind("]},\"checksum\"").unwrap();
    let all = &one[..end];
    let none = change(all, "").unwrap_err();
    assert!(
        matches!(none, TierError::Folder(FolderError::ManifestDamaged { .. })),
        "{none}"
    );
    let many = change(all, &vec![all; 40].join(",")).unwrap_err();
    assert!(
        matches!(many, TierError::Folder(FolderError::ManifestDamaged { .. })),
        "{many}"
    );
}

#[test]
fn a_conversion_refuses_a_folder_of_several_groups_by_their_names() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    let groups = groups(2);
    drop(open(&from, 10, &groups).unwrap());
    let refused = convert(&from, &to, &ConvertSettings::new(), &mut |_| {});
    match refused {
        Err(TierError::Folder(FolderError::FolderGroups { groups, .. })) => {
            assert_eq!(groups, [SIZES[0].0, SIZES[1].0]);
        }
        other => panic!("{other:?}"),
    }
    assert!(!to.exists());
    // Nor does one write into it.
    let refused = convert(&to, &from, &ConvertSettings::new(), &mut |_| {});
    assert!(matches!(
        refused,
        Err(TierError::Convert(ConvertError::AlreadyAStore { .. }))
    ));
}

#[test]
fn files_of_other_names_are_foreign_and_those_of_groups_are_remains_of_a_creation() {
    let groups = groups(2);
    for (name, ours) in [
        ("records-1", true),
        ("slots-63", true),
        ("slots-0", false),
        ("slots-01", false),
        ("records-64", false),
        ("records-1.old", false),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(folder.path().join("lock"), b"").unwrap();
        fs::write(&path, b"mine").unwrap();
        match open(folder.path(), 10, &groups) {
            Ok((_, recovered)) => {
                assert!(ours && recovered[0].created, "{name}");
                // The remains of a larger number of groups are removed.
                assert!(name != "slots-63" || !path.exists());
            }
            Err(TierError::Folder(FolderError::ForeignFolder { found, .. })) => {
                assert!(!ours && found == name);
                assert_eq!(fs::read(&path).unwrap(), b"mine");
            }
            Err(other) => panic!("{name}: {other}"),
        }
    }
}
