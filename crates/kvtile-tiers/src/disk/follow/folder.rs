//! The folder that a follower watches: what it was at the last refresh, and its open files.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use kvtile_blocks::GroupId;
use kvtile_layout::{broken, identity::Difference};
use parking_lot::RwLock;

use super::{
    super::{
        capacity, folder,
        manifest::{MANIFEST_BYTES_MAX, MANIFEST_FILE, Manifest, ManifestGroup, file_name},
        medium::{Medium, MediumFile, NameStanding, OpenFile},
        record::{RecordForm, StoreId},
        store::StoreCounter,
    },
    index::FollowedIndex,
};
use crate::{
    error::{MismatchError, TierError},
    tier::{BlockPieces, TierGroup, TierStats},
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
pub(super) struct FollowedView {
    /// `None` while there is no folder to follow.
    pub(super) files: Option<Arc<FollowedFiles>>,
    pub(super) index: FollowedIndex,
}

/// One group of a followed folder.
#[derive(Debug)]
pub(super) struct FollowedGroup {
    pub(super) id: GroupId,
    /// Its number in the manifest and in the names of its files.
    pub(super) number: usize,
    pub(super) of: TierGroup,
    /// What lookups and reads use. Only a refresh changes it, except that reads drop blocks.
    pub(super) view: RwLock<FollowedView>,
    /// Blocks that were damaged or could not be read.
    pub(super) damaged: StoreCounter,
}

impl FollowedGroup {
    /// The groups of a folder, in the order of their numbers.
    pub(super) fn all(groups: &[TierGroup]) -> Vec<FollowedGroup> {
        let numbered = groups.iter().enumerate().zip(0..);
        let group = |((number, of), id): ((usize, &TierGroup), u32)| FollowedGroup {
            id: GroupId(id),
            number,
            of: of.clone(),
            view: RwLock::default(),
            damaged: StoreCounter::default(),
        };
        numbered.map(group).collect()
    }

    pub(super) fn stats(&self) -> TierStats {
        TierStats {
            present: self.view.read().index.len() as u64,
            damaged: self.damaged.get(),
            ..TierStats::default()
        }
    }
}

/// The open files of a group, as long as they were when they were opened.
#[derive(Debug)]
pub(super) struct FollowedFiles {
    /// The number of the group.
    pub(super) number: usize,
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
    /// One for each group; `None` if its records must be compared regardless of their time.
    pub(super) compared: Vec<Option<ComparedRecords>>,
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
    pub(super) fn new(groups: usize) -> FolderWatch {
        FolderWatch {
            manifest_bytes: None,
            manifest: None,
            condition: FollowCondition::Missing,
            compared: vec![None; groups],
            is_failing: false,
        }
    }

    /// The records of all groups must be compared.
    pub(super) fn compare_all(&mut self) {
        self.compared.fill(None);
    }

    /// When the records of a group were compared.
    pub(super) fn compared(&mut self, group: usize) -> &mut Option<ComparedRecords> {
        let groups = self.compared.len();
        match self.compared.get_mut(group) {
            Some(compared) => compared,
            None => broken(format_args!("group {group} of {groups}")),
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
    groups: &[TierGroup],
) -> (FollowCondition, Option<Manifest>) {
    match Manifest::from_bytes(bytes, medium) {
        Err(error) => (FollowCondition::Unusable { error }, None),
        Ok(manifest) => match manifest.check(&manifest.cut_as_stored(groups), medium) {
            Ok(()) => (FollowCondition::Followed, Some(manifest)),
            Err(TierError::Mismatch(MismatchError::FolderDiffers { difference, .. })) => {
                (FollowCondition::Differs { difference }, None)
            }
            Err(error) => (FollowCondition::Unusable { error }, None),
        },
    }
}

impl FollowedFiles {
    /// Opens the files of a group. A file that is shorter than the manifest states is used as far
    /// as it goes.
    pub(super) fn open(
        medium: &dyn Medium,
        manifest: &Manifest,
        number: usize,
    ) -> Result<FollowedFiles, TierError> {
        let group = numbered(manifest, number);
        let pieces = group.pieces()?;
        let form = RecordForm::of(&pieces);
        let [records, slots] = lengths(medium, manifest, (number, form))?;
        let places = u32::try_from(records / form.stride()).unwrap_or(u32::MAX);
        let names = [folder::records_file(number), folder::slots_file(number)];
        let [records_name, slots_name] = &names;
        Ok(FollowedFiles {
            number,
            store: manifest.store(number),
            form,
            pieces,
            slot_bytes: group.slot_bytes(),
            places: places.min(group.slots()),
            records: FollowedFile::open(medium, (records_name, records), false)?,
            slots: FollowedFile::open(medium, (slots_name, slots), true)?,
        })
    }

    /// Whether the names of the files still refer to these files, with the same lengths.
    pub(super) fn are_current(&self, medium: &dyn Medium, manifest: &Manifest) -> bool {
        let now = lengths(medium, manifest, (self.number, self.form));
        let as_opened = [self.records.bytes, self.slots.bytes];
        now.is_ok_and(|now| now == as_opened) && self.are_named()
    }

    /// Whether the names of the files still refer to these files.
    pub(super) fn are_named(&self) -> bool {
        self.records.is_named() && self.slots.is_named()
    }
}

/// A group of a manifest that has passed its check.
fn numbered(manifest: &Manifest, number: usize) -> &ManifestGroup {
    let groups = manifest.groups();
    match groups.get(number) {
        Some(group) => group,
        None => broken(format_args!("group {number} of {}", groups.len())),
    }
}

/// Bytes of the records and of the slots, at most those that the manifest states.
fn lengths(
    medium: &dyn Medium,
    manifest: &Manifest,
    (number, form): (usize, RecordForm),
) -> Result<[u64; 2], TierError> {
    let group = numbered(manifest, number);
    let records = capacity::records_bytes(group.slots(), form);
    let records = records.min(folder::length(medium, &folder::records_file(number))?);
    let slots = group.data_bytes();
    let slots = slots.min(folder::length(medium, &folder::slots_file(number))?);
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
