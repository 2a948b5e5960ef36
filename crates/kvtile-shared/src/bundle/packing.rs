//! Lossless compression of the blocks of a bundle.
//!
//! Values of KV have few different exponents, and signs and mantissas that look random. So the bytes of a block are
//! split before they are compressed with zstd: each unit is rotated left by one bit, which puts the exponent into its
//! highest byte (all 8 bits of it for bf16 and f32), and then the bytes of all units that have one place come together,
//! the highest first.
//!
//! Each block is compressed by itself, so that a reader needs only the blocks that it requires. A block that does not
//! become smaller is stored as it is. Checksums are of the bytes before compression.

use kvtile_layout::{broken, identity::Identity};
use zstd::bulk::{Compressor, Decompressor};

/// zstd's level. Higher levels take several times as long for some hundredths of the size.
const LEVEL: i32 = 1;

/// How the blocks of a bundle are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BundlePacking {
    /// As they are.
    #[default]
    Raw,
    /// Compressed.
    Packed(PackedUnits),
}

/// Bytes of the units that are split before a block is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackedUnits {
    /// 1 byte, or of several sizes: nothing is split.
    Bytes,
    /// 2 bytes.
    Halves,
    /// 4 bytes.
    Words,
}

/// The flag of a bundle whose blocks are compressed. The next two bits are the logarithm of the bytes of a unit.
const PACKED: u16 = 1;

impl BundlePacking {
    /// The compression that fits blocks of this identity.
    pub(crate) fn for_blocks_of(identity: &Identity) -> BundlePacking {
        let mut sizes = identity.planes().iter().map(|plane| plane.unit().bytes());
        let first = sizes.next();
        let is_same = sizes.all(|bytes| Some(bytes) == first);
        BundlePacking::Packed(match first {
            Some(2) if is_same => PackedUnits::Halves,
            Some(4) if is_same => PackedUnits::Words,
            _ => PackedUnits::Bytes,
        })
    }

    /// The flags of a bundle in its header.
    pub(super) fn flags(self) -> u16 {
        match self {
            BundlePacking::Raw => 0,
            BundlePacking::Packed(PackedUnits::Bytes) => PACKED,
            BundlePacking::Packed(PackedUnits::Halves) => PACKED | 1 << 1,
            BundlePacking::Packed(PackedUnits::Words) => PACKED | 2 << 1,
        }
    }

    /// The packing with these flags, if they are known.
    pub(super) fn from_flags(flags: u16) -> Option<BundlePacking> {
        let units = [PackedUnits::Bytes, PackedUnits::Halves, PackedUnits::Words];
        let packed = units.into_iter().map(BundlePacking::Packed);
        [BundlePacking::Raw]
            .into_iter()
            .chain(packed)
            .find(|packing| packing.flags() == flags)
    }
}

impl PackedUnits {
    /// The split bytes of a block: of each unit the highest first. Bytes that do not fill a unit stay at the end.
    fn split(self, block: &[u8]) -> Vec<u8> {
        match self {
            PackedUnits::Bytes => block.to_vec(),
            PackedUnits::Halves => {
                let (units, rest) = block.as_chunks::<2>();
                let mut to = vec![0; units.len() * 2];
                let (high, low) = to.split_at_mut(units.len());
                for ((unit, high), low) in units.iter().zip(high).zip(low) {
                    [*low, *high] = u16::from_le_bytes(*unit).rotate_left(1).to_le_bytes();
                }
                to.extend(rest);
                to
            }
            PackedUnits::Words => {
                let (units, rest) = block.as_chunks::<4>();
                let mut to = vec![0; units.len() * 4];
                let (upper, lower) = to.split_at_mut(units.len() * 2);
                let ((a, b), (c, d)) = (
                    upper.split_at_mut(units.len()),
                    lower.split_at_mut(units.len()),
                );
                for ((((unit, a), b), c), d) in units.iter().zip(a).zip(b).zip(c).zip(d) {
                    [*d, *c, *b, *a] = u32::from_le_bytes(*unit).rotate_left(1).to_le_bytes();
                }
                to.extend(rest);
                to
            }
        }
    }

    /// The reverse of [`split`](Self::split).
    fn join(self, split: Vec<u8>) -> Vec<u8> {
        match self {
            PackedUnits::Bytes => split,
            PackedUnits::Halves => {
                let units = split.len() / 2;
                let (halves, rest) = split.split_at(units * 2);
                let (high, low) = halves.split_at(units);
                let pairs = high.iter().zip(low);
                let units = pairs.flat_map(|(high, low)| {
                    u16::from_le_bytes([*low, *high])
                        .rotate_right(1)
                        .to_le_bytes()
                });
                let mut to = Vec::with_capacity(split.len());
                to.extend(units);
                to.extend(rest);
                to
            }
            PackedUnits::Words => {
                let units = split.len() / 4;
                let (words, rest) = split.split_at(units * 4);
                let (upper, lower) = words.split_at(units * 2);
                let ((a, b), (c, d)) = (upper.split_at(units), lower.split_at(units));
                let bytes = a.iter().zip(b).zip(c).zip(d);
                let units = bytes.flat_map(|(((a, b), c), d)| {
                    u32::from_le_bytes([*d, *c, *b, *a])
                        .rotate_right(1)
                        .to_le_bytes()
                });
                let mut to = Vec::with_capacity(split.len());
                to.extend(units);
                to.extend(rest);
                to
            }
        }
    }
}

/// Compresses blocks, one after the other.
pub(crate) struct BlockPacker {
    units: PackedUnits,
    compressor: Compressor<'static>,
}

