//! Inspections of folders without write permission: another user's folder, and a read-only mount.

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt, PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::Command,
};

use crate::common::{content, key, room_for, store_chain, usual, write};
use kvtile_tiers::{
    FolderError, TierError,
    disk::{FolderUsage, Inspection, SlotMiss, SlotState, SlotStore},
};
use rustix::mount::{MountFlags, UnmountFlags, mount_bind, mount_remount, unmount};

/// Environment variable of the reader that runs as another user: its folder.
const FOLDER: &str = "KVTILE_DISK_READER_FOLDER";
const BLOCKS: u64 = 3;

fn tier(path: &Path) -> SlotStore {
    let identity = usual();
    let settings = room_for(8, &identity);
    let (store, _) = SlotStore::create_or_open(path, &settings, &identity).unwrap();
    store_chain(&store, &identity, 0, BLOCKS);
    store
}

/// Names, sizes, times and inodes of a folder and its files.
fn seen(path: &Path) -> Vec<(PathBuf, u64, i64, i64, u64)> {
    let entries = fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut all: Vec<_> = entries.chain([path.to_owned()]).collect();
    all.sort();
    let look = |path: PathBuf| {
        let at = fs::metadata(&path).unwrap();
        (path, at.len(), at.mtime_nsec(), at.ctime_nsec(), at.ino())
    };
    all.into_iter().map(look).collect()
}

/// Inspects a folder and reads all of its blocks.
fn check_read(path: &Path) -> Inspection {
    let identity = usual();
    let inspection = Inspection::open(path).unwrap();
    let group = inspection.only().unwrap();
    assert_eq!(group.blocks().len() as u64, BLOCKS);
    assert!(group.torn().is_empty() && group.unreadable().is_empty());
    let mut buffer = content(99, &identity);
    for index in 0..usize::try_from(BLOCKS).unwrap() {
        group.read(index, &mut buffer).unwrap();
        assert!(buffer == content(index as u64, &identity));
    }
    inspection
}

#[test]
fn looking_writes_nothing_and_needs_no_lock_file() {
    let folder = tempfile::tempdir().unwrap();
    drop(tier(folder.path()));
    for file in ["lock", "manifest.json.partial"] {
        let before = seen(folder.path());
        let inspection = check_read(folder.path());
        assert!(matches!(inspection.usage(), FolderUsage::Unused));
        assert_eq!(seen(folder.path()), before);
        drop(fs::remove_file(folder.path().join(file)));
    }
}

#[test]
fn another_user_reads_a_folder_that_is_not_writable_for_it() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("tier");
    drop(tier(&path));
    if !rustix_is_root(&path) {
        println!("skipped: only the superuser becomes another user");
        return;
    }
    for entry in fs::read_dir(&path).unwrap() {
        fs::set_permissions(entry.unwrap().path(), fs::Permissions::from_mode(0o444)).unwrap();
    }
    let open_to_all = fs::Permissions::from_mode(0o555);
    fs::set_permissions(&path, open_to_all.clone()).unwrap();
    fs::set_permissions(parent.path(), open_to_all).unwrap();
    // Also with a lock file that the reader may not read.
    for lock in [0o444, 0o000] {
        fs::set_permissions(path.join("lock"), fs::Permissions::from_mode(lock)).unwrap();
        let before = seen(&path);
        let mut reader = Command::new(std::env::current_exe().unwrap());
        reader.args([
            "--exact",
            "read_only::the_reader_that_is_another_user",
            "--nocapture",
        ]);
        reader
            .env(FOLDER, &path)
            .current_dir("/")
            .uid(65_534)
            .gid(65_534);
        let ran = match reader.output() {
            Ok(ran) => ran,
            Err(error) => {
                println!("skipped: another user cannot start this test: {error}");
                return;
            }
        };
        let said = String::from_utf8_lossy(&ran.stdout).into_owned();
        assert!(
            ran.status.success() && said.contains("read all of it"),
            "{said}"
        );
        assert_eq!(seen(&path), before);
    }
    // So that the folder can be removed without the right to override modes.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    fs::set_permissions(parent.path(), fs::Permissions::from_mode(0o700)).unwrap();
}

/// Whether this process is the superuser, which may change owners.
fn rustix_is_root(path: &Path) -> bool {
    chown(path, Some(0), None).is_ok() && fs::metadata(path).unwrap().uid() == 0
}

