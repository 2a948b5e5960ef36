//! Copies of blocks written to a misbehaving tier, and the right and wrong bytes that it returns
//! for them.

use kvtile_tiers::tier::{BlockWrite, HostBlock, ReadSuccess, TierMiss};

use crate::disk::SplitMix64;

/// A copy of a written block.
#[derive(Clone, Debug)]
pub(super) struct CopiedBlock {
    bytes: Vec<u8>,
    pub(super) checksum: u64,
}

/// The bytes returned for a block.
pub(super) enum ServedBytes {
    /// The block.
    Right,
    /// The block with one bit flipped.
    Flipped(u64),
    /// The block's first half and another block's second half, with the block's own checksum.
    Torn(CopiedBlock),
    /// Another block with its checksum.
    Another(CopiedBlock),
    /// The block with one bit flipped, without a checksum.
    WithoutChecksum(u64),
}

impl ServedBytes {
    /// Random wrong bytes; `other` is another block, if there is one.
    pub(super) fn wrong(numbers: &mut SplitMix64, other: Option<CopiedBlock>) -> ServedBytes {
        let bit = numbers.any();
        match (numbers.below(4), other) {
            (0, Some(other)) => ServedBytes::Torn(other),
            (1, Some(other)) => ServedBytes::Another(other),
            (2, _) => ServedBytes::WithoutChecksum(bit),
            _ => ServedBytes::Flipped(bit),
        }
    }
}

impl CopiedBlock {
    /// A copy of a block to write; `None` if its bytes cannot be read.
    pub(super) fn of(block: &BlockWrite) -> Option<CopiedBlock> {
        Some(CopiedBlock {
            bytes: block.from.bytes().ok()?.to_vec(),
            checksum: block.checksum().ok()?,
        })
    }

    /// Fills `into` with right or wrong bytes, and returns the checksum to report.
    pub(super) fn serve(
        &self,
        into: &mut HostBlock,
        how: ServedBytes,
    ) -> Result<ReadSuccess, TierMiss> {
        let into = into.bytes_mut();
        let into = into.map_err(|error| TierMiss::Failed(error.into()))?;
        into.copy_from_slice(&self.bytes);
        let mut checksum = Some(self.checksum);
        match how {
            ServedBytes::Right => {}
            ServedBytes::Flipped(bit) => flip(into, bit),
            ServedBytes::WithoutChecksum(bit) => {
                flip(into, bit);
                checksum = None;
            }
            ServedBytes::Torn(other) => {
                let (_, half) = into.split_at_mut(self.bytes.len() / 2);
                let (_, theirs) = other.bytes.split_at(self.bytes.len() / 2);
                half.copy_from_slice(theirs);
            }
            ServedBytes::Another(other) => {
                into.copy_from_slice(&other.bytes);
                checksum = Some(other.checksum);
            }
        }
        Ok(ReadSuccess { checksum })
    }
}

fn flip(bytes: &mut [u8], bit: u64) {
    let bits = bytes.len() as u64 * 8;
    let at = usize::try_from(bit % bits / 8).unwrap_or(0);
    if let Some(byte) = bytes.get_mut(at) {
        *byte ^= 1 << (bit % 8);
    }
}
