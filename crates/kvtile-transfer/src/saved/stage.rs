//! Staging memory in the order of the file, where blocks are verified before they are copied on.

use kvtile_layout::{Axis, StridedLayout, tradition::LayoutSpec};

use super::{BlockCheck, SavedCache, format::SavedHeader, open::same};
use crate::{
    error::TransferError,
    lease::{LayoutHandle, LeaseMode},
    manager::{TransferManager, TransferOptions},
    physical::PhysicalLayout,
};

/// Bytes that are staged at a time. Few, because a load touches every page of the stage for the
/// first time, and in a larger stage that costs more than the read.
const STAGE_BYTES: u64 = 4 << 20;

/// The file, the staging memory of a batch of blocks, and the destination.
pub(super) struct LoadStage<'a> {
    cache: &'a SavedCache,
    manager: &'a TransferManager,
    file: LayoutHandle,
    memory: LayoutHandle,
    destination: LayoutHandle,
    /// Number of blocks of a batch.
    blocks: usize,
}

impl<'a> LoadStage<'a> {
    pub(super) fn new(
        cache: &'a SavedCache,
        manager: &'a TransferManager,
        destination: LayoutHandle,
        wanted: usize,
    ) -> Result<LoadStage<'a>, TransferError> {
        let header = cache.header();
        let (blocks, held) = batch(header, wanted)?;
        let memory = PhysicalLayout::builder()
            .with_aligned_shape(header.shape.with_num_blocks(held)?, header.alignment)
            .layout(LayoutSpec::Word(header.word.clone()))
            .allocate_system()
            .build()?;
        let file = manager.register(cache.layout()?)?;
        let memory = manager.register(memory).inspect_err(|_| {
            // Only the first error is reported.
            let _ = manager.unregister(file);
        })?;
        Ok(LoadStage {
            cache,
            manager,
            file,
            memory,
            destination,
            blocks,
        })
    }

    /// Loads batch after batch. Returns an error if nothing was written before it; otherwise the
    /// blocks of the failed batch get that error.
    pub(super) fn load_all(
        &self,
        blocks: &[(usize, usize)],
    ) -> Result<Vec<BlockCheck>, TransferError> {
        let mut checks: Vec<BlockCheck> = Vec::with_capacity(blocks.len());
        for batch in blocks.chunks(self.blocks) {
            match self.load(batch) {
                Ok(loaded) => checks.extend(loaded),
                Err(error) if checks.iter().any(|check| check.result.is_ok()) => {
                    checks.extend(batch.iter().map(|&(block, _)| BlockCheck {
                        block,
                        result: Err(error.clone()),
                    }));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(checks)
    }

    /// Reads a batch, verifies it, and copies the valid blocks to the destination.
    fn load(&self, batch: &[(usize, usize)]) -> Result<Vec<BlockCheck>, TransferError> {
        let results = self.read(batch)?;
        let slots = results.iter().enumerate();
        let (good, targets): (Vec<usize>, Vec<usize>) = slots
            .zip(batch)
            .filter(|((_, result), _)| result.is_ok())
            .map(|((slot, _), (_, target))| (slot, *target))
            .unzip();
        if !good.is_empty() {
            self.copy((self.memory, &good), (self.destination, &targets))?;
        }
        let checks = batch.iter().zip(results);
        Ok(checks
            .map(|(&(block, _), result)| BlockCheck { block, result })
            .collect())
    }

    /// Reads a batch into staging memory and compares its checksums.
    fn read(
        &self,
        batch: &[(usize, usize)],
    ) -> Result<Vec<Result<(), TransferError>>, TransferError> {
        let slots: Vec<usize> = (0..batch.len()).collect();
        let saved: Vec<usize> = batch.iter().map(|(saved, _)| *saved).collect();
        let read = match self.copy((self.file, &saved), (self.memory, &slots)) {
            Ok(()) => vec![Ok(()); batch.len()],
            // Perhaps only some blocks are unreadable, so each is read alone.
            Err(_) => slots
                .iter()
                .zip(&saved)
                .map(|(slot, block)| self.copy((self.file, &[*block]), (self.memory, &[*slot])))
                .collect(),
        };
        let lease = self.manager.lease(self.memory, &slots, LeaseMode::Read)?;
        let check = |(slot, block): (&usize, &usize)| {
            let computed = lease.checksum(*slot as u64)?;
            let stored = self.cache.stored_checksum(*block).unwrap_or(!computed);
            same(*block, stored, computed)
        };
        let checked = read.into_iter().zip(slots.iter().zip(&saved));
        Ok(checked
            .map(|(read, pair)| read.and_then(|()| check(pair)))
            .collect())
    }

    fn copy(
        &self,
        (from, from_blocks): (LayoutHandle, &[usize]),
        (to, to_blocks): (LayoutHandle, &[usize]),
    ) -> Result<(), TransferError> {
        let options = TransferOptions::new();
        let manager = self.manager;
        let done = manager.execute_transfer(from, from_blocks, to, to_blocks, options)?;
        done.wait().map(|_| ())
    }
}

impl Drop for LoadStage<'_> {
    fn drop(&mut self) {
        for handle in [self.file, self.memory] {
            // No leases are left: every transfer of the stage was waited for.
            let _ = self.manager.unregister(handle);
        }
    }
}

/// The number of blocks of a batch, and of the staging memory. The latter is rounded up to a
/// multiple of the block axis's modulus.
fn batch(header: &SavedHeader, wanted: usize) -> Result<(usize, u64), TransferError> {
    let layout = StridedLayout::resolve(&header.word, &header.shape, header.alignment)?;
    let held: u64 = layout.region_bytes().iter().sum();
    let padded = (held / header.shape.num_blocks()).max(1);
    let fit = usize::try_from(STAGE_BYTES / padded).unwrap_or(usize::MAX);
    let blocks = fit.clamp(1, wanted.max(1));
    let digits = layout.pieces().iter().flat_map(|piece| piece.digits());
    let moduli = digits.filter(|d| d.axis == Axis::B).map(|d| d.low);
    let modulus = moduli.max().unwrap_or(1);
    let held = (blocks as u64).next_multiple_of(modulus);
    Ok((blocks, held))
}
