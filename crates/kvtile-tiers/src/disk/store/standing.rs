//! The open folder that the stores of all groups share, and the check that its open files are still
//! those of the folder.
//!
//! A removed or replaced file accepts writes and syncs without an error, and its content disappears
//! with the process. So the store compares the names with its open files before it reports anything
//! as durable and before it writes blocks. The check costs a few lookups of names that the kernel
//! has cached. It does not notice that another process writes into `records` or `slots` without
//! changing their names; checksums detect that when a block is read.

use std::sync::Arc;

use kvtile_memory::ProcessMark;

use super::{
    super::{
        manifest::{MANIFEST_BYTES_MAX, MANIFEST_FILE, Manifest, file_name},
        medium::{Medium, MediumFile, MediumLock, NameStanding, OpenFile},
    },
    lend::FolderLending,
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

/// The two open data files of a group.
#[derive(Debug)]
pub(super) struct DataFiles {
    pub(super) slots: Box<dyn MediumFile>,
    pub(super) slots_name: String,
    pub(super) records: Box<dyn MediumFile>,
    pub(super) records_name: String,
}

/// An open folder: what the stores of its groups share.
#[derive(Debug)]
pub(super) struct HeldFolder {
    pub(super) medium: Arc<dyn Medium>,
    pub(super) manifest: Manifest,
    pub(super) held_manifest: HeldManifest,
    /// The files of each group, in the order of the groups.
    pub(super) files: Vec<Arc<DataFiles>>,
    /// `None` if each group keeps its share.
    pub(super) lending: Option<FolderLending>,
    /// The process that opened the folder: a forked child has neither its lock nor its threads.
    pub(super) process: ProcessMark,
    /// Held until the last store of the folder is dropped.
    pub(super) _lock: Box<dyn MediumLock>,
}

impl HeldFolder {
    /// Fails if the folder or one of its files, of any group, is no longer the one that was opened.
    pub(super) fn check_files(&self) -> Result<(), TierError> {
        let folder = self.medium.standing();
        let folder = folder.map_err(|error| TierError::file("look at", self.medium.name(), error));
        check(folder?, || self.medium.name())?;
        let manifest = (MANIFEST_FILE, &*self.held_manifest.file);
        let data = self.files.iter().flat_map(|files| {
            let records = (files.records_name.as_str(), &*files.records);
            [records, (files.slots_name.as_str(), &*files.slots)]
        });
        for (name, file) in std::iter::once(manifest).chain(data) {
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

    /// Fails in a forked child of the process that opened the folder: the lock belongs to the
    /// parent, and another process may hold the folder by now.
    pub(super) fn check_process(&self) -> Result<(), TierError> {
        match self.process.is_current() {
            true => Ok(()),
            false => Err(TierError::Folder(FolderError::Forked {
                opened_by: self.process.id(),
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
