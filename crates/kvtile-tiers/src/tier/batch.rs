//! Batches: blocks to read or to write, each with its host memory.

use std::fmt;

use crc_fast::{CrcAlgorithm, Digest};
use kvtile_blocks::{BlockKey, GroupId};

use super::HostBlock;
use crate::error::TierError;

/// The name of a block in a tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockName {
    /// The group of the block.
    pub group: GroupId,
    /// The key of the block.
    pub key: BlockKey,
}

/// A block to read.
#[derive(Debug)]
pub struct BlockRead {
    /// The block.
    pub name: BlockName,
    /// The host memory to fill: the whole block, or consecutive pieces of it if the tier reads
    /// pieces ([`TierAbilities::reads_pieces`](super::TierAbilities::reads_pieces)).
    pub into: HostBlock,
}

/// A block to write.
#[derive(Debug)]
pub struct BlockWrite {
    /// The block.
    pub name: BlockName,
    /// The key of its parent, unless it is the first block of its chain.
    pub parent: Option<BlockKey>,
    /// Number of blocks before it in its chain.
    pub position: u32,
    /// The tenant of the block.
    pub tenant: u32,
    /// The host memory with all of its bytes.
    pub from: HostBlock,
}

impl BlockWrite {
    /// The checksum of the block. A tier that does not verify stores it with the block and returns
    /// it on a read.
    ///
    /// # Errors
    /// Host memory that is not readable.
    pub fn checksum(&self) -> Result<u64, TierError> {
        let bytes = self.from.bytes()?;
        Ok(content_checksum(&self.name.key, self.position, bytes))
    }
}

/// CRC-64/NVME of a block's key, its position (`u32`, little-endian) and its bytes. It detects
/// changed bytes and a swapped block.
#[must_use]
pub fn content_checksum(key: &BlockKey, position: u32, bytes: &[u8]) -> u64 {
    let mut digest = ContentDigest::new(key, position);
    digest.update(bytes);
    digest.finish()
}

/// [`content_checksum`] of a block whose bytes come in several pieces.
#[derive(Clone)]
pub struct ContentDigest(Digest);

impl fmt::Debug for ContentDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ContentDigest").finish_non_exhaustive()
    }
}

impl ContentDigest {
    /// The checksum of a block before its first byte.
    #[must_use]
    pub fn new(key: &BlockKey, position: u32) -> ContentDigest {
        let mut digest = Digest::new(CrcAlgorithm::Crc64Nvme);
        digest.update(key.as_bytes());
        digest.update(&position.to_le_bytes());
        ContentDigest(digest)
    }

    /// Adds the next bytes of the block.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The checksum of the block.
    #[must_use]
    pub fn finish(&self) -> u64 {
        self.0.finalize()
    }
}
