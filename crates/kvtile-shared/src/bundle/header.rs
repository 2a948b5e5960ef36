//! The header of a bundle.
//!
//! ```text
//! 0   "kvtbndl1"
//! 8   header bytes       u32, little-endian like all numbers
//! 12  version            u16
//! 14  flags              u16: bit 0, the blocks are compressed; bits 1 and 2, the logarithm of the bytes of a unit
//!                        (`packing`). A reader refuses flags that it does not know
//! 16  identity           16 bytes, fingerprint
//! 32  block layout       16 bytes, fingerprint
//! 48  first position     u32: blocks before the bundle in its chain, a multiple of the next number
//! 52  blocks             u32
//! 56  block bytes        u64
//! 64  parent's key       16 bytes, zero without one
//! 80  part               64 bytes: its length, its name, zeroes
//! 144 blocks             key 16 bytes, checksum u64 (`content_checksum`), for each block
//!     stored bytes       u64 for each block, if they are compressed: as many as a block has where it is not
//!     seal               u64: CRC-64/NVME of all bytes before it
//!     zeroes             up to a multiple of 4096, the header bytes
//! ```
//!
//! The blocks follow, without space between them.

use crc_fast::{CrcAlgorithm, checksum};
use kvtile_blocks::BlockKey;
use kvtile_layout::identity::Fingerprint;

use super::{BundleForm, BundlePacking};

/// The most blocks of a bundle. A reader of a part of a bundle reads it from its start on, so
/// larger bundles would cost more than the calls that they save.
pub const BUNDLE_BLOCKS_MAX: u32 = 64;

const MAGIC: &[u8; 8] = b"kvtbndl1";
const VERSION: u16 = 1;

/// Where the bytes of a block are.
const BLOCK_BYTES_AT: usize = 56;

/// Bytes in front of the blocks' keys.
const HEAD_BYTES: usize = 144;

/// Bytes of a block's key and checksum, and of its stored bytes, for which there is always room.
const BLOCK_ENTRY_BYTES: usize = 32;

/// Bytes for the part: one for the length, the rest for the name.
const PART_BYTES: usize = 64;

/// The header fills whole pages.
const PAGE_BYTES: usize = 4096;

/// Bytes of the header of a bundle of `blocks` blocks.
pub(crate) fn header_bytes(blocks: u32) -> usize {
    let blocks = usize::try_from(blocks).unwrap_or(usize::MAX);
    let bytes = blocks
        .saturating_mul(BLOCK_ENTRY_BYTES)
        .saturating_add(HEAD_BYTES + 8);
    bytes
        .checked_next_multiple_of(PAGE_BYTES)
        .unwrap_or(usize::MAX)
}

/// A block of a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldBlock {
    /// Its key.
    pub key: BlockKey,
    /// Its [`content_checksum`](kvtile_tiers::tier::content_checksum).
    pub checksum: u64,
    /// Bytes of it in the bundle: as many as a block has, or fewer if it is compressed.
    pub bytes: u64,
}

/// The header of a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BundleHeader {
    /// Number of blocks before the bundle in its chain.
    pub first_position: u32,
    /// The key of the block before the bundle.
    pub parent: Option<BlockKey>,
    /// How its blocks are stored.
    pub packing: BundlePacking,
    /// Its blocks.
    pub blocks: Vec<HeldBlock>,
}

/// Why the beginning of a value is not the header that its name promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderFault {
    /// The value ends within the header.
    #[error("it ends within its header")]
    Short,
    /// The value does not begin as a bundle.
    #[error("it is not a bundle")]
    Foreign,
    /// A version of the format that this reader does not know.
    #[error("it has version {0} of the format; this reader knows version {VERSION}")]
    Version(u16),
    /// Flags that this reader does not know.
    #[error("it has the unknown flags {0:#06x}")]
    Flags(u16),
    /// Another identity, block layout, part, block size or number of blocks.
    #[error("its {0} differs")]
    Other(&'static str),
    /// The header fails its checksum.
    #[error("its header fails its checksum")]
    Seal,
}

