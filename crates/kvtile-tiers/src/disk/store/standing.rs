//! Checks that the files that a store has open are still those of its folder.
//!
//! A removed or replaced file accepts writes and syncs without an error, and its content disappears
//! with the process. So the store compares the names with its open files before it reports anything
//! as durable and before it writes blocks. The check costs a few lookups of names that the kernel
//! has cached. It does not notice that another process writes into `records` or `slots` without
//! changing their names; checksums detect that when a block is read.

use super::{
    super::{
        folder::{RECORDS_FILE, SLOTS_FILE},
        manifest::{MANIFEST_BYTES_MAX, MANIFEST_FILE, file_name},
        medium::{Medium, MediumFile, NameStanding, OpenFile},
    },
    SlotStore,
};
use crate::error::{FileChange, FolderError, TierError};

/// The open manifest of a folder, with its content.
#[derive(Debug)]
pub(super) struct HeldManifest {
    file: Box<dyn MediumFile>,
    bytes: Vec<u8>,
}

impl HeldManifest {
    /// Keeps the manifest open, so that another file with its name is recognised.
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
    /// Fails if the folder or one of its files is no longer the one that was opened.
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
            false => Err(TierError::Folder(FolderError::FileGone {
                file: name(),
                change: FileChange::Overwritten,
            })),
        }
    }
}

fn check(standing: NameStanding, file: impl FnOnce() -> String) -> Result<(), TierError> {
    let change = match standing {
        NameStanding::Same => return Ok(()),
        NameStanding::Removed => FileChange::Removed,
        NameStanding::Replaced => FileChange::Replaced,
        NameStanding::Cut { length_bytes } => FileChange::Cut { length_bytes },
    };
    Err(TierError::Folder(FolderError::FileGone {
        file: file(),
        change,
    }))
}
