//! The cache folder: checks of its files, and the lock and work folder of a fetch.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::{FetchProgress, FetchStage, PinnedFile};
use crate::DemoError;
use crate::hash::hexadecimal;

/// Bytes per read.
const CHUNK_BYTES: usize = 1 << 20;

/// Adds the action and the path to an I/O error.
pub(super) fn io<T>(
    action: &'static str,
    path: &Path,
    result: std::io::Result<T>,
) -> Result<T, DemoError> {
    result.map_err(|source| DemoError::Io {
        action,
        path: path.to_owned(),
        source,
    })
}

/// Whether the cache holds the pinned file, complete and unchanged.
pub(super) fn holds(
    path: &Path,
    pin: &PinnedFile<'_>,
    progress: &mut dyn FnMut(FetchProgress),
) -> Result<bool, DemoError> {
    match check(path, pin.bytes, pin.sha256, progress) {
        Ok(()) => Ok(true),
        Err(DemoError::HashMismatch { .. }) => Ok(false),
        Err(DemoError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Checks the digest of a file.
pub(super) fn check(
    path: &Path,
    total_bytes: u64,
    expected: &str,
    progress: &mut dyn FnMut(FetchProgress),
) -> Result<(), DemoError> {
    let mut file = io("open", path, File::open(path))?;
    let mut hash = Sha256::new();
    let mut done_bytes = 0;
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let count = io("read", path, file.read(&mut chunk))?;
        let Some(bytes) = chunk.get(..count).filter(|bytes| !bytes.is_empty()) else {
            break;
        };
        hash.update(bytes);
        done_bytes += bytes.len() as u64;
        progress(FetchProgress {
            stage: FetchStage::Checking,
            done_bytes,
            total_bytes,
        });
    }
    matches(path, expected, hash)
}

/// Compares a finished digest with the pinned one.
pub(super) fn matches(path: &Path, expected: &str, hash: Sha256) -> Result<(), DemoError> {
    let found = hexadecimal(&hash.finalize());
    if found == expected {
        return Ok(());
    }
    let file = path.display().to_string();
    Err(DemoError::HashMismatch {
        file,
        expected: expected.to_owned(),
        found,
    })
}

/// The lock and the work folder of one fetch. Dropping it removes the folder and releases the lock.
#[derive(Debug)]
pub(super) struct FetchWork {
    folder: TempDir,
    _lock: File,
}

impl FetchWork {
    /// Waits for the lock, removes the folders of killed processes, and creates a work folder.
    pub(super) fn begin(
        cache: &Path,
        pin: &PinnedFile<'_>,
        progress: &mut dyn FnMut(FetchProgress),
    ) -> Result<Self, DemoError> {
        io("create the folder", cache, std::fs::create_dir_all(cache))?;
        let path = cache.join(format!(".{}.lock", pin.file_name));
        let lock = io("create", &path, File::create(&path))?;
        if lock.try_lock().is_err() {
            let (done_bytes, total_bytes) = (0, pin.bytes);
            progress(FetchProgress {
                stage: FetchStage::Waiting,
                done_bytes,
                total_bytes,
            });
            io("lock", &path, lock.lock())?;
        }
        let prefix = format!(".{}.part-", pin.file_name);
        for left in left_overs(cache, &prefix)? {
            io("remove", &left, std::fs::remove_dir_all(&left))?;
        }
        let folder = tempfile::Builder::new().prefix(&prefix).tempdir_in(cache);
        Ok(Self {
            folder: io("create a folder in", cache, folder)?,
            _lock: lock,
        })
    }

    /// The work folder.
    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// Abandoned work folders: this process holds the lock, so no other fetch is running.
fn left_overs(cache: &Path, prefix: &str) -> Result<Vec<PathBuf>, DemoError> {
    let mut found = Vec::new();
    for entry in io("list", cache, std::fs::read_dir(cache))? {
        let entry = io("list", cache, entry)?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            found.push(entry.path());
        }
    }
    Ok(found)
}