impl BundleHeader {
    /// The bytes of the header, padded to whole pages.
    ///
    /// # Panics
    /// If the number of blocks is not that of `form`.
    #[must_use]
    pub fn encode(&self, form: &BundleForm) -> Vec<u8> {
        assert_eq!(
            self.blocks.len() as u64,
            u64::from(form.blocks),
            "blocks of a bundle"
        );
        let bytes = form.header_bytes();
        let mut to = Vec::with_capacity(bytes);
        to.extend(MAGIC);
        to.extend(u32::try_from(bytes).unwrap_or(u32::MAX).to_le_bytes());
        to.extend(VERSION.to_le_bytes());
        to.extend(self.packing.flags().to_le_bytes());
        to.extend(form.identity.as_bytes());
        to.extend(form.layout.as_bytes());
        to.extend(self.first_position.to_le_bytes());
        to.extend(form.blocks.to_le_bytes());
        to.extend(form.block_bytes.to_le_bytes());
        to.extend(self.parent.map_or([0; 16], |parent| *parent.as_bytes()));
        to.extend(part_field(form));
        for block in &self.blocks {
            to.extend(block.key.as_bytes());
            to.extend(block.checksum.to_le_bytes());
        }
        for block in self
            .blocks
            .iter()
            .filter(|_| self.packing != BundlePacking::Raw)
        {
            to.extend(block.bytes.to_le_bytes());
        }
        let seal = checksum(CrcAlgorithm::Crc64Nvme, &to);
        to.extend(seal.to_le_bytes());
        to.resize(bytes, 0);
        to
    }

    /// The bytes of a block that a header states. They are not verified before the header is decoded.
    pub(super) fn stated_block_bytes(header: &[u8]) -> Option<u64> {
        let (_, from) = header.split_at_checked(BLOCK_BYTES_AT)?;
        from.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
    }

    /// Decodes the header of a bundle with this form. `bytes` begins at the start of the value.
    ///
    /// # Errors
    /// Bytes that are not the header of such a bundle.
    pub fn decode(form: &BundleForm, bytes: &[u8]) -> Result<BundleHeader, HeaderFault> {
        let mut from = HeaderBytes(bytes);
        if from.take()? != *MAGIC {
            return Err(HeaderFault::Foreign);
        }
        let length = u32::from_le_bytes(from.take()?);
        let version = u16::from_le_bytes(from.take()?);
        if version != VERSION {
            return Err(HeaderFault::Version(version));
        }
        let flags = u16::from_le_bytes(from.take()?);
        let packing = BundlePacking::from_flags(flags).ok_or(HeaderFault::Flags(flags))?;
        let equal = |is_equal: bool, field| match is_equal {
            true => Ok(()),
            false => Err(HeaderFault::Other(field)),
        };
        let identity = Fingerprint::from_bytes(from.take()?);
        equal(identity == form.identity, "identity")?;
        let layout = Fingerprint::from_bytes(from.take()?);
        equal(layout == form.layout, "block layout")?;
        let first_position = u32::from_le_bytes(from.take()?);
        let blocks = u32::from_le_bytes(from.take()?);
        equal(blocks == form.blocks, "number of blocks")?;
        equal(form.index_of(first_position) == 0, "position")?;
        let block_bytes = u64::from_le_bytes(from.take()?);
        equal(block_bytes == form.block_bytes, "block size")?;
        let parent: [u8; 16] = from.take()?;
        equal(from.take()? == part_field(form), "part")?;
        equal(length as usize == form.header_bytes(), "header size")?;
        let mut held = Vec::new();
        for _ in 0..form.blocks {
            held.push(HeldBlock {
                key: BlockKey::from_bytes(from.take()?),
                checksum: u64::from_le_bytes(from.take()?),
                bytes: form.block_bytes,
            });
        }
        for block in held.iter_mut().filter(|_| packing != BundlePacking::Raw) {
            block.bytes = u64::from_le_bytes(from.take()?);
        }
        let sealed = bytes.len() - from.0.len();
        let (sealed, _) = bytes.split_at(sealed);
        let seal = checksum(CrcAlgorithm::Crc64Nvme, sealed);
        if u64::from_le_bytes(from.take()?) != seal {
            return Err(HeaderFault::Seal);
        }
        let padding = form.header_bytes().saturating_sub(sealed.len() + 8);
        let padding = from.0.get(..padding).ok_or(HeaderFault::Short)?;
        if padding.iter().any(|byte| *byte != 0) {
            return Err(HeaderFault::Seal);
        }
        let sizes = 1..=form.block_bytes;
        equal(
            held.iter().all(|block| sizes.contains(&block.bytes)),
            "size of a compressed block",
        )?;
        Ok(BundleHeader {
            first_position,
            parent: (parent != [0; 16]).then(|| BlockKey::from_bytes(parent)),
            packing,
            blocks: held,
        })
    }
}

