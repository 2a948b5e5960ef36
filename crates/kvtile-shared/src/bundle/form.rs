//! What all bundles of one group have in common.

use std::fmt;

use kvtile_layout::identity::Fingerprint;
use kvtile_tiers::tier::StoreIdentity;

use super::header::{BUNDLE_BLOCKS_MAX, header_bytes};

/// The name of a part of the blocks: which layers and heads of the model a value holds. It is in
/// the name of a value and not in the identity. 1 to 60 lower-case letters, digits, `-` and `_`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PartName(Box<str>);

/// A text that cannot name a part.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} cannot name a part: use 1 to 60 lower-case letters, digits, `-` and `_`")]
pub struct InvalidPartName {
    /// The text.
    pub text: String,
}

impl PartName {
    /// The part with this name.
    ///
    /// # Errors
    /// A text that cannot name a part.
    pub fn new(text: impl Into<Box<str>>) -> Result<PartName, InvalidPartName> {
        let text = text.into();
        match PartName::is_part(&text) {
            true => Ok(PartName(text)),
            false => Err(InvalidPartName { text: text.into() }),
        }
    }

    /// Whether a part may have this name.
    pub(super) fn is_part(text: &str) -> bool {
        let is_allowed = |byte: u8| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'_'
        };
        (1..=60).contains(&text.len()) && text.bytes().all(is_allowed)
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for PartName {
    /// `all`: the blocks are not cut into parts.
    fn default() -> PartName {
        PartName("all".into())
    }
}

impl fmt::Debug for PartName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PartName").field(&self.as_str()).finish()
    }
}

/// What all bundles of one group have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BundleForm {
    /// The fingerprint of the identity.
    pub identity: Fingerprint,
    /// The fingerprint of the layout of one block.
    pub layout: Fingerprint,
    /// The part of the blocks.
    pub part: PartName,
    /// Bytes of one block.
    pub block_bytes: u64,
    /// Blocks of one bundle: 1 to [`BUNDLE_BLOCKS_MAX`].
    pub blocks: u32,
}

impl BundleForm {
    /// Bundles of `blocks` blocks, at least 1 and at most [`BUNDLE_BLOCKS_MAX`].
    #[must_use]
    pub fn new(identity: &StoreIdentity, part: PartName, blocks: u32) -> BundleForm {
        BundleForm {
            identity: identity.logical.fingerprint(),
            layout: identity.block_layout.fingerprint(),
            part,
            block_bytes: identity.block_bytes(),
            blocks: blocks.clamp(1, BUNDLE_BLOCKS_MAX),
        }
    }

    /// The largest power of two of blocks that are at most `bytes` bytes together; at least 1, and
    /// at most [`BUNDLE_BLOCKS_MAX`].
    #[must_use]
    pub fn blocks_within(block_bytes: u64, bytes: u64) -> u32 {
        let mut blocks = 1;
        while blocks < BUNDLE_BLOCKS_MAX
            && block_bytes.saturating_mul(u64::from(blocks) * 2) <= bytes
        {
            blocks *= 2;
        }
        blocks
    }

    /// Bytes of the header.
    #[must_use]
    pub fn header_bytes(&self) -> usize {
        header_bytes(self.blocks)
    }

    /// Bytes of a whole bundle.
    #[must_use]
    pub fn bundle_bytes(&self) -> u64 {
        let blocks = self.block_bytes.saturating_mul(u64::from(self.blocks));
        blocks.saturating_add(self.header_bytes() as u64)
    }

    /// The index in its bundle of the block at a position of its chain.
    #[must_use]
    pub fn index_of(&self, position: u32) -> u32 {
        position % self.blocks
    }
}
