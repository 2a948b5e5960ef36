//! Records of version 1.
//!
//! ```text
//! 0   key              16 bytes
//! 16  parent's key     16 bytes, zero without one
//! 32  position         u32 little-endian: blocks before it in its chain
//! 36  tenant           u32
//! 40  stamp            u64: sequence number of the write * 256 + flags
//! 48  content          u64: CRC-64/NVME of key, position and the block's bytes
//! 56  seal             u64: CRC-64/NVME of the folder's number, the slot's number, bytes 0..56
//! ```

use crc_fast::{CrcAlgorithm, Digest};
use kvtile_blocks::BlockKey;

use super::super::record::{FLAG_PARENT, FLAG_STORED, RecordReader, StoreId};

/// Bytes of a record.
pub(super) const OLD_RECORD_BYTES: usize = 64;

/// Bytes that the seal covers, beside the folder's and the slot's number.
const SEALED_BYTES: usize = 56;

/// A decoded record: the block that a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OldRecord {
    pub(super) key: BlockKey,
    pub(super) parent: Option<BlockKey>,
    pub(super) position: u32,
    pub(super) tenant: u32,
    pub(super) sequence: u64,
    pub(super) content: u64,
}

/// The result of decoding a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OldDecoded {
    Empty,
    Stored(OldRecord),
    /// Neither zeroes nor a record of this slot.
    Torn,
}

impl OldRecord {
    pub(super) fn decode(bytes: &[u8; OLD_RECORD_BYTES], store: &StoreId, slot: u32) -> OldDecoded {
        if bytes.iter().all(|byte| *byte == 0) {
            return OldDecoded::Empty;
        }
        match OldRecord::decode_sealed(bytes, store, slot) {
            Some(record) => OldDecoded::Stored(record),
            None => OldDecoded::Torn,
        }
    }

    fn decode_sealed(
        bytes: &[u8; OLD_RECORD_BYTES],
        store: &StoreId,
        slot: u32,
    ) -> Option<OldRecord> {
        let mut reader = RecordReader { bytes };
        let key = BlockKey::from_bytes(reader.take()?);
        let parent = reader.take::<16>()?;
        let position = u32::from_le_bytes(reader.take()?);
        let tenant = u32::from_le_bytes(reader.take()?);
        let stamp = u64::from_le_bytes(reader.take()?);
        let content = u64::from_le_bytes(reader.take()?);
        let sealed = u64::from_le_bytes(reader.take()?);
        let parent = match stamp & 0xff {
            FLAG_STORED if parent == [0; 16] => None,
            flags if flags == FLAG_STORED | FLAG_PARENT => Some(BlockKey::from_bytes(parent)),
            _ => return None,
        };
        let (fields, _) = bytes.split_at(SEALED_BYTES);
        let mut seal = Digest::new(CrcAlgorithm::Crc64Nvme);
        seal.update(store);
        seal.update(&slot.to_le_bytes());
        seal.update(fields);
        (sealed == seal.finalize()).then_some(OldRecord {
            key,
            parent,
            position,
            tenant,
            sequence: stamp >> 8,
            content,
        })
    }
}
