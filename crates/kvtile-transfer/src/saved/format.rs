//! The format of a saved cache, except its blocks.

use std::collections::BTreeMap;

use kvtile_layout::{
    Shape, ShownText, Word,
    identity::{Identity, LayoutIdentity},
};
use serde::{Deserialize, Serialize};

use crate::error::{SavedError, TransferError};

/// First bytes of every saved cache.
const MAGIC: [u8; 8] = *b"KVTILE\r\n";

/// Format version that is written and read.
pub(super) const VERSION: u32 = 1;

/// Bytes of the preamble.
pub(super) const PREAMBLE_BYTES: usize = 64;

/// Alignment of the data and of the regions, in bytes.
pub(super) const DATA_ALIGNMENT: u64 = 4096;

/// Longest header, in bytes.
pub(super) const HEADER_BYTES_MAX: u64 = 64 << 20;

/// Maximum number of blocks of a saved cache: 128 MiB of checksums.
pub(super) const BLOCKS_MAX: u64 = 1 << 24;

/// The position of one region in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedRegion {
    /// Offset in the file, in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// The header of a saved cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedHeader {
    /// The logical identity of the blocks.
    pub identity: Identity,
    /// The layout of one block, which must equal the one that `word` gives for `shape`.
    pub block_layout: LayoutIdentity,
    /// The stored shape.
    pub shape: Shape,
    /// The stored order.
    pub word: Word,
    /// Alignment of blocks, in bytes.
    pub alignment: u64,
    /// Number of tokens in the blocks; the last block may be partly filled.
    pub tokens: u64,
    /// The regions of the layout, in its order.
    pub regions: Vec<SavedRegion>,
    /// Notes of the application that saved it, for instance a digest of the tokens.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub notes: BTreeMap<String, String>,
}

/// The fixed first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SavedPreamble {
    pub(super) header_bytes: u64,
    pub(super) blocks: u64,
    pub(super) file_bytes: u64,
    /// BLAKE3 of header and checksums, first 128 bits.
    pub(super) digest: [u8; 16],
}

impl SavedPreamble {
    pub(super) fn to_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(PREAMBLE_BYTES);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&self.header_bytes.to_le_bytes());
        bytes.extend_from_slice(&self.blocks.to_le_bytes());
        bytes.extend_from_slice(&self.file_bytes.to_le_bytes());
        bytes.extend_from_slice(&self.digest);
        let check = crate::manager::checksum(&bytes);
        bytes.extend_from_slice(&check.to_le_bytes());
        bytes
    }

    /// Reads and checks the preamble of a file of `file_bytes` bytes.
    pub(super) fn from_bytes(
        bytes: &[u8],
        file_bytes: u64,
    ) -> Result<SavedPreamble, TransferError> {
        let mut reader = PreambleReader { bytes };
        if reader.take::<8>()? != MAGIC {
            return Err(not_one("it does not start with the magic bytes"));
        }
        let version = u32::from_le_bytes(reader.take()?);
        if version != VERSION {
            return Err(not_one(&format!(
                "version {version} is not supported, only {VERSION}"
            )));
        }
        let reserved = reader.take::<4>()?;
        let preamble = SavedPreamble {
            header_bytes: u64::from_le_bytes(reader.take()?),
            blocks: u64::from_le_bytes(reader.take()?),
            file_bytes: u64::from_le_bytes(reader.take()?),
            digest: reader.take()?,
        };
        let stored = u64::from_le_bytes(reader.take()?);
        let checked = bytes.get(..PREAMBLE_BYTES - 8).unwrap_or_default();
        if reserved != [0; 4] || stored != crate::manager::checksum(checked) {
            return Err(damaged("the preamble fails its checksum"));
        }
        if preamble.file_bytes != file_bytes {
            return Err(damaged(&format!(
                "the file has {file_bytes} bytes, its preamble states {}",
                preamble.file_bytes
            )));
        }
        preamble.tables()?;
        Ok(preamble)
    }

    /// Bytes of the header and of the checksums. Checks that they fit the file.
    pub(super) fn tables(&self) -> Result<(usize, usize), TransferError> {
        let checksums = self.blocks.checked_mul(8);
        let end = checksums
            .and_then(|c| c.checked_add(self.header_bytes))
            .and_then(|end| end.checked_add(PREAMBLE_BYTES as u64));
        let fits = end.is_some_and(|end| end <= self.file_bytes)
            && self.header_bytes <= HEADER_BYTES_MAX
            && self.blocks <= BLOCKS_MAX;
        let sizes = (
            usize::try_from(self.header_bytes),
            usize::try_from(checksums.unwrap_or(u64::MAX)),
        );
        match sizes {
            (Ok(header), Ok(checksums)) if fits => Ok((header, checksums)),
            _ => Err(damaged("header and checksums do not fit the file")),
        }
    }
}

/// Refuses an identity whose structure (planes, page size, shard) differs from that of `shape`.
pub(super) fn check_structure(identity: &Identity, shape: &Shape) -> Result<(), TransferError> {
    match identity.difference_to_shape(shape)? {
        Some(difference) => Err(TransferError::Saved(SavedError::IdentityDiffers(
            difference,
        ))),
        None => Ok(()),
    }
}

/// Refuses more tokens than the blocks of `shape` can hold.
pub(super) fn check_tokens(tokens: u64, shape: &Shape) -> Result<(), TransferError> {
    let (blocks, page_size) = (shape.num_blocks(), shape.page_size());
    if tokens <= blocks.saturating_mul(page_size) {
        return Ok(());
    }
    Err(TransferError::Saved(SavedError::TooManyTokens {
        tokens,
        blocks,
        page_size,
    }))
}

/// BLAKE3 of header and checksums, first 128 bits.
pub(super) fn digest(header: &[u8], checksums: &[u8]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new_derive_key("kvtile saved cache 1");
    hasher.update(&(header.len() as u64).to_le_bytes());
    hasher.update(header);
    hasher.update(checksums);
    let mut first = [0; 16];
    hasher.finalize_xof().fill(&mut first);
    first
}

struct PreambleReader<'a> {
    bytes: &'a [u8],
}

impl PreambleReader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], TransferError> {
        let Some((first, rest)) = self.bytes.split_first_chunk::<N>() else {
            return Err(not_one("it is shorter than a preamble"));
        };
        self.bytes = rest;
        Ok(*first)
    }
}

pub(super) fn not_one(problem: &str) -> TransferError {
    TransferError::Saved(SavedError::NotASavedCache {
        problem: ShownText(problem).to_string(),
    })
}

pub(super) fn damaged(problem: &str) -> TransferError {
    TransferError::Saved(SavedError::Damaged {
        problem: ShownText(problem).to_string(),
    })
}
