//! The record of a slot: the metadata that the folder stores outside the slot's bytes.
//!
//! ```text
//! 0   key              16 bytes
//! 16  parent's key     16 bytes, zero without one
//! 32  position         u32 little-endian: blocks before it in its chain
//! 36  tenant           u32
//! 40  stamp            u64: sequence number of the write * 256 + flags
//! 48  seal             u64: CRC-64/NVME of the folder's number, the slot's number and the other bytes
//! 56  checksums        u64 for each piece of the block: CRC-64/NVME of key, position, piece and bytes
//!     zeroes           up to the length of a record: 64 bytes, or the next power of two
//! ```
//!
//! A record of zeroes is an empty slot. The seal covers the folder's and the slot's number, so a
//! record that ends up in another slot or folder is invalid. The length of a record is a power of
//! two. A record longer than a sector may tear in a crash; its seal fails then, and it counts as
//! torn.

use crc_fast::{CrcAlgorithm, Digest};
use kvtile_blocks::BlockKey;
use kvtile_layout::broken;

use crate::tier::BlockPieces;

/// Bytes of the shortest record, which is the record of a block with one piece.
const RECORD_BYTES_MIN: usize = 64;

/// Bytes in front of the checksums.
const HEAD_BYTES: usize = 56;

/// Offset of the seal.
const SEAL_AT: usize = 48;

/// Bytes of a checksum.
const SUM_BYTES: usize = 8;

/// The largest sequence number that a stamp can hold.
pub(super) const SEQUENCE_MAX: u64 = u64::MAX >> 8;

/// The slot holds a block.
pub(super) const FLAG_STORED: u64 = 1;

/// The block has a parent.
pub(super) const FLAG_PARENT: u64 = 2;

/// A random number that identifies a folder, drawn when the folder is created.
pub(super) type StoreId = [u8; 16];

/// The length of a folder's records, which follows from the number of pieces of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RecordForm {
    pieces: usize,
}

impl RecordForm {
    /// The form for blocks that are cut into `pieces`.
    pub(super) fn of(pieces: &BlockPieces) -> RecordForm {
        RecordForm {
            pieces: pieces.count(),
        }
    }

    /// Bytes of a record: a power of two, at most [`PAGE`](super::capacity::PAGE).
    pub(super) fn bytes(self) -> usize {
        let needed = HEAD_BYTES + self.pieces * SUM_BYTES;
        needed.next_power_of_two().max(RECORD_BYTES_MIN)
    }

    /// [`bytes`](RecordForm::bytes) as a `u64`, for offsets.
    pub(super) fn stride(self) -> u64 {
        self.bytes() as u64
    }
}

/// A decoded record: the block that a slot holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SlotRecord {
    pub(super) key: BlockKey,
    pub(super) parent: Option<BlockKey>,
    pub(super) position: u32,
    pub(super) tenant: u32,
    /// At most [`SEQUENCE_MAX`].
    pub(super) sequence: u64,
    /// The checksum of each piece.
    pub(super) sums: Box<[u64]>,
}

/// The result of decoding a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum DecodedRecord {
    Empty,
    Stored(SlotRecord),
    /// Neither zeroes nor a record of this slot.
    Torn,
}

impl SlotRecord {
    /// Appends the record's bytes to `to`.
    pub(super) fn encode(
        &self,
        form: RecordForm,
        (store, slot): (&StoreId, u32),
        to: &mut Vec<u8>,
    ) {
        assert_eq!(
            self.sums.len(),
            form.pieces,
            "checksums of block {} in a record of {form:?}",
            self.key
        );
        let parent = self.parent.map_or([0; 16], |parent| *parent.as_bytes());
        let flags = FLAG_STORED | self.parent.map_or(0, |_| FLAG_PARENT);
        let stamp = self.sequence << 8 | flags;
        let start = to.len();
        to.extend(self.key.as_bytes());
        to.extend(parent);
        to.extend(self.position.to_le_bytes());
        to.extend(self.tenant.to_le_bytes());
        to.extend(stamp.to_le_bytes());
        to.extend([0; SUM_BYTES]);
        to.extend(self.sums.iter().flat_map(|sum| sum.to_le_bytes()));
        to.resize(start + form.bytes(), 0);
        let (_, record) = to.split_at_mut(start);
        let sealed = seal(store, slot, record).to_le_bytes();
        match record.get_mut(SEAL_AT..SEAL_AT + sealed.len()) {
            Some(place) => place.copy_from_slice(&sealed),
            None => broken(format_args!("a record of {} bytes", form.bytes())),
        }
    }

