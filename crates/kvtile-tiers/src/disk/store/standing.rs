//! Whether the files that a store has open are still those of its folder.
//!
//! A file that was removed or replaced goes on taking writes and syncs without a word, and all of
//! that is gone with the process. So names are compared with what was opened before anything is said
//! to be durable, and before a block is written. It costs a few looks at names that the system has in
//! memory. What others write into `records` and `slots` without changing their names is not seen
//! here; checksums see it when a block is read.

use super::{
    super::{
        folder::{RECORDS_FILE, SLOTS_FILE},
        manifest::{MANIFEST_BYTES_MAX, MANIFEST_FILE, file_name},
        medium::{Medium, MediumFile, OpenFile, Standing},
    },
    SlotStore,
};
use crate::error::{FileChange, TierError};

/// The manifest of an open folder.
#[derive(Debug)]
pub(super) struct HeldManifest {
    file: Box<dyn MediumFile>,
    bytes: Vec<u8>,
}

impl HeldManifest {
    /// Keeps the manifest open, so that another file cannot pass for it.
    pub(super) fn open(medium: &dyn Medium) -> Result<HeldManifest, TierError> {
        let failed = |error| TierError::file("read", file_name(medium, MANIFEST_FILE), error);
        let bytes = medium.read(MANIFEST_FILE, MANIFEST_BYTES_MAX);
        let bytes = bytes.map_err(failed)?;
        let how = OpenFile {
            length_bytes: bytes.len() as u64,
            writable: false,
            direct: false,
            preallocate: false,
        };
        let file = medium.open(MANIFEST_FILE, &how).map_err(failed)?;
        Ok(HeldManifest { file, bytes })
    }

    fn is_whole(&self) -> std::io::Result<bool> {
        let mut now = vec![0; self.bytes.len()];
        self.file.read_exact_at(0, &mut now)?;
        Ok(now == self.bytes)
    }
}

impl SlotStore {
    /// Fails where the folder or one of its files is no longer what was opened.
    pub(super) fn check_files(&self) -> Result<(), TierError> {
        let folder = self.medium.standing();
        let folder = folder.map_err(|error| TierError::file("look at", self.medium.name(), error));
        check(folder?, || self.medium.name())?;
        let files = [
            (MANIFEST_FILE, &*self.held_manifest.file),
            (RECORDS_FILE, &*self.records),
            (SLOTS_FILE, &*self.slots),
        ];
        for (name, file) in files {
            let name = || file_name(&*self.medium, name);
            let standing = file.standing();
            let standing = standing.map_err(|error| TierError::file("look at", name(), error));
            check(standing?, name)?;
        }
        let name = || file_name(&*self.medium, MANIFEST_FILE);
        let whole = self.held_manifest.is_whole();
        match whole.map_err(|error| TierError::file("read", name(), error))? {
            true => Ok(()),
            false => Err(TierError::FileGone {
                file: name(),
                change: FileChange::Overwritten,
            }),
        }
    }
}

fn check(standing: Standing, file: impl FnOnce() -> String) -> Result<(), TierError> {
    let change = match standing {
        Standing::Same => return Ok(()),
        Standing::Removed => FileChange::Removed,
        Standing::Replaced => FileChange::Replaced,
        Standing::Cut { length_bytes } => FileChange::Cut { length_bytes },
    };
    Err(TierError::FileGone {
        file: file(),
        change,
    })
}