fn part_field(form: &BundleForm) -> [u8; PART_BYTES] {
    let mut field = [0; PART_BYTES];
    let name = form.part.as_str().as_bytes();
    let length = u8::try_from(name.len()).unwrap_or(u8::MAX);
    for (to, from) in field.iter_mut().zip([length].iter().chain(name)) {
        *to = *from;
    }
    field
}

/// The bytes of a header that are not decoded yet.
struct HeaderBytes<'a>(&'a [u8]);

impl HeaderBytes<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], HeaderFault> {
        let (field, rest) = self.0.split_first_chunk().ok_or(HeaderFault::Short)?;
        self.0 = rest;
        Ok(*field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::{PackedUnits, PartName};

    pub(crate) fn form() -> BundleForm {
        BundleForm {
            identity: Fingerprint::from_bytes([1; 16]),
            layout: Fingerprint::from_bytes([2; 16]),
            part: PartName::default(),
            block_bytes: 100,
            blocks: 4,
        }
    }

    fn header() -> BundleHeader {
        let block = |number: u8| HeldBlock {
            key: BlockKey::from_bytes([number; 16]),
            checksum: u64::from(number) << 40,
            bytes: 100,
        };
        BundleHeader {
            first_position: 8,
            parent: Some(BlockKey::from_bytes([9; 16])),
            packing: BundlePacking::Raw,
            blocks: (1..5).map(block).collect(),
        }
    }

    fn packed_header() -> BundleHeader {
        let mut header = header();
        header.packing = BundlePacking::Packed(PackedUnits::Halves);
        for (block, bytes) in header.blocks.iter_mut().zip([1, 70, 100, 33]) {
            block.bytes = bytes;
        }
        header
    }

    #[test]
    fn a_header_comes_back_and_every_flipped_bit_is_refused() {
        for header in [header(), packed_header()] {
            comes_back_and_is_refused(&header);
        }
    }

    fn comes_back_and_is_refused(header: &BundleHeader) {
        let bytes = header.encode(&form());
        assert_eq!(bytes.len(), 4096);
        assert_eq!(BundleHeader::decode(&form(), &bytes).as_ref(), Ok(header));
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(BundleHeader::decode(&form(), &bytes).is_err(), "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert_eq!(
                BundleHeader::decode(&form(), &bytes[..length]),
                Err(HeaderFault::Short),
                "{length}"
            );
        }
    }

    #[test]
    fn each_difference_has_its_reason() {
        let bytes = header().encode(&form());
        let change = |change: fn(&mut BundleForm)| {
            let mut other = form();
            change(&mut other);
            BundleHeader::decode(&other, &bytes)
        };
        let other = |field| Err(HeaderFault::Other(field));
        assert_eq!(
            change(|form| form.identity = Fingerprint::from_bytes([3; 16])),
            other("identity")
        );
        assert_eq!(
            change(|form| form.layout = Fingerprint::from_bytes([3; 16])),
            other("block layout")
        );
        assert_eq!(change(|form| form.block_bytes = 101), other("block size"));
        assert_eq!(change(|form| form.blocks = 2), other("number of blocks"));
        let part = |form: &mut BundleForm| form.part = PartName::new("l0-2").unwrap();
        assert_eq!(change(part), other("part"));
        let mut newer = bytes.clone();
        newer[12] = 2;
        assert_eq!(
            BundleHeader::decode(&form(), &newer),
            Err(HeaderFault::Version(2))
        );
        let mut flagged = bytes.clone();
        flagged[14] = 8;
        assert_eq!(
            BundleHeader::decode(&form(), &flagged),
            Err(HeaderFault::Flags(8))
        );
        for bytes in [0, 101, u64::MAX] {
            let mut packed = packed_header();
            packed.blocks[1].bytes = bytes;
            assert_eq!(
                BundleHeader::decode(&form(), &packed.encode(&form())),
                other("size of a compressed block")
            );
        }
        assert_eq!(
            BundleHeader::decode(&form(), &[0; 4096]),
            Err(HeaderFault::Foreign)
        );
    }

    #[test]
    fn the_largest_header_is_one_page() {
        assert_eq!(header_bytes(BUNDLE_BLOCKS_MAX), 4096);
        assert_eq!(BundleForm::blocks_within(720 << 10, 8 << 20), 8);
        assert_eq!(BundleForm::blocks_within(16 << 20, 8 << 20), 1);
        assert_eq!(BundleForm::blocks_within(1, 8 << 20), BUNDLE_BLOCKS_MAX);
    }
}