    /// Decodes the record of a slot from `bytes`, which has the length of a record.
    pub(super) fn decode(
        form: RecordForm,
        bytes: &[u8],
        (store, slot): (&StoreId, u32),
    ) -> DecodedRecord {
        if bytes.iter().all(|byte| *byte == 0) {
            return DecodedRecord::Empty;
        }
        match SlotRecord::decode_sealed(form, bytes, (store, slot)) {
            Some(record) => DecodedRecord::Stored(record),
            None => DecodedRecord::Torn,
        }
    }

    fn decode_sealed(
        form: RecordForm,
        bytes: &[u8],
        (store, slot): (&StoreId, u32),
    ) -> Option<SlotRecord> {
        let mut reader = RecordReader { bytes };
        let key = BlockKey::from_bytes(reader.take()?);
        let parent = reader.take::<16>()?;
        let position = u32::from_le_bytes(reader.take()?);
        let tenant = u32::from_le_bytes(reader.take()?);
        let stamp = u64::from_le_bytes(reader.take()?);
        let sealed = u64::from_le_bytes(reader.take()?);
        let mut sums = Vec::with_capacity(form.pieces);
        for _ in 0..form.pieces {
            sums.push(u64::from_le_bytes(reader.take()?));
        }
        let parent = match stamp & 0xff {
            FLAG_STORED if parent == [0; 16] => None,
            flags if flags == FLAG_STORED | FLAG_PARENT => Some(BlockKey::from_bytes(parent)),
            _ => return None,
        };
        (sealed == seal(store, slot, bytes)).then_some(SlotRecord {
            key,
            parent,
            position,
            tenant,
            sequence: stamp >> 8,
            sums: sums.into(),
        })
    }
}

/// The checksum of everything in the record but the seal, with the folder's and the slot's number.
fn seal(store: &StoreId, slot: u32, record: &[u8]) -> u64 {
    let (before, rest) = record.split_at(SEAL_AT.min(record.len()));
    let (_, after) = rest.split_at(SUM_BYTES.min(rest.len()));
    let mut digest = Digest::new(CrcAlgorithm::Crc64Nvme);
    digest.update(store);
    digest.update(&slot.to_le_bytes());
    digest.update(before);
    digest.update(after);
    digest.finalize()
}

/// The checksum of a block's piece `piece` with these bytes. A changed byte, another block and
/// another piece of the same block each change it.
pub(super) fn piece_sum(key: &BlockKey, position: u32, (piece, bytes): (usize, &[u8])) -> u64 {
    let mut digest = Digest::new(CrcAlgorithm::Crc64Nvme);
    digest.update(key.as_bytes());
    digest.update(&position.to_le_bytes());
    digest.update(&(piece as u64).to_le_bytes());
    digest.update(bytes);
    digest.finalize()
}

/// The checksums of all pieces of a block.
pub(super) fn piece_sums(
    pieces: &BlockPieces,
    key: &BlockKey,
    position: u32,
    bytes: &[u8],
) -> Box<[u64]> {
    let pieces = pieces
        .split(0..pieces.count(), bytes)
        .into_iter()
        .enumerate();
    pieces
        .map(|piece| piece_sum(key, position, piece))
        .collect()
}