/// Not a test: the reader. Without the variable it does nothing.
#[test]
fn the_reader_that_is_another_user() {
    let Ok(folder) = std::env::var(FOLDER) else {
        return;
    };
    let path = Path::new(&folder);
    check_read(path);
    let identity = usual();
    let opened = SlotStore::create_or_open(path, &room_for(8, &identity), &identity);
    assert!(
        matches!(opened, Err(TierError::Folder(FolderError::File { .. }))),
        "{opened:?}"
    );
    println!("read all of it");
}

#[test]
fn a_read_only_mount_can_be_inspected_and_not_opened() {
    let parent = tempfile::tempdir().unwrap();
    let (path, at) = (parent.path().join("tier"), parent.path().join("mount"));
    drop(tier(&path));
    fs::create_dir(&at).unwrap();
    if let Err(errno) = mount_bind(&path, &at) {
        println!("skipped: no mount can be made here: {errno}");
        return;
    }
    let flags = MountFlags::RDONLY | MountFlags::BIND;
    let remounted = mount_remount(&at, flags, "");
    let checked = std::panic::catch_unwind(|| {
        check_read(&at);
        let identity = usual();
        let opened = SlotStore::create_or_open(&at, &room_for(8, &identity), &identity);
        assert!(
            matches!(opened, Err(TierError::Folder(FolderError::File { .. }))),
            "{opened:?}"
        );
        // In use through the writable mount, as seen through the read-only one.
        let (store, _) =
            SlotStore::create_or_open(&path, &room_for(8, &identity), &identity).unwrap();
        assert!(matches!(check_read(&at).usage(), FolderUsage::Used(_)));
        drop(store);
    });
    unmount(&at, UnmountFlags::DETACH).unwrap();
    remounted.unwrap();
    assert!(checked.is_ok());
}

/// A cache writes during an inspection: a read returns the original block or `Replaced`, and never
/// reports damage.
#[test]
fn a_reader_beside_a_writer_gets_intact_blocks_or_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let identity = usual();
    let store = tier(folder.path());
    let inspection = check_read(folder.path());
    let FolderUsage::Used(holder) = inspection.usage() else {
        panic!("{:?}", inspection.usage());
    };
    assert_eq!(holder.pid, Some(std::process::id()));
    // Block 1 is erased, its record on the disk too, and its place is rewritten.
    store.erase(&[1]).unwrap();
    assert!(store.sync().failure.is_none());
    // Unused places are allocated first.
    for (number, slot) in (10..).zip([1, 3, 4, 5, 6, 3]) {
        let bytes = content(number, &identity);
        if store.state(slot) != SlotState::Empty {
            store.erase(&[slot]).unwrap();
        }
        assert!(
            store
                .write(&[write(slot, number, &bytes)])
                .failed
                .is_empty()
        );
    }
    let mut buffer = content(99, &identity);
    inspection.only().unwrap().read(0, &mut buffer).unwrap();
    assert!(matches!(
        inspection.only().unwrap().read(1, &mut buffer),
        Err(SlotMiss::Replaced)
    ));
    inspection.only().unwrap().read(2, &mut buffer).unwrap();
    assert!(store.holds(0, &key(0)));
}

#[test]
fn readers_that_never_stop_see_no_damage_while_a_store_writes() {
    let folder = tempfile::tempdir().unwrap();
    let identity = usual();
    let store = tier(folder.path());
    let ends = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut read = 0;
            let mut buffer = content(99, &identity);
            while !ends.load(std::sync::atomic::Ordering::Relaxed) {
                let inspection = Inspection::open(folder.path()).unwrap();
                let group = inspection.only().unwrap();
                assert!(group.torn().is_empty(), "a record is torn");
                for (index, block) in group.blocks().enumerate() {
                    match group.read(index, &mut buffer) {
                        Ok(()) => {
                            let number = u64::from(block.position);
                            assert!(buffer == content(number, &identity), "block {number}");
                            read += 1;
                        }
                        Err(SlotMiss::Replaced) => {}
                        Err(miss) => panic!("{miss}"),
                    }
                }
            }
            read
        });
        // The guard also ends the reader when a write fails.
        let end = EndOfReading(&ends);
        for number in 10..200 {
            let slot = u32::try_from(number % 7).unwrap();
            store.erase(&[slot]).unwrap();
            let bytes = content(number, &identity);
            assert!(
                store
                    .write(&[write(slot, number, &bytes)])
                    .failed
                    .is_empty()
            );
            assert!(store.sync().failure.is_none());
        }
        drop(end);
        assert!(reader.join().unwrap() > 0);
    });
}

struct EndOfReading<'a>(&'a std::sync::atomic::AtomicBool);

impl Drop for EndOfReading<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}
