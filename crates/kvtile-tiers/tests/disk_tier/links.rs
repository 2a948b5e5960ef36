//! File names that refer to something other than a plain file: nothing behind them is read or
//! written.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt, symlink},
    path::{Path, PathBuf},
};

use crate::common::{check_offered, room_for, store_chain, usual};
use kvtile_tiers::{
    FolderError, TierError,
    disk::{
        Inspection, RecoveredBlocks, SlotStore,
        medium::{FolderMedium, FoundInstead},
    },
};

const FILES: [&str; 5] = [
    "manifest.json",
    "manifest.json.partial",
    "records",
    "slots",
    "lock",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LinkTrap {
    Link,
    Dangling,
    LinkToFolder,
    HardLink,
    Folder,
    Pipe,
    Socket,
}

const TRAPS: [LinkTrap; 7] = [
    LinkTrap::Link,
    LinkTrap::Dangling,
    LinkTrap::LinkToFolder,
    LinkTrap::HardLink,
    LinkTrap::Folder,
    LinkTrap::Pipe,
    LinkTrap::Socket,
];

impl LinkTrap {
    /// Replaces the file at `path` by this trap, with the foreign file `victim` behind it.
    fn set(self, path: &Path, victim: &Path) {
        if path.exists() {
            fs::remove_file(path).unwrap();
        }
        match self {
            LinkTrap::Link => symlink(victim, path).unwrap(),
            LinkTrap::Dangling => symlink(victim.with_extension("new"), path).unwrap(),
            LinkTrap::LinkToFolder => symlink(victim.parent().unwrap(), path).unwrap(),
            LinkTrap::HardLink => fs::hard_link(victim, path).unwrap(),
            LinkTrap::Folder => fs::create_dir(path).unwrap(),
            LinkTrap::Pipe => {
                let kind = rustix::fs::FileType::Fifo;
                let mode = rustix::fs::Mode::from_raw_mode(0o600);
                rustix::fs::mknodat(rustix::fs::CWD, path, kind, mode, 0).unwrap();
            }
            LinkTrap::Socket => drop(std::os::unix::net::UnixListener::bind(path).unwrap()),
        }
    }

    fn found(self) -> FoundInstead {
        match self {
            LinkTrap::Link | LinkTrap::Dangling | LinkTrap::LinkToFolder => {
                FoundInstead::SymbolicLink
            }
            LinkTrap::HardLink => FoundInstead::HardLink { names: 2 },
            LinkTrap::Folder => FoundInstead::Folder,
            LinkTrap::Pipe => FoundInstead::Pipe,
            LinkTrap::Socket => FoundInstead::Socket,
        }
    }
}

fn open(path: &Path) -> Result<(SlotStore, RecoveredBlocks), TierError> {
    let identity = usual();
    SlotStore::create_or_open(path, &room_for(8, &identity), &identity)
}

/// A store with two blocks, and a foreign file.
fn tier(parent: &Path) -> (PathBuf, PathBuf) {
    let path = parent.join("tier");
    let (store, _) = open(&path).unwrap();
    store_chain(&store, &usual(), 0, 2);
    let victim = parent.join("others").join("victim");
    fs::create_dir(parent.join("others")).unwrap();
    fs::write(&victim, b"precious").unwrap();
    (path, victim)
}

fn check_untouched(victim: &Path, what: &str) {
    assert_eq!(fs::read(victim).unwrap(), b"precious", "{what}");
    let beside = fs::read_dir(victim.parent().unwrap()).unwrap().count();
    assert_eq!(beside, 1, "{what}: a file was created behind the link");
}

/// Every kind of trap in place of every file of an intact folder.
#[test]
fn what_is_no_plain_file_is_refused_by_name_and_nothing_behind_it_is_touched() {
    for file in FILES {
        for trap in TRAPS {
            let parent = tempfile::tempdir().unwrap();
            let (path, victim) = tier(parent.path());
            trap.set(&path.join(file), &victim);
            let opened = open(&path);
            let what = format!("{trap:?} as {file}");
            check_untouched(&victim, &what);
            match (file, trap, opened) {
                // An unfinished manifest is removed and never opened.
                (
                    "manifest.json.partial",
                    LinkTrap::Folder,
                    Err(TierError::Folder(FolderError::File { .. })),
                ) => {}
                ("manifest.json.partial", _, Ok((store, recovered))) => {
                    check_offered(&store, &recovered, &usual());
                    assert!(!path.join(file).exists());
                }
                // The manifest is only read.
                (
                    "manifest.json",
                    LinkTrap::HardLink,
                    Err(TierError::Folder(FolderError::ManifestDamaged { .. })),
                ) => {}
                (
                    _,
                    _,
                    Err(TierError::Folder(FolderError::NotAPlainFile { file: named, found })),
                ) => {
                    assert_eq!(
                        (named.as_str(), found),
                        (path.join(file).to_str().unwrap(), trap.found())
                    );
                }
                (_, _, opened) => panic!("{what}: {opened:?}"),
            }
        }
    }
}

/// The same traps in a folder of an interrupted creation, and in a folder that is cleared.
#[test]
fn unfinished_folders_and_clearing_touch_nothing_behind_a_name() {
    for file in FILES {
        for trap in TRAPS {
            for clear in [false, true] {
                let parent = tempfile::tempdir().unwrap();
                let (path, victim) = tier(parent.path());
                if !clear {
                    fs::remove_file(path.join("manifest.json")).unwrap();
                }
                trap.set(&path.join(file), &victim);
                let what = format!("{trap:?} as {file}, clear: {clear}");
                let done = match clear {
                    true => kvtile_tiers::disk::clear(&FolderMedium::new(&path)),
                    false => open(&path).map(drop),
                };
                check_untouched(&victim, &what);
                if file == "lock" {
                    assert!(
                        matches!(
                            done,
                            Err(TierError::Folder(FolderError::NotAPlainFile { .. }))
                        ),
                        "{what}: {done:?}"
                    );
                }
                assert_eq!(
                    fs::metadata(&victim).unwrap().mode() & 0o777,
                    0o644,
                    "{what}"
                );
            }
        }
    }
}

/// Inspections follow no links either; a hard link of a file does no harm to them.
#[test]
fn inspections_follow_no_links_and_read_files_with_other_names() {
    for file in ["manifest.json", "records", "slots"] {
        let parent = tempfile::tempdir().unwrap();
        let (path, _) = tier(parent.path());
        let away = parent.path().join("away");
        fs::hard_link(path.join(file), &away).unwrap();
        let inspection = Inspection::open(&path).unwrap();
        assert_eq!(inspection.only().unwrap().blocks().len(), 2);
        fs::remove_file(path.join(file)).unwrap();
        symlink(&away, path.join(file)).unwrap();
        assert!(matches!(
            Inspection::open(&path),
            Err(TierError::Folder(FolderError::NotAPlainFile { .. }))
        ));
    }
}

/// A path to the folder may contain links.
#[test]
fn a_link_to_the_folder_is_the_folder() {
    let parent = tempfile::tempdir().unwrap();
    let (path, _) = tier(parent.path());
    let link = parent.path().join("link");
    symlink(&path, &link).unwrap();
    let (store, recovered) = open(&link).unwrap();
    check_offered(&store, &recovered, &usual());
    assert!(
        !fs::symlink_metadata(path.join("lock"))
            .unwrap()
            .file_type()
            .is_socket()
    );
}