/// Whether the bytes of the pieces `which` have their checksums; `sums` are those of all pieces.
pub(super) fn are_whole(
    pieces: &BlockPieces,
    which: std::ops::Range<usize>,
    (key, position, sums): (&BlockKey, u32, &[u64]),
    bytes: &[u8],
) -> bool {
    let numbered = which.clone().zip(pieces.split(which, bytes));
    numbered
        .into_iter()
        .all(|(piece, bytes)| sums.get(piece) == Some(&piece_sum(key, position, (piece, bytes))))
}

/// Splits off the fields of a record; holds the bytes that are not yet read.
pub(super) struct RecordReader<'a> {
    pub(super) bytes: &'a [u8],
}

impl RecordReader<'_> {
    pub(super) fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.bytes.split_first_chunk::<N>()?;
        self.bytes = rest;
        Some(*first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORE: StoreId = [7; 16];

    fn record(parent: Option<BlockKey>, pieces: usize) -> SlotRecord {
        SlotRecord {
            key: BlockKey::from_bytes([1; 16]),
            parent,
            position: 3,
            tenant: 9,
            sequence: SEQUENCE_MAX,
            sums: (0..pieces as u64)
                .map(|piece| 0x0123_4567_89ab_cdef ^ piece)
                .collect(),
        }
    }

    fn encoded(record: &SlotRecord, slot: u32) -> (RecordForm, Vec<u8>) {
        let form = RecordForm {
            pieces: record.sums.len(),
        };
        let mut bytes = vec![5];
        record.encode(form, (&STORE, slot), &mut bytes);
        (form, bytes.split_off(1))
    }

    #[test]
    fn records_survive_encoding_and_decoding() {
        for parent in [None, Some([0; 16]), Some([2; 16])] {
            for pieces in [1, 2, 9, 10, 57, BlockPieces::MAX] {
                let record = record(parent.map(BlockKey::from_bytes), pieces);
                let (form, bytes) = encoded(&record, 5);
                assert_eq!(bytes.len(), form.bytes());
                let decoded = SlotRecord::decode(form, &bytes, (&STORE, 5));
                assert_eq!(decoded, DecodedRecord::Stored(record));
                let empty = vec![0; form.bytes()];
                assert_eq!(
                    SlotRecord::decode(form, &empty, (&STORE, 5)),
                    DecodedRecord::Empty
                );
            }
        }
    }

    #[test]
    fn records_are_as_long_as_a_power_of_two_that_divides_a_page() {
        for (pieces, bytes) in [
            (1, 64),
            (2, 128),
            (9, 128),
            (10, 256),
            (57, 512),
            (58, 1024),
            (BlockPieces::MAX, 1024),
        ] {
            assert_eq!(RecordForm { pieces }.bytes(), bytes);
        }
    }

    /// Pitfalls 23 and 36: a record is valid only in its slot, in its folder, and unchanged.
    #[test]
    fn records_of_other_slots_other_folders_and_with_any_flipped_bit_are_torn() {
        for pieces in [1, 5, 20] {
            let (form, bytes) = encoded(&record(Some(BlockKey::from_bytes([2; 16])), pieces), 5);
            assert_eq!(
                SlotRecord::decode(form, &bytes, (&STORE, 6)),
                DecodedRecord::Torn
            );
            assert_eq!(
                SlotRecord::decode(form, &bytes, (&[8; 16], 5)),
                DecodedRecord::Torn
            );
            for bit in 0..bytes.len() * 8 {
                let mut flipped = bytes.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                let decoded = SlotRecord::decode(form, &flipped, (&STORE, 5));
                assert_eq!(decoded, DecodedRecord::Torn, "bit {bit}");
            }
        }
    }

    #[test]
    fn the_checksum_of_equal_bytes_differs_by_key_position_and_piece() {
        let of = |key: u8, position, piece| {
            piece_sum(
                &BlockKey::from_bytes([key; 16]),
                position,
                (piece, b"bytes"),
            )
        };
        assert_ne!(of(1, 0, 0), of(2, 0, 0));
        assert_ne!(of(1, 0, 0), of(1, 1, 0));
        assert_ne!(of(1, 0, 0), of(1, 0, 1));
    }
}
