//! A file system with two mounts: what several machines share.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use kvtile_shared::folder::{FolderStore, FolderStoreSettings};
use kvtile_testkit::shared::{OpenStoreAt, check_above_store, check_store};

use kvtile_testservers::{mount::MountedFolder, process::ServerError};
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
    SuiteOutcome::Passed("(disk folder refused; a shared folder on two mounts)".to_owned())
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
