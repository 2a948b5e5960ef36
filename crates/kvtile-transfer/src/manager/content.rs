//! The contents of blocks: checksums, digests and patterns.

use crc_fast::CrcAlgorithm;
use kvtile_layout::identity::Fingerprint;
use kvtile_random::mix;

use super::TransferManager;
use crate::{
    error::TransferError,
    lease::{BlockLease, BlockScratch, LayoutHandle, LeaseMode},
};

/// The pattern that [`TransferManager::fill`] writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FillPattern {
    /// The same byte everywhere.
    Constant(u8),
    /// Bytes that differ for every block, layer, plane, token, head and element. They depend on a
    /// seed and on the block's number in the list, so swapped planes and shifted blocks are
    /// detectable. Layouts of equal shape filled with equal seeds and numbers hold equal blocks.
    Distinct {
        /// The seed.
        seed: u64,
    },
}

impl TransferManager {
    /// A digest of a block that is the same in every layout and memory: BLAKE3 of its bytes in
    /// [canonical order](kvtile_layout::StridedLayout::canonical), the first 128 bits.
    ///
    /// # Errors
    /// An unknown handle; a block out of range or being written; a file that cannot be read.
    pub fn block_digest(
        &self,
        handle: LayoutHandle,
        block_id: usize,
    ) -> Result<Fingerprint, TransferError> {
        let lease = self.lease(handle, &[block_id], LeaseMode::Read)?;
        let scratch = gathered(&lease, block_id as u64)?;
        Ok(digest(scratch.bytes()?))
    }

    /// Fills blocks with a pattern; block `i` of the list gets number `i` of the pattern.
    ///
    /// # Errors
    /// An unknown handle; a block out of range or in use; a file that cannot be written.
    pub fn fill(
        &self,
        handle: LayoutHandle,
        block_ids: &[usize],
        pattern: FillPattern,
    ) -> Result<(), TransferError> {
        let mut lease = self.lease(handle, block_ids, LeaseMode::Write)?;
        let mut scratch = BlockScratch::for_block_of(lease.layout().strided())?;
        for (number, &block) in block_ids.iter().enumerate() {
            write_pattern(scratch.bytes_mut()?, number as u64, pattern);
            scratch.scatter(&mut lease, block as u64)?;
        }
        Ok(())
    }
}

/// One block of a lease in canonical order.
pub(crate) fn gathered(lease: &BlockLease, block: u64) -> Result<BlockScratch, TransferError> {
    let mut scratch = BlockScratch::for_block_of(lease.layout().strided())?;
    scratch.gather(lease, block)?;
    Ok(scratch)
}

/// The digest of bytes in canonical order.
fn digest(bytes: &[u8]) -> Fingerprint {
    let mut first = [0; 16];
    let hash = blake3::hash(bytes);
    for (to, from) in first.iter_mut().zip(hash.as_bytes()) {
        *to = *from;
    }
    Fingerprint::from_bytes(first)
}

/// CRC-64/NVME, the checksum of stored bytes: designed for storage, and faster than memory.
pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    crc_fast::checksum(CrcAlgorithm::Crc64Nvme, bytes)
}

fn write_pattern(bytes: &mut [u8], number: u64, pattern: FillPattern) {
    match pattern {
        FillPattern::Constant(byte) => bytes.fill(byte),
        FillPattern::Distinct { seed } => {
            let start = mix(seed ^ mix(number));
            for (index, chunk) in bytes.chunks_mut(8).enumerate() {
                let word = mix(start.wrapping_add(index as u64)).to_le_bytes();
                for (to, from) in chunk.iter_mut().zip(word) {
                    *to = from;
                }
            }
        }
    }
}
