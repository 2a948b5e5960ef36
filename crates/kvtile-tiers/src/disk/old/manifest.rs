//! `manifest.json` of version 1.

use crc_fast::CrcAlgorithm;
use kvtile_layout::{
    ShownText,
    identity::{Fingerprint, Identity, LayoutIdentity},
};
use serde::{Deserialize, Serialize};

use super::super::{
    capacity,
    manifest::{FORMAT, FolderCreation, MANIFEST_BYTES_MAX, MANIFEST_FILE, file_name},
    medium::Medium,
    record::StoreId,
};
use crate::error::{FolderError, TierError};

/// The format version that this module reads.
pub(in super::super) const OLD_VERSION: u32 = 1;

/// The manifest of a folder of version 1. Its checksum covers the fields in this order.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct OldManifest {
    format: String,
    version: u32,
    identity: Identity,
    identity_fingerprint: Fingerprint,
    block_layout: LayoutIdentity,
    block_layout_fingerprint: Fingerprint,
    block_bytes: u64,
    slot_bytes: u64,
    slots: u32,
    capacity_bytes: u64,
    store: Fingerprint,
    created: FolderCreation,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OldManifestFile {
    manifest: OldManifest,
    checksum: String,
}

impl OldManifest {
    /// Reads the manifest of a folder, which must have one.
    pub(super) fn read(medium: &dyn Medium) -> Result<OldManifest, TierError> {
        let failed = |error| TierError::file("read", file_name(medium, MANIFEST_FILE), error);
        let bytes = medium.read(MANIFEST_FILE, MANIFEST_BYTES_MAX);
        OldManifest::from_bytes(&bytes.map_err(failed)?, medium)
    }

    fn from_bytes(bytes: &[u8], medium: &dyn Medium) -> Result<OldManifest, TierError> {
        let damaged = |problem: &str| {
            TierError::Folder(FolderError::ManifestDamaged {
                folder: medium.name(),
                problem: ShownText(problem).to_string(),
            })
        };
        let file: OldManifestFile =
            serde_json::from_slice(bytes).map_err(|error| damaged(&error.to_string()))?;
        let manifest = file.manifest;
        let compact = serde_json::to_vec(&manifest).map_err(|error| damaged(&error.to_string()))?;
        let checksum = crc_fast::checksum(CrcAlgorithm::Crc64Nvme, &compact);
        if format!("{checksum:016x}") != file.checksum {
            return Err(damaged("it fails its checksum"));
        }
        match manifest.is_sensible() {
            true => Ok(manifest),
            false => Err(damaged("its numbers contradict each other")),
        }
    }

    /// Whether the numbers are consistent with each other.
    fn is_sensible(&self) -> bool {
        let Ok(slot_bytes) = capacity::slot_bytes(self.block_bytes) else {
            return false;
        };
        self.format == FORMAT
            && self.version == OLD_VERSION
            && self.slot_bytes == slot_bytes
            && (2..=capacity::SLOTS_MAX).contains(&self.slots)
            && slot_bytes.checked_mul(u64::from(self.slots)).is_some()
    }

    pub(in super::super) fn identity(&self) -> &Identity {
        &self.identity
    }

    pub(in super::super) fn block_layout(&self) -> &LayoutIdentity {
        &self.block_layout
    }

    pub(in super::super) fn block_bytes(&self) -> u64 {
        self.block_bytes
    }

    pub(in super::super) fn slots(&self) -> u32 {
        self.slots
    }

    pub(in super::super) fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes
    }

    pub(super) fn slot_bytes(&self) -> u64 {
        self.slot_bytes
    }

    pub(super) fn data_bytes(&self) -> u64 {
        self.slot_bytes.saturating_mul(u64::from(self.slots))
    }

    pub(super) fn store(&self) -> &StoreId {
        self.store.as_bytes()
    }
}
