//! The manifest of a folder: `manifest.json`.
//!
//! A write replaces the manifest in one step or not at all. The manifest carries a checksum over
//! its fields and contains the full identity, so that an error can name the field that differs.

mod group;

pub use group::ManifestGroup;

use std::{
    collections::HashSet,
    time::{SystemTime, UNIX_EPOCH},
};

use crc_fast::CrcAlgorithm;
use kvtile_layout::{ShownText, identity::Fingerprint};
use serde::{Deserialize, Serialize};

use super::{capacity, medium::Medium, record::StoreId};
use crate::{
    error::{FolderError, MismatchError, TierError},
    tier::TierGroup,
};

/// File name of the manifest.
pub(super) const MANIFEST_FILE: &str = "manifest.json";

/// File name of the manifest until all of it is durable.
pub(super) const MANIFEST_PARTIAL_FILE: &str = "manifest.json.partial";

/// The value of the field `format` of every manifest.
pub(super) const FORMAT: &str = "kvtile disk tier";

/// The version of the folder format that is written and read.
pub(super) const VERSION: u32 = 2;

/// The longest manifest that is read.
pub(super) const MANIFEST_BYTES_MAX: u64 = 64 << 20;

/// The manifest of a folder: its groups, their sizes, and the capacity of the folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    format: String,
    version: u32,
    store: Fingerprint,
    created: FolderCreation,
    capacity_bytes: u64,
    /// At least one; each has a name if there are several.
    groups: Vec<ManifestGroup>,
}

/// When a folder was created, and by which version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FolderCreation {
    /// Seconds since the start of 1970, by the clock of the machine.
    pub unix_seconds: u64,
    /// Version of kvtile.
    pub kvtile: String,
}

/// The file's content: the manifest and the checksum of its JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ManifestFile {
    manifest: Manifest,
    /// CRC-64/NVME of the compact JSON of `manifest`, hexadecimal.
    checksum: String,
}

