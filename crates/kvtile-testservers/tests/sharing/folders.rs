//! A file system with two mounts: what several machines share.

use std::sync::Arc;

use kvtile_testservers::{mount::MountedFolder, process::ServerError};
use kvtile_tiers::disk::medium::{FolderMedium, Medium};
use tempfile::TempDir;

use crate::{server::TestServer, table::SuiteOutcome};

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
    SuiteOutcome::Passed("(two mounts)".to_owned())
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