impl BlockPacker {
    pub(crate) fn new(units: PackedUnits) -> BlockPacker {
        match Compressor::new(LEVEL) {
            Ok(compressor) => BlockPacker { units, compressor },
            Err(error) => broken(format_args!("zstd at level {LEVEL}: {error}")),
        }
    }

    /// The compressed block; `None` if it would not be smaller.
    pub(crate) fn pack(&mut self, block: &[u8]) -> Option<Vec<u8>> {
        let split = self.units.split(block);
        // zstd fails when the result would be larger than this.
        let mut packed = Vec::with_capacity(block.len().saturating_sub(1));
        self.compressor
            .compress_to_buffer(&split, &mut packed)
            .ok()?;
        packed.shrink_to_fit();
        Some(packed)
    }
}

/// The block of `bytes` bytes that was compressed; `None` if `packed` is not that of such a block. It takes memory for
/// two blocks at most, whatever `packed` is.
pub(super) fn unpack(units: PackedUnits, packed: &[u8], bytes: usize) -> Option<Vec<u8>> {
    let mut split = Vec::new();
    split.try_reserve_exact(bytes).ok()?;
    let filled = Decompressor::new()
        .ok()?
        .decompress_to_buffer(packed, &mut split)
        .ok()?;
    (filled == bytes).then(|| units.join(split))
}

#[cfg(test)]
mod tests {
    use kvtile_random::SplitMix64;

    use super::*;

    const ALL: [PackedUnits; 3] = [PackedUnits::Bytes, PackedUnits::Halves, PackedUnits::Words];

    /// What a split is, by its definition: byte `place` from the top of unit `index` is at `place * units + index`.
    fn naive_split(width: usize, block: &[u8]) -> Vec<u8> {
        let units = block.len() / width;
        let mut to = block.to_vec();
        for index in 0..units {
            let bits = |bit: usize| block[index * width + bit / 8] >> (bit % 8) & 1;
            for place in 0..width {
                to[place * units + index] = (0..8).fold(0, |byte, bit| {
                    let rotated = (width - 1 - place) * 8 + bit;
                    let source = (rotated + width * 8 - 1) % (width * 8);
                    byte | bits(source) << bit
                });
            }
        }
        to
    }

    #[test]
    fn split_blocks_are_as_defined_and_come_back() {
        let mut random = SplitMix64::new(5);
        for length in (0..70).chain([4096]) {
            let mut block = vec![0; length];
            random.fill(&mut block);
            for (units, width) in ALL.into_iter().zip([1, 2, 4]) {
                let split = units.split(&block);
                if width > 1 {
                    assert_eq!(
                        split,
                        naive_split(width, &block),
                        "{units:?}, {length} bytes"
                    );
                }
                assert_eq!(units.join(split), block, "{units:?}, {length} bytes");
            }
        }
    }

    #[test]
    fn values_become_smaller_and_noise_is_left() {
        let mut random = SplitMix64::new(9);
        let mut noise = vec![0; 1 << 16];
        random.fill(&mut noise);
        // bf16 between 0.5 and 2 with random signs and mantissas: 9 of 16 bits are random.
        let values: Vec<u8> = (0..1 << 15)
            .flat_map(|_| {
                let (mantissa, sign) = (random.below(128) as u16, random.below(2) as u16);
                let exponent = 126 + random.below(2) as u16;
                (sign << 15 | exponent << 7 | mantissa).to_le_bytes()
            })
            .collect();
        let mut packer = BlockPacker::new(PackedUnits::Halves);
        assert_eq!(packer.pack(&noise), None);
        assert_eq!(packer.pack(&[]), None);
        let packed = packer.pack(&values).unwrap();
        assert!(
            packed.len() * 100 < values.len() * 65,
            "{} of {} bytes",
            packed.len(),
            values.len()
        );
        assert_eq!(
            unpack(PackedUnits::Halves, &packed, values.len()).as_deref(),
            Some(&*values)
        );
        // The units without a split need more.
        let plain = BlockPacker::new(PackedUnits::Bytes).pack(&values);
        assert!(plain.is_none_or(|plain| plain.len() > packed.len()));
    }

    #[test]
    fn damaged_and_hostile_bytes_give_no_block_of_another_size() {
        let block: Vec<u8> = (0..5000_u32).map(|at| (at / 50) as u8).collect();
        let packed = BlockPacker::new(PackedUnits::Words).pack(&block).unwrap();
        let unpacked = |packed: &[u8], bytes| unpack(PackedUnits::Words, packed, bytes);
        assert_eq!(unpacked(&packed, 5000), Some(block));
        for bytes in [0, 4999, 5001] {
            assert_eq!(unpacked(&packed, bytes), None, "{bytes}");
        }
        for length in 0..packed.len() {
            assert_eq!(unpacked(&packed[..length], 5000), None, "{length}");
        }
        for bit in 0..packed.len() * 8 {
            let mut packed = packed.clone();
            packed[bit / 8] ^= 1 << (bit % 8);
            // Another block may come, which its checksum refuses.
            let came = unpacked(&packed, 5000);
            assert!(came.is_none_or(|block| block.len() == 5000));
        }
        // A frame of many zeroes is not unpacked beyond the block's size.
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
        assert_eq!(unpacked(&bomb, 5000), None);
    }

    #[test]
    fn all_packings_have_flags_and_no_others_are_known() {
        let known = (0..=u16::MAX).filter_map(BundlePacking::from_flags);
        let expected = ALL.map(BundlePacking::Packed).into_iter();
        assert!(known.eq([BundlePacking::Raw].into_iter().chain(expected)));
        for packing in ALL.map(BundlePacking::Packed) {
            assert_eq!(BundlePacking::from_flags(packing.flags()), Some(packing));
        }
    }
}
