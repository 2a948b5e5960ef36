//! The manifest of an identity: `{prefix}/kvt1/{identity}/manifest.json`, a small value for people and tools, which states
//! what the bundles below it belong to. Names and headers have fingerprints only.
//!
//! A tier writes it before its first bundle, unless the store has one. No cache reads it, so a wrong or missing one costs
//! nothing. It is text from outside: its size is bounded, and its identity must have the fingerprint of its name.

use kvtile_layout::identity::{Fingerprint, Identity, LayoutIdentity};
use kvtile_tiers::tier::StoreIdentity;
use serde::{Deserialize, Serialize};

use crate::store::{Deadline, SharedStore, SharedStoreError, SinkState, ValueName, ValueSink};

/// The value of the field `format`.
const FORMAT: &str = "kvtile shared tier";

/// The version of the format.
const VERSION: u32 = 1;

/// The longest manifest that is read.
const BYTES_MAX: usize = 1 << 20;

/// What an identity's bundles belong to, and which program began to write them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreManifest {
    format: String,
    version: u32,
    kvtile: String,
    identity: Identity,
    block_layout: LayoutIdentity,
    block_bytes: u64,
}

/// Why a manifest cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreManifestError {
    /// It is longer than a manifest.
    #[error("the manifest has more than {BYTES_MAX} bytes")]
    TooLong,
    /// It is not the JSON of a manifest.
    #[error("the manifest is not readable: {0}")]
    Unreadable(String),
    /// It has another format or version.
    #[error(
        "the manifest has the format {format:?}, version {version}; this program reads {FORMAT:?}, version {VERSION}"
    )]
    Format {
        /// Its format.
        format: String,
        /// Its version.
        version: u32,
    },
    /// It is the manifest of another identity.
    #[error("the manifest is that of the identity {found}")]
    OtherIdentity {
        /// The fingerprint of its identity.
        found: Fingerprint,
    },
}

impl StoreManifest {
    pub(crate) fn new(identity: &StoreIdentity) -> StoreManifest {
        StoreManifest {
            format: FORMAT.to_owned(),
            version: VERSION,
            kvtile: env!("CARGO_PKG_VERSION").to_owned(),
            identity: identity.logical.clone(),
            block_layout: identity.block_layout.clone(),
            block_bytes: identity.block_bytes(),
        }
    }

    /// Its bytes in a store; `None` if they would not be read.
    pub(crate) fn encode(&self) -> Option<Vec<u8>> {
        let mut text = serde_json::to_vec_pretty(self).ok()?;
        text.push(b'\n');
        (text.len() <= BYTES_MAX).then_some(text)
    }

    /// Decodes the manifest of the identity with this fingerprint.
    fn decode(identity: Fingerprint, bytes: &[u8]) -> Result<StoreManifest, StoreManifestError> {
        let unreadable =
            |error: serde_json::Error| StoreManifestError::Unreadable(error.to_string());
        let stated: ManifestFormat = serde_json::from_slice(bytes).map_err(unreadable)?;
        if stated.format != FORMAT || stated.version != VERSION {
            let ManifestFormat { format, version } = stated;
            return Err(StoreManifestError::Format { format, version });
        }
        let manifest: StoreManifest = serde_json::from_slice(bytes).map_err(unreadable)?;
        let found = manifest.identity.fingerprint();
        match found == identity {
            true => Ok(manifest),
            false => Err(StoreManifestError::OtherIdentity { found }),
        }
    }

    /// Reads a manifest; `None` if the store has none.
    pub(crate) fn read(
        store: &dyn SharedStore,
        (identity, name): (Fingerprint, &ValueName),
        by: Deadline,
    ) -> Result<Option<Result<StoreManifest, StoreManifestError>>, SharedStoreError> {
        let mut text = ManifestText::default();
        if !store.read(name, &mut text, by)? {
            return Ok(None);
        }
        Ok(Some(match text.bytes.len() > BYTES_MAX {
            true => Err(StoreManifestError::TooLong),
            false => StoreManifest::decode(identity, &text.bytes),
        }))
    }

    /// The version of kvtile that wrote the first bundle.
    #[must_use]
    pub fn kvtile(&self) -> &str {
        &self.kvtile
    }

    /// The identity of the blocks.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The layout of the blocks of the first bundle. Others may have other layouts, which are in their names.
    #[must_use]
    pub fn block_layout(&self) -> &LayoutIdentity {
        &self.block_layout
    }

    /// Bytes of one block.
    #[must_use]
    pub fn block_bytes(&self) -> u64 {
        self.block_bytes
    }
}

/// The fields that every version has.
#[derive(Deserialize)]
struct ManifestFormat {
    format: String,
    version: u32,
}

/// Takes one byte more than a manifest may have.
#[derive(Default)]
struct ManifestText {
    bytes: Vec<u8>,
    space: Vec<u8>,
}

impl ValueSink for ManifestText {
    fn space(&mut self) -> &mut [u8] {
        let left = (BYTES_MAX + 1).saturating_sub(self.bytes.len());
        self.space.resize(left.min(16 << 10), 0);
        &mut self.space
    }

    fn filled(&mut self, bytes: usize) -> SinkState {
        let (came, _) = self.space.split_at(bytes);
        self.bytes.extend(came);
        match self.bytes.len() > BYTES_MAX {
            true => SinkState::Full,
            false => SinkState::Open,
        }
    }
}
