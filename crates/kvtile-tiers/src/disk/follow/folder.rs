//! The folder that a follower watches: what it was at the last refresh, and its open files.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use kvtile_layout::{broken, identity::Difference};

use super::{
    super::{
        capacity,
        folder::{self, RECORDS_FILE, SLOTS_FILE},
        manifest::{MANIFEST_BYTES_MAX, MANIFEST_FILE, Manifest, ManifestGroup, file_name},
        medium::{Medium, MediumFile, NameStanding, OpenFile},
        record::{RecordForm, StoreId},
    },
    index::FollowedIndex,
};
use crate::{
    error::{MismatchError, TierError},
    tier::{BlockPieces, TierGroup},
};

/// The state of a followed folder at the last refresh.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum FollowCondition {
    /// The folder does not exist, or has no manifest: no process has created it yet, or it was
    /// cleared.
    Missing,
    /// The folder belongs to another identity, layout or block size. The follower has no blocks.
    Differs {
        /// The first field that differs.
        difference: Difference,
    },
    /// The manifest is damaged, or of another version. The follower has no blocks.
    Unusable {
        /// What is wrong with it.
        error: TierError,
    },
    /// The follower has the blocks of the folder.
    Followed,
}

/// The view that lookups and reads have of one group.
#[derive(Debug, Default)]
pub(super) struct FollowedGroup {
    /// `None` while there is no folder to follow.
    pub(super) files: Option<Arc<FollowedFiles>>,
    pub(super) index: FollowedIndex,
}

/// The open files of a group, as long as they were when they were opened.
#[derive(Debug)]
pub(super) struct FollowedFiles {
    pub(super) store: StoreId,
    pub(super) form: RecordForm,
    pub(super) pieces: BlockPieces,
    pub(super) slot_bytes: u64,
    /// Places whose records the file has.
    pub(super) places: u32,
    pub(super) records: FollowedFile,
    pub(super) slots: FollowedFile,
}

/// A file that is open for reading; `None` if it is missing or empty.
#[derive(Debug)]
pub(super) struct FollowedFile {
    file: Option<Box<dyn MediumFile>>,
    bytes: u64,
}

/// What the last refresh found in the folder; only one refresh at a time has it.
#[derive(Debug)]
pub(super) struct FolderWatch {
    /// The bytes of the manifest that `condition` describes.
    pub(super) manifest_bytes: Option<Vec<u8>>,
    /// The manifest, if the folder is followed.
    pub(super) manifest: Option<Manifest>,
    pub(super) condition: FollowCondition,
    /// `None` if the records must be compared regardless of their time.
    pub(super) compared: Option<ComparedRecords>,
    /// Whether the last refresh failed: the log reports only the first failure.
    pub(super) is_failing: bool,
}

/// When the records were last compared.
#[derive(Clone, Copy, Debug)]
pub(super) struct ComparedRecords {
    /// The time of the file before the comparison, if it was long enough ago that every later write
    /// changes it.
    pub(super) modified: Option<SystemTime>,
    /// When the comparison began, by the clock of the cache.
    pub(super) began: Duration,
}

impl FolderWatch {
    pub(super) fn new() -> FolderWatch {
        FolderWatch {
            manifest_bytes: None,
            manifest: None,
            condition: FollowCondition::Missing,
            compared: None,
            is_failing: false,
        }
    }

    /// The error of a folder that exists and cannot be followed.
    pub(super) fn refusal(&self, medium: &dyn Medium) -> Option<TierError> {
        match &self.condition {
            FollowCondition::Missing | FollowCondition::Followed => None,
            FollowCondition::Differs { difference } => {
                Some(TierError::Mismatch(MismatchError::FolderDiffers {
                    folder: medium.name(),
                    difference: difference.clone(),
                }))
            }
            FollowCondition::Unusable { error } => Some(error.clone()),
        }
    }
}

/// The bytes of the manifest; `None` if there is none.
pub(super) fn manifest_bytes(medium: &dyn Medium) -> Result<Option<Vec<u8>>, TierError> {
    let failed = |error| TierError::file("read", file_name(medium, MANIFEST_FILE), error);
    if medium.length(MANIFEST_FILE).map_err(failed)?.is_none() {
        return Ok(None);
    }
    match medium.read(MANIFEST_FILE, MANIFEST_BYTES_MAX) {
        // Removed since the check of its length.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some).map_err(failed),
    }
}

