//! What is kept of each slot outside its bytes.
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
//!
//! A record of zeroes is an empty slot. The seal has the folder's and the slot's number in it, so
//! that a record that strays to another slot or folder is none. Records are as long as a power of
//! two and never cross a sector.

use crc_fast::CrcAlgorithm;
use kvtile_blocks::BlockKey;

pub(super) use crate::tier::content_checksum;

/// Bytes of a record.
pub(super) const RECORD_BYTES: usize = 64;

/// [`RECORD_BYTES`] for offsets.
pub(super) const RECORD_STRIDE: u64 = RECORD_BYTES as u64;

/// The largest sequence number that a stamp can hold.
pub(super) const SEQUENCE_MAX: u64 = u64::MAX >> 8;

/// The slot holds a block.
const FLAG_STORED: u64 = 1;

/// The block has a parent.
const FLAG_PARENT: u64 = 2;

/// The number of a folder, made when it is.
pub(super) type StoreId = [u8; 16];

/// What a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) key: BlockKey,
    pub(super) parent: Option<BlockKey>,
    pub(super) position: u32,
    pub(super) tenant: u32,
    /// At most [`SEQUENCE_MAX`].
    pub(super) sequence: u64,
    pub(super) content: u64,
}

/// What the bytes of a record say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decoded {
    Empty,
    Stored(Record),
    /// Neither zeroes nor a record of this slot.
    Torn,
}

impl Record {
    pub(super) fn encode(&self, store: &StoreId, slot: u32) -> [u8; RECORD_BYTES] {
        let parent = self.parent.map_or([0; 16], |parent| *parent.as_bytes());
        let flags = FLAG_STORED | self.parent.map_or(0, |_| FLAG_PARENT);
        let stamp = self.sequence << 8 | flags;
        let mut bytes = [0; RECORD_BYTES];
        let fields: [&[u8]; 6] = [
            self.key.as_bytes(),
            &parent,
            &self.position.to_le_bytes(),
            &self.tenant.to_le_bytes(),
            &stamp.to_le_bytes(),
            &self.content.to_le_bytes(),
        ];
        let mut rest = bytes.as_mut_slice();
        for field in fields {
            let (here, after) = rest.split_at_mut(field.len());
            here.copy_from_slice(field);
            rest = after;
        }
        let seal = seal(store, slot, &bytes);
        if let Some(last) = bytes.last_chunk_mut::<8>() {
            *last = seal.to_le_bytes();
        }
        bytes
    }

    pub(super) fn decode(bytes: &[u8; RECORD_BYTES], store: &StoreId, slot: u32) -> Decoded {
        if bytes.iter().all(|byte| *byte == 0) {
            return Decoded::Empty;
        }
        match Record::decode_sealed(bytes, store, slot) {
            Some(record) => Decoded::Stored(record),
            None => Decoded::Torn,
        }
    }

    fn decode_sealed(bytes: &[u8; RECORD_BYTES], store: &StoreId, slot: u32) -> Option<Record> {
        let mut reader = Reader { bytes };
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
        (sealed == seal(store, slot, bytes)).then_some(Record {
            key,
            parent,
            position,
            tenant,
            sequence: stamp >> 8,
            content,
        })
    }
}

fn seal(store: &StoreId, slot: u32, record: &[u8; RECORD_BYTES]) -> u64 {
    let mut sealed = [0; 20 + RECORD_BYTES - 8];
    let (number, rest) = sealed.split_at_mut(16);
    number.copy_from_slice(store);
    let (index, rest) = rest.split_at_mut(4);
    index.copy_from_slice(&slot.to_le_bytes());
    let (fields, _) = record.split_at(RECORD_BYTES - 8);
    rest.copy_from_slice(fields);
    crc_fast::checksum(CrcAlgorithm::Crc64Nvme, &sealed)
}

struct Reader<'a> {
    bytes: &'a [u8],
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.bytes.split_first_chunk::<N>()?;
        self.bytes = rest;
        Some(*first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORE: StoreId = [7; 16];

    fn record(parent: Option<BlockKey>) -> Record {
        Record {
            key: BlockKey::from_bytes([1; 16]),
            parent,
            position: 3,
            tenant: 9,
            sequence: SEQUENCE_MAX,
            content: 0x0123_4567_89ab_cdef,
        }
    }

    #[test]
    fn records_come_back_as_they_were() {
        for parent in [None, Some([0; 16]), Some([2; 16])] {
            let record = record(parent.map(BlockKey::from_bytes));
            let bytes = record.encode(&STORE, 5);
            assert_eq!(Record::decode(&bytes, &STORE, 5), Decoded::Stored(record));
        }
        assert_eq!(
            Record::decode(&[0; RECORD_BYTES], &STORE, 5),
            Decoded::Empty
        );
    }

    /// Pitfalls 23 and 36: a record is of its slot and of its folder, and whole.
    #[test]
    fn records_of_other_slots_other_folders_and_with_any_flipped_bit_are_none() {
        let bytes = record(Some(BlockKey::from_bytes([2; 16]))).encode(&STORE, 5);
        assert_eq!(Record::decode(&bytes, &STORE, 6), Decoded::Torn);
        assert_eq!(Record::decode(&bytes, &[8; 16], 5), Decoded::Torn);
        for bit in 0..RECORD_BYTES * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(
                Record::decode(&flipped, &STORE, 5),
                Decoded::Torn,
                "bit {bit}"
            );
        }
    }

    #[test]
    fn the_checksum_of_equal_bytes_differs_by_key_and_position() {
        let of = |key: u8, position| {
            content_checksum(&BlockKey::from_bytes([key; 16]), position, b"bytes")
        };
        assert_ne!(of(1, 0), of(2, 0));
        assert_ne!(of(1, 0), of(1, 1));
    }
}
