//! Ctrl-C: removes the files of the run.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;

/// Exit code after an interrupt, in the shell's convention.
const INTERRUPTED: i32 = 130;

/// Removes a folder when a signal stops the program.
pub(super) struct OnInterrupt {
    folder: Arc<Mutex<Option<PathBuf>>>,
}

impl OnInterrupt {
    /// Installs handlers for SIGINT, SIGTERM and SIGHUP.
    pub(super) fn install() -> OnInterrupt {
        let folder = Arc::new(Mutex::new(None::<PathBuf>));
        let shared = Arc::clone(&folder);
        // Without a handler, the next run removes the files that this one leaves.
        let _ = ctrlc::set_handler(move || {
            let folder = shared.lock().take();
            if let Some(folder) = folder {
                // If the removal fails, the next run removes the folder.
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