impl Manifest {
    /// The manifest of a new folder with these groups, without slots.
    pub(super) fn new(groups: &[TierGroup], capacity_bytes: u64) -> Result<Manifest, TierError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let group = |group| ManifestGroup::new(group, groups.len() > 1);
        Ok(Manifest {
            format: FORMAT.to_owned(),
            version: VERSION,
            store: Fingerprint::from_bytes(random_number()),
            created: FolderCreation {
                unix_seconds: now.map_or(0, |now| now.as_secs()),
                kvtile: env!("CARGO_PKG_VERSION").to_owned(),
            },
            capacity_bytes,
            groups: groups.iter().map(group).collect::<Result<_, _>>()?,
        })
    }

    /// This manifest with another capacity, and with these numbers of slots.
    pub(super) fn resized(&self, capacity_bytes: u64, slots: &[u32]) -> Manifest {
        assert_eq!(slots.len(), self.groups.len(), "slots of each group");
        let mut resized = self.clone();
        resized.capacity_bytes = capacity_bytes;
        for (group, slots) in resized.groups.iter_mut().zip(slots) {
            group.resize(*slots);
        }
        resized
    }

    /// The groups of the folder, at least one, in the order of their numbers.
    #[must_use]
    pub fn groups(&self) -> &[ManifestGroup] {
        &self.groups
    }

    /// The names of the groups; none if the folder has one group.
    pub(super) fn names(&self) -> Vec<String> {
        let names = self.groups.iter().filter_map(ManifestGroup::name);
        names.map(str::to_owned).collect()
    }

    /// The number of slots of each group.
    pub(super) fn slots(&self) -> Vec<u32> {
        self.groups.iter().map(ManifestGroup::slots).collect()
    }

    /// The most bytes that all files together may take.
    #[must_use]
    pub fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes
    }

    /// When the folder was created, and by which version.
    #[must_use]
    pub fn created(&self) -> &FolderCreation {
        &self.created
    }

    /// The number that the records of group `group` are sealed with. It differs between groups, so
    /// that files of two groups that were swapped hold no valid record.
    pub(super) fn store(&self, group: usize) -> StoreId {
        let mut store = *self.store.as_bytes();
        let [.., last] = &mut store;
        *last ^= u8::try_from(group).unwrap_or(u8::MAX);
        store
    }

    /// The groups that a caller opens the folder with, cut into pieces as the folder was created: before
    /// pieces were cut within layers, a block had those that its layers give.
    pub(super) fn cut_as_stored(&self, groups: &[TierGroup]) -> Vec<TierGroup> {
        let mut groups = groups.to_vec();
        for (ours, stored) in groups.iter_mut().zip(&self.groups) {
            let pieces = &mut ours.identity.pieces;
            if !stored.has_ends(pieces) && stored.has_ends(&pieces.by_layers()) {
                *pieces = pieces.by_layers();
            }
        }
        groups
    }

    /// Refuses a folder that does not have exactly these groups.
    pub(super) fn check(&self, groups: &[TierGroup], medium: &dyn Medium) -> Result<(), TierError> {
        // The only group of a folder has no name there, so it fits the only requested group.
        let named = |(ours, group): (&TierGroup, &ManifestGroup)| {
            group.name().is_none_or(|name| name == ours.name)
        };
        let pairs = || groups.iter().zip(&self.groups);
        if groups.len() != self.groups.len() || !pairs().all(named) {
            return Err(TierError::Mismatch(MismatchError::GroupsDiffer {
                folder: medium.name(),
                ours: groups.iter().map(|group| group.name.clone()).collect(),
                theirs: self.names(),
            }));
        }
        let difference = pairs().find_map(|(ours, group)| {
            let mut difference = group.first_difference(&ours.identity)?;
            if let Some(name) = group.name() {
                difference.field = format!("groups[{name}].{}", difference.field);
            }
            Some(difference)
        });
        match difference {
            None => Ok(()),
            Some(difference) => Err(TierError::Mismatch(MismatchError::FolderDiffers {
                folder: medium.name(),
                difference,
            })),
        }
    }

    /// Why the groups are no groups of one folder.
    fn problem(&self) -> Option<&'static str> {
        if self.groups.is_empty() || self.groups.len() > capacity::GROUPS_MAX {
            return Some("it has no groups, or more than a folder can have");
        }
        let slots: u64 = self.slots().into_iter().map(u64::from).sum();
        if self.format != FORMAT
            || slots > u64::from(capacity::SLOTS_MAX)
            || !self.groups.iter().all(ManifestGroup::is_sensible)
        {
            return Some("its numbers contradict each other");
        }
        let names: Vec<&str> = self.groups.iter().filter_map(ManifestGroup::name).collect();
        let several = self.groups.len() > 1;
        let distinct: HashSet<&&str> = names.iter().collect();
        let good = match several {
            true => {
                distinct.len() == self.groups.len()
                    && names.iter().all(|name| TierGroup::is_name(name))
            }
            false => names.is_empty(),
        };
        (!good).then_some("the names of its groups are missing, repeated or no names")
    }

    pub(super) fn to_bytes(&self) -> Result<Vec<u8>, TierError> {
        let failed = |error: serde_json::Error| {
            TierError::file("render", MANIFEST_FILE.to_owned(), error.into())
        };
        let checksum = self.checksum().map_err(failed)?;
        let file = ManifestFile {
            manifest: self.clone(),
            checksum,
        };
        let mut bytes = serde_json::to_vec_pretty(&file).map_err(failed)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    fn checksum(&self) -> Result<String, serde_json::Error> {
        let compact = serde_json::to_vec(self)?;
        let checksum = crc_fast::checksum(CrcAlgorithm::Crc64Nvme, &compact);
        Ok(format!("{checksum:016x}"))
    }

    /// The length in bytes of the largest manifest of these groups.
    pub(super) fn bytes_max(&self) -> Result<u64, TierError> {
        let largest = self.resized(u64::MAX, &vec![u32::MAX; self.groups.len()]);
        Ok(largest.to_bytes()?.len() as u64)
    }

    /// Reads the manifest of a folder; `None` if the file is missing.
    pub(crate) fn read(medium: &dyn Medium) -> Result<Option<Manifest>, TierError> {
        let failed = |error| TierError::file("read", file_name(medium, MANIFEST_FILE), error);
        if medium.length(MANIFEST_FILE).map_err(failed)?.is_none() {
            return Ok(None);
        }
        let bytes = medium
            .read(MANIFEST_FILE, MANIFEST_BYTES_MAX)
            .map_err(failed)?;
        Manifest::from_bytes(&bytes, medium).map(Some)
    }

    /// Decodes the manifest of a folder.
    pub(super) fn from_bytes(bytes: &[u8], medium: &dyn Medium) -> Result<Manifest, TierError> {
        let damaged = |problem: String| {
            TierError::Folder(FolderError::ManifestDamaged {
                folder: medium.name(),
                problem: ShownText(&problem).to_string(),
            })
        };
        check_version(bytes, medium)?;
        let file: ManifestFile =
            serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
        let manifest = file.manifest;
        let checksum = manifest
            .checksum()
            .map_err(|error| damaged(error.to_string()))?;
        if checksum != file.checksum {
            return Err(damaged("it fails its checksum".to_owned()));
        }
        match manifest.problem() {
            None => Ok(manifest),
            Some(problem) => Err(damaged(problem.to_owned())),
        }
    }

    /// Replaces the folder's manifest in one step; it is durable when this returns.
    pub(super) fn write(&self, medium: &dyn Medium) -> Result<(), TierError> {
        let bytes = self.to_bytes()?;
        let failed = |error| TierError::file("write", file_name(medium, MANIFEST_FILE), error);
        medium
            .write(MANIFEST_PARTIAL_FILE, &bytes)
            .map_err(failed)?;
        medium
            .rename(MANIFEST_PARTIAL_FILE, MANIFEST_FILE)
            .map_err(failed)?;
        medium.sync_folder().map_err(failed)
    }
}

/// Refuses another version by its number, regardless of the other fields of its manifest.
fn check_version(bytes: &[u8], medium: &dyn Medium) -> Result<(), TierError> {
    #[derive(Deserialize)]
    struct VersionedManifestFile {
        manifest: VersionedManifest,
    }
    #[derive(Deserialize)]
    struct VersionedManifest {
        format: String,
        version: u32,
    }
    let any: VersionedManifestFile = serde_json::from_slice(bytes).map_err(|error| {
        TierError::Folder(FolderError::ManifestDamaged {
            folder: medium.name(),
            problem: ShownText(&error.to_string()).to_string(),
        })
    })?;
    if any.manifest.format == FORMAT && any.manifest.version != VERSION {
        return Err(TierError::Folder(FolderError::FolderVersion {
            folder: medium.name(),
            found: any.manifest.version,
            ours: VERSION,
        }));
    }
    Ok(())
}

/// The name of a file of the folder, for messages.
pub(super) fn file_name(medium: &dyn Medium, file: &str) -> String {
    format!("{}/{file}", medium.name())
}

/// A random number that identifies the folder: records of different folders differ by it. It is
/// no secret.
fn random_number() -> StoreId {
    use std::hash::{BuildHasher, Hasher, RandomState};
    let mut number = [0; 16];
    for half in number.chunks_exact_mut(8) {
        // The standard library seeds each `RandomState` from the system's random numbers.
        let random = RandomState::new().build_hasher().finish();
        half.copy_from_slice(&random.to_le_bytes());
    }
    number
}
