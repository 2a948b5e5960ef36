//! The folder of a run, which is removed when the run ends.
//!
//! Its process holds a lock on it. The folder of a killed process has no lock any more, and the
//! next run removes it.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::DemoError;

/// Prefix of folders that are removed with their run.
const RUNNING: &str = "demo-run-";
/// Prefix of folders that are kept.
const KEPT: &str = "demo-kept-";
/// Attempts to create and lock a folder.
const TRIES: usize = 8;

/// The folder of one run.
#[derive(Debug)]
pub(super) struct RunFolder {
    folder: Option<TempDir>,
    path: PathBuf,
    keep: bool,
    _lock: File,
}

impl RunFolder {
    /// Creates a folder in `cache`, and `cache` itself if needed.
    pub(super) fn begin(cache: &Path, keep: bool) -> Result<Self, DemoError> {
        let failed = |action, source| DemoError::Io {
            action,
            path: cache.to_owned(),
            source,
        };
        fs::create_dir_all(cache).map_err(|source| failed("create the folder", source))?;
        // An absolute path, because the second process may have another working directory.
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

    /// Ends the run. Returns the folder's path if it is kept.
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

/// Locks a folder; `None` where another run holds the lock or has removed the folder as abandoned.
fn lock(folder: &Path) -> Option<File> {
    let lock = File::open(folder).ok()?;
    if let Err(fs::TryLockError::WouldBlock) = lock.try_lock() {
        return None;
    }
    // On a filesystem without locks, other runs cannot lock the folder and so never remove it.
    let (ours, there) = (lock.metadata().ok()?, fs::metadata(folder).ok()?);
    ((ours.dev(), ours.ino()) == (there.dev(), there.ino())).then_some(lock)
}

/// Removes the folders of ended runs. This is best effort: a failed removal leaves the folder.
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

    /// Pitfall 35: temporary files of killed processes remain.
    #[test]
    fn folders_of_killed_runs_are_removed_and_those_of_live_runs_stay() {
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
