//! The folder of a run: there while the run lives, gone afterwards.
//!
//! It is locked while its process lives. What a killed process left has no lock any
//! more, and the next run removes it.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::DemoError;

/// Names of folders that go with their run.
const RUNNING: &str = "demo-run-";
/// Names of folders that stay.
const KEPT: &str = "demo-kept-";
/// Times that a folder is made before giving up on locking one.
const TRIES: usize = 8;

/// A folder of its own for one run.
#[derive(Debug)]
pub(super) struct RunFolder {
    folder: Option<TempDir>,
    path: PathBuf,
    keep: bool,
    _lock: File,
}

impl RunFolder {
    /// Makes a folder in `cache`, which is created when needed.
    pub(super) fn begin(cache: &Path, keep: bool) -> Result<Self, DemoError> {
        let failed = |action, source| DemoError::Io {
            action,
            path: cache.to_owned(),
            source,
        };
        fs::create_dir_all(cache).map_err(|source| failed("create the folder", source))?;
        // The second process must find it, wherever it is started.
        let cache = fs::canonicalize(cache).map_err(|source| failed("find", source))?;
        remove_abandoned(&cache);
        for _ in 0..TRIES {
            let folder = tempfile::Builder::new()
                .prefix(if keep { KEPT } else { RUNNING })
                .tempdir_in(&cache)
                .map_err(|source| failed("create a folder in", source))?;
            if let Some(lock) = lock(folder.path()) {
                return Ok(Self {
                    path: folder.path().to_owned(),
                    folder: Some(folder),
                    keep,
                    _lock: lock,
                });
            }
        }
        let source = std::io::ErrorKind::WouldBlock.into();
        Err(failed("lock a folder in", source))
    }

    /// Its path, absolute.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Ends the run: the folder's path if it stays.
    ///
    /// # Errors
    /// A folder that cannot be removed.
    pub(super) fn finish(mut self) -> Result<Option<PathBuf>, DemoError> {
        let Some(folder) = self.folder.take() else {
            return Ok(None);
        };
        if self.keep {
            return Ok(Some(folder.keep()));
        }
        let path = folder.path().to_owned();
        let closed = folder.close();
        closed.map_err(|source| DemoError::Io {
            action: "remove",
            path,
            source,
        })?;
        Ok(None)
    }
}

/// The lock on a folder, unless somebody took it for an abandoned one.
fn lock(folder: &Path) -> Option<File> {
    let lock = File::open(folder).ok()?;
    if let Err(fs::TryLockError::WouldBlock) = lock.try_lock() {
        return None;
    }
    // A filesystem without locks has nobody who removes either.
    let (ours, there) = (lock.metadata().ok()?, fs::metadata(folder).ok()?);
    ((ours.dev(), ours.ino()) == (there.dev(), there.ino())).then_some(lock)
}

/// Removes the folders whose runs are gone. A courtesy: what cannot be removed stays.
fn remove_abandoned(cache: &Path) {
    for entry in fs::read_dir(cache).into_iter().flatten().flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with(RUNNING);
        if !ours || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let lock = File::open(entry.path());
        if lock.is_ok_and(|folder| folder.try_lock().is_ok()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(cache: &Path) -> Vec<String> {
        let entries = fs::read_dir(cache).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect()
    }

    /// Pitfall 35: temporary files left by killed processes.
    #[test]
    fn what_a_killed_run_left_is_removed_and_what_lives_is_not() {
        let cache = tempfile::tempdir().unwrap();
        let left = cache.path().join("demo-run-killed");
        fs::create_dir(&left).unwrap();
        fs::write(left.join("file"), "x").unwrap();
        fs::create_dir(cache.path().join("demo-kept-before")).unwrap();
        let alive = RunFolder::begin(cache.path(), false).unwrap();
        assert!(!left.exists());
        let other = RunFolder::begin(cache.path(), false).unwrap();
        assert!(alive.path().exists() && other.path().exists());
        drop(other);
        assert_eq!(alive.finish().unwrap(), None);
        assert_eq!(names(cache.path()), ["demo-kept-before"]);
    }

    #[test]
    fn a_kept_folder_stays_and_a_failed_run_leaves_none() {
        let cache = tempfile::tempdir().unwrap();
        let kept = RunFolder::begin(cache.path(), true).unwrap();
        let path = kept.finish().unwrap().unwrap();
        assert!(path.is_dir());
        drop(RunFolder::begin(cache.path(), true).unwrap());
        assert_eq!(names(cache.path()).len(), 1);
    }
}
