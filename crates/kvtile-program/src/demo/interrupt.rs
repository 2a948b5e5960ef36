//! Ctrl-C: the files of the run go with it.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;

/// Exit code of a program that was interrupted, as shells count.
const INTERRUPTED: i32 = 130;

/// Removes a folder when the program is told to stop, and stops it.
pub(super) struct OnInterrupt {
    folder: Arc<Mutex<Option<PathBuf>>>,
}

impl OnInterrupt {
    /// Listens for SIGINT, SIGTERM and SIGHUP from now on.
    pub(super) fn install() -> OnInterrupt {
        let folder = Arc::new(Mutex::new(None::<PathBuf>));
        let shared = Arc::clone(&folder);
        // Where no handler can be had, the next run removes what this one leaves.
        let _ = ctrlc::set_handler(move || {
            let folder = shared.lock().take();
            if let Some(folder) = folder {
                // What cannot be removed now is removed by the next run.
                let _ = fs::remove_dir_all(folder);
            }
            std::process::exit(INTERRUPTED);
        });
        OnInterrupt { folder }
    }

    /// The folder to remove.
    pub(super) fn remove(&self, folder: &Path) {
        let mut guard = self.folder.lock();
        *guard = Some(folder.to_owned());
    }
}
