//! The manifest of a folder: `manifest.json`.
//!
//! A write replaces the manifest in one step or not at all. The manifest carries a checksum over
//! its fields and contains the full identity, so that an error can name the field that differs.

use std::time::{SystemTime, UNIX_EPOCH};

use crc_fast::CrcAlgorithm;
use kvtile_layout::{
    ShownText, broken,
    identity::{Difference, Fingerprint, Identity, LayoutIdentity},
};
use serde::{Deserialize, Serialize};

use super::{
    capacity,
    medium::Medium,
    record::{RecordForm, StoreId},
};
use crate::{
    error::{FolderError, TierError},
    tier::{BlockPieces, StoreIdentity},
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

/// The manifest of a folder: its identity, its geometry and its capacity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    format: String,
    version: u32,
    store: Fingerprint,
    created: FolderCreation,
    capacity_bytes: u64,
    /// Exactly one, until a folder keeps several groups.
    groups: Vec<ManifestGroup>,
}

/// The manifest of one group of layers: its blocks and the two files that store them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ManifestGroup {
    identity: Identity,
    identity_fingerprint: Fingerprint,
    block_layout: LayoutIdentity,
    block_layout_fingerprint: Fingerprint,
    block_bytes: u64,
    /// Where each piece of a block ends, in bytes.
    piece_ends: Vec<u64>,
    slot_bytes: u64,
    record_bytes: u64,
    slots: u32,
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

impl ManifestGroup {
    fn new(identity: &StoreIdentity, slots: u32) -> Result<ManifestGroup, TierError> {
        Ok(ManifestGroup {
            identity: identity.logical.clone(),
            identity_fingerprint: identity.logical.fingerprint(),
            block_layout: identity.block_layout.clone(),
            block_layout_fingerprint: identity.block_layout.fingerprint(),
            block_bytes: identity.block_bytes(),
            piece_ends: identity.pieces.ends().to_vec(),
            slot_bytes: capacity::slot_bytes(identity.block_bytes())?,
            record_bytes: RecordForm::of(&identity.pieces).stride(),
            slots,
        })
    }

    /// Whether the numbers are consistent with each other.
    fn is_sensible(&self) -> bool {
        let (Ok(pieces), Ok(slot_bytes)) = (
            BlockPieces::ending_at(&self.piece_ends),
            capacity::slot_bytes(self.block_bytes),
        ) else {
            return false;
        };
        pieces.block_bytes() == self.block_bytes
            && self.slot_bytes == slot_bytes
            && self.record_bytes == RecordForm::of(&pieces).stride()
            && (2..=capacity::SLOTS_MAX).contains(&self.slots)
            && slot_bytes.checked_mul(u64::from(self.slots)).is_some()
    }
}

impl Manifest {
    /// The manifest of a new folder with `slots` slots.
    pub(super) fn new(
        identity: &StoreIdentity,
        capacity_bytes: u64,
        slots: u32,
    ) -> Result<Manifest, TierError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Ok(Manifest {
            format: FORMAT.to_owned(),
            version: VERSION,
            store: Fingerprint::from_bytes(random_number()),
            created: FolderCreation {
                unix_seconds: now.map_or(0, |now| now.as_secs()),
                kvtile: env!("CARGO_PKG_VERSION").to_owned(),
            },
            capacity_bytes,
            groups: vec![ManifestGroup::new(identity, slots)?],
        })
    }

    /// This manifest with another capacity.
    pub(super) fn resized(&self, capacity_bytes: u64, slots: u32) -> Manifest {
        let mut resized = self.clone();
        resized.capacity_bytes = capacity_bytes;
        for group in &mut resized.groups {
            group.slots = slots;
        }
        resized
    }

    /// The only group.
    fn group(&self) -> &ManifestGroup {
        match self.groups.as_slice() {
            [group] => group,
            groups => broken(format_args!("a manifest of {} groups", groups.len())),
        }
    }

    /// What the values of a block mean.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.group().identity
    }

    /// The layout of one block.
    #[must_use]
    pub fn block_layout(&self) -> &LayoutIdentity {
        &self.group().block_layout
    }

    /// Bytes of one block.
    #[must_use]
    pub fn block_bytes(&self) -> u64 {
        self.group().block_bytes
    }

    /// Bytes of one slot: a block, rounded up to pages.
    #[must_use]
    pub fn slot_bytes(&self) -> u64 {
        self.group().slot_bytes
    }

    /// Slots of the data file; a few of them are always erased.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.group().slots
    }

    /// Blocks that the folder can hold.
    #[must_use]
    pub fn blocks_max(&self) -> u32 {
        self.slots() - capacity::reserve(self.slots())
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

    pub(super) fn store(&self) -> &StoreId {
        self.store.as_bytes()
    }

    /// Bytes of all slots.
    pub(super) fn data_bytes(&self) -> u64 {
        self.slot_bytes().saturating_mul(u64::from(self.slots()))
    }

    /// How a block is cut into pieces. The manifest knows their bytes, not the layers behind them.
    pub(super) fn pieces(&self) -> Result<BlockPieces, TierError> {
        BlockPieces::ending_at(&self.group().piece_ends)
    }

    /// The first field in which the folder differs from `identity`.
    pub(super) fn first_difference(&self, identity: &StoreIdentity) -> Option<Difference> {
        let group = self.group();
        let ends = identity.pieces.ends();
        let cut = (ends != group.piece_ends).then(|| {
            let (field, ours, theirs) = match identity.block_bytes() == group.block_bytes {
                true => (
                    "piece_ends",
                    format!("{ends:?}"),
                    format!("{:?}", group.piece_ends),
                ),
                false => (
                    "block_bytes",
                    identity.block_bytes().to_string(),
                    group.block_bytes.to_string(),
                ),
            };
            Difference {
                field: field.to_owned(),
                ours,
                theirs,
            }
        });
        let logical = identity.logical.first_difference(&group.identity);
        let layout = || identity.block_layout.first_difference(&group.block_layout);
        logical.or_else(layout).or(cut)
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

    /// The length in bytes of the largest manifest of this identity.
    pub(super) fn bytes_max(&self) -> Result<u64, TierError> {
        let largest = self.resized(u64::MAX, u32::MAX);
        Ok(largest.to_bytes()?.len() as u64)
    }

    /// Reads the manifest of a folder; `None` if the file is missing.
    pub(super) fn read(medium: &dyn Medium) -> Result<Option<Manifest>, TierError> {
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
        match manifest.groups.as_slice() {
            [group] if manifest.format == FORMAT && group.is_sensible() => Ok(manifest),
            [_] => Err(damaged("its numbers contradict each other".to_owned())),
            groups => Err(TierError::Folder(FolderError::FolderGroups {
                folder: medium.name(),
                groups: groups.len(),
            })),
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