/// Whether a manifest can be followed by a tier with this identity, and as what.
pub(super) fn judge(
    bytes: &[u8],
    medium: &dyn Medium,
    group: &TierGroup,
) -> (FollowCondition, Option<Manifest>) {
    match Manifest::from_bytes(bytes, medium) {
        Err(error) => (FollowCondition::Unusable { error }, None),
        Ok(manifest) => {
            match manifest.check(&manifest.cut_as_stored(std::slice::from_ref(group)), medium) {
                Ok(()) => (FollowCondition::Followed, Some(manifest)),
                Err(TierError::Mismatch(MismatchError::FolderDiffers { difference, .. })) => {
                    (FollowCondition::Differs { difference }, None)
                }
                Err(error) => (FollowCondition::Unusable { error }, None),
            }
        }
    }
}

impl FollowedFiles {
    /// Opens the files of a folder. A file that is shorter than the manifest states is used as far
    /// as it goes.
    pub(super) fn open(
        medium: &dyn Medium,
        manifest: &Manifest,
    ) -> Result<FollowedFiles, TierError> {
        let pieces = only(manifest).pieces()?;
        let form = RecordForm::of(&pieces);
        let [records, slots] = lengths(medium, manifest, form)?;
        let places = u32::try_from(records / form.stride()).unwrap_or(u32::MAX);
        Ok(FollowedFiles {
            store: manifest.store(0),
            form,
            pieces,
            slot_bytes: only(manifest).slot_bytes(),
            places: places.min(only(manifest).slots()),
            records: FollowedFile::open(medium, (RECORDS_FILE, records), false)?,
            slots: FollowedFile::open(medium, (SLOTS_FILE, slots), true)?,
        })
    }

    /// Whether the names of the files still refer to these files, with the same lengths.
    pub(super) fn are_current(&self, medium: &dyn Medium, manifest: &Manifest) -> bool {
        let now = lengths(medium, manifest, self.form);
        let as_opened = [self.records.bytes, self.slots.bytes];
        now.is_ok_and(|now| now == as_opened) && self.are_named()
    }

    /// Whether the names of the files still refer to these files.
    pub(super) fn are_named(&self) -> bool {
        self.records.is_named() && self.slots.is_named()
    }
}

/// The only group of a folder that can be followed.
fn only(manifest: &Manifest) -> &ManifestGroup {
    match manifest.groups() {
        [group] => group,
        groups => broken(format_args!("{} groups of a followed folder", groups.len())),
    }
}

/// Bytes of the records and of the slots, at most those that the manifest states.
fn lengths(
    medium: &dyn Medium,
    manifest: &Manifest,
    form: RecordForm,
) -> Result<[u64; 2], TierError> {
    let records = capacity::records_bytes(only(manifest).slots(), form);
    let records = records.min(folder::length(medium, RECORDS_FILE)?);
    let slots = only(manifest).data_bytes();
    let slots = slots.min(folder::length(medium, SLOTS_FILE)?);
    Ok([records, slots])
}

impl FollowedFile {
    fn open(
        medium: &dyn Medium,
        (name, bytes): (&str, u64),
        direct: bool,
    ) -> Result<FollowedFile, TierError> {
        let how = OpenFile {
            length_bytes: bytes,
            writable: false,
            direct,
            preallocate: false,
        };
        let failed = |error| TierError::file("open", file_name(medium, name), error);
        let file = match bytes {
            0 => None,
            _ => Some(medium.open(name, &how).map_err(failed)?),
        };
        Ok(FollowedFile { file, bytes })
    }

    pub(super) fn get(&self) -> Option<&dyn MediumFile> {
        self.file.as_deref()
    }

    fn is_named(&self) -> bool {
        self.get().is_none_or(|file| {
            let standing = file.standing();
            matches!(standing, Ok(NameStanding::Same | NameStanding::Cut { .. }))
        })
    }
}
