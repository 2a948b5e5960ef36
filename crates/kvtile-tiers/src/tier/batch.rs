//! Batches: blocks to read or to write, each with the host memory that it goes to or comes from.

use crc_fast::{CrcAlgorithm, Digest};
use kvtile_blocks::{BlockKey, GroupId};

use super::HostBlock;
use crate::error::TierError;

/// What a tier keeps a block by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockName {
    /// Its group.
    pub group: GroupId,
    /// Its key.
    pub key: BlockKey,
}

/// A block to read.
#[derive(Debug)]
pub struct BlockRead {
    /// Which.
    pub name: BlockName,
    /// Where it goes: the whole block, or consecutive pieces of it where the tier reads pieces
    /// ([`Abilities::reads_pieces`](super::Abilities::reads_pieces)).
    pub into: HostBlock,
}

/// A block to write.
#[derive(Debug)]
pub struct BlockWrite {
    /// Which.
    pub name: BlockName,
    /// The key of the block before it in its chain, where there is one.
    pub parent: Option<BlockKey>,
    /// How many blocks stand before it in its chain.
    pub position: u32,
    /// The tenant that it is written for.
    pub tenant: u32,
    /// All of its bytes.
    pub from: HostBlock,
}

impl BlockWrite {
    /// The checksum that a tier which does not verify keeps with the block and returns with it.
    ///
    /// # Errors
    /// Host memory that cannot be read.
    pub fn checksum(&self) -> Result<u64, TierError> {
        let bytes = self.from.bytes()?;
        Ok(content_checksum(&self.name.key, self.position, bytes))
    }
}

/// CRC-64/NVME of a block's key, its position (`u32`, little-endian) and its bytes: neither a changed byte nor
/// another block passes for this one.
#[must_use]
pub fn content_checksum(key: &BlockKey, position: u32, bytes: &[u8]) -> u64 {
    let mut digest = Digest::new(CrcAlgorithm::Crc64Nvme);
    digest.update(key.as_bytes());
    digest.update(&position.to_le_bytes());
    digest.update(bytes);
    digest.finalize()
}
