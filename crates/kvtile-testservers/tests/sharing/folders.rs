//! A file system with two mounts: what several machines share.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use kvtile_shared::{
    folder::{FolderStore, FolderStoreSettings},
    store::{Deadline, SharedStore, StoreErrorKind, ValueName},
    sweep::{SweepSettings, sweep},
    tier::SharedTierSettings,
};
use kvtile_testkit::shared::{OpenStoreAt, SharedTierRig, check_above_store, check_store};

use kvtile_testservers::{
    mount::{MountedFolder, SmallDisk},
    process::ServerError,
};
use kvtile_tiers::disk::medium::{FolderMedium, Medium};
use tempfile::TempDir;

use crate::{server::TestServer, table::SuiteOutcome};

/// The next place for a store.
static NEXT: AtomicUsize = AtomicUsize::new(0);

pub(crate) fn check(server: &mut TestServer) -> SuiteOutcome {
    let Some(seaweed) = server.seaweed() else {
        return SuiteOutcome::DoesNotApply;
    };
    let folders = [TempDir::new().unwrap(), TempDir::new().unwrap()];
    let mount = |folder: &TempDir| MountedFolder::mount(&server.servers, seaweed, folder.path());
    let mounts = match (mount(&folders[0]), mount(&folders[1])) {
        (Ok(one), Ok(other)) => [one, other],
        (Err(error @ ServerError::NotInstalled { .. }), _) => {
            return SuiteOutcome::NotHere(error.to_string());
        }
        (Err(error), _) | (_, Err(error)) => panic!("{error}"),
    };
    refuses_disk_folder(&mounts);
    let full = full_disk();
    let stores = || -> OpenStoreAt {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let paths = mounts
            .each_ref()
            .map(|mount| mount.path.join(format!("store-{number}")));
        let turn = AtomicUsize::new(0);
        Box::new(move || {
            // Each opening is on the other mount, as on another machine.
            let path = &paths[turn.fetch_add(1, Ordering::Relaxed) % 2];
            Arc::new(FolderStore::open(path, FolderStoreSettings::new()).unwrap())
        })
    };
    check_store(&stores);
    check_above_store(&stores);
    SuiteOutcome::Passed(format!(
        "(disk folder refused; a shared folder on two mounts; {full})"
    ))
}

/// A disk tier does not use the folder: its lock would bind one mount only.
fn refuses_disk_folder(mounts: &[MountedFolder; 2]) {
    for mount in mounts {
        let medium: Arc<dyn Medium> = Arc::new(FolderMedium::new(mount.path.join("disk")));
        let refused = medium.create().unwrap_err().to_string();
        assert!(refused.contains("fuse.seaweedfs"), "{refused}");
        assert!(!mount.path.join("disk").exists());
    }
}

/// A full disk: writes are lost and counted, what is there is served, and after a sweep writes succeed again.
fn full_disk() -> String {
    let folder = TempDir::new().unwrap();
    let disk = match SmallDisk::mount(folder.path()) {
        Ok(disk) => disk,
        Err(error @ ServerError::NotInstalled { .. }) => return error.to_string(),
        Err(error) => panic!("{error}"),
    };
    let store: Arc<dyn SharedStore> =
        Arc::new(FolderStore::open(disk.path.join("store"), FolderStoreSettings::new()).unwrap());
    let settings = SharedTierSettings::new().bundle_blocks(4);
    // Bundles of 64 KiB, one after the other.
    let rig = SharedTierRig::open(Arc::clone(&store), settings, (64, 0));
    let mut chains = (0..).map(|number| SharedTierRig::chain(number, 4));
    let mut written = Vec::new();
    while rig.tier().counters().write_failed == 0 {
        let chain = chains.next().unwrap();
        let before = rig.tier().counters().written;
        drop(rig.write(&chain));
        if rig.tier().counters().written > before {
            written.push(chain);
        }
        assert!(written.len() < 100, "the disk is not full");
    }
    assert!(written.len() > 8, "{} bundles", written.len());
    let error = store.write(
        &ValueName::new("more").unwrap(),
        &[&[1; 100_000]],
        None,
        Deadline::within(Duration::from_secs(20)),
    );
    assert_eq!(error.unwrap_err().kind(), StoreErrorKind::Refused);
    // No unfinished file is left, and what was written is there.
    let begun = std::fs::read_dir(disk.path.join("store/.kvtile-new")).unwrap();
    assert_eq!(begun.count(), 0);
    for chain in &written {
        rig.read_all(chain);
    }
    let swept = sweep(&*store, &SweepSettings::new(1).low_mark(0.0)).unwrap();
    assert_eq!(swept.removed, written.len() as u64);
    let again = chains.next().unwrap();
    drop(rig.write(&again));
    rig.read_all(&again);
    format!("a disk full after {} bundles", written.len())
}
