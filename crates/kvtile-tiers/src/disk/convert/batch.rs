//! One batch of a conversion: blocks are read and verified, permuted, written and synced.

use kvtile_layout::broken;
use kvtile_transfer::{LayoutHandle, LeaseMode, TransferManager, TransferOptions};

use super::{
    super::{SlotStore, SlotWrite, StoredSlot, capacity::slot_bytes},
    ConversionReport, ConvertProgress, LeftOutBlock,
    order::ConvertOrders,
    source::ConvertSource,
};
use crate::error::TierError;

/// Bytes of a batch: its blocks in the stored and in the target order together.
const BATCH_BYTES: u64 = 64 << 20;

/// The memory of a batch.
#[derive(Debug)]
pub(super) struct ConvertBatches {
    manager: TransferManager,
    stored: LayoutHandle,
    /// Equal to `stored` if nothing is permuted.
    target: LayoutHandle,
    /// Blocks per batch.
    blocks: usize,
    block_bytes: u64,
}

impl ConvertBatches {
    /// Memory for a conversion of `blocks` blocks in all.
    pub(super) fn new(
        source: &ConvertSource,
        orders: &ConvertOrders,
        blocks: usize,
    ) -> Result<ConvertBatches, TierError> {
        let slot_bytes = slot_bytes(source.block_bytes())?;
        let most = (BATCH_BYTES / 2 / slot_bytes).clamp(1, blocks.max(1) as u64);
        let manager = TransferManager::new();
        let stored = manager.register(orders.stored.memory(most)?)?;
        let target = match orders.are_equal() {
            true => stored,
            false => manager.register(orders.target.memory(most)?)?,
        };
        Ok(ConvertBatches {
            manager,
            stored,
            target,
            blocks: usize::try_from(most).unwrap_or(usize::MAX),
            block_bytes: orders.target.block_bytes(),
        })
    }

    /// Copies `blocks` to the slots of `store`, from slot 0 on.
    pub(super) fn copy(
        &self,
        (source, blocks): (&ConvertSource, &[(usize, StoredSlot)]),
        store: &SlotStore,
        (converted, progress): (&mut ConversionReport, &mut dyn FnMut(ConvertProgress)),
    ) -> Result<(), TierError> {
        let mut done = 0;
        for batch in blocks.chunks(self.blocks) {
            let whole = self.read(source, batch, converted)?;
            self.permute(whole.len())?;
            self.write(store, &whole, converted)?;
            done += batch.len();
            let of = blocks.len();
            progress(ConvertProgress { blocks: done, of });
        }
        Ok(())
    }

    /// Reads a batch and returns its intact blocks, which lie side by side from block 0 on.
    fn read(
        &self,
        source: &ConvertSource,
        batch: &[(usize, StoredSlot)],
        converted: &mut ConversionReport,
    ) -> Result<Vec<StoredSlot>, TierError> {
        let mut lease = self
            .manager
            .lease(self.stored, &ids(batch.len()), LeaseMode::Write)?;
        let mut whole = Vec::with_capacity(batch.len());
        for (index, block) in batch {
            let buffer = lease.block_mut(whole.len() as u64)?;
            match source.read(*index, buffer) {
                Ok(()) => whole.push(*block),
                Err(reason) => converted.left_out.push(LeftOutBlock {
                    block: *block,
                    reason,
                }),
            }
        }
        Ok(whole)
    }

    /// Permutes the first `blocks` blocks into the target order.
    fn permute(&self, blocks: usize) -> Result<(), TierError> {
        if self.stored == self.target || blocks == 0 {
            return Ok(());
        }
        let ids = ids(blocks);
        let options = TransferOptions::new();
        let moved = self
            .manager
            .execute_transfer(self.stored, &ids, self.target, &ids, options)?;
        moved.wait()?;
        Ok(())
    }

    /// Writes blocks to the slots after those written so far, and waits until they are durable.
    fn write(
        &self,
        store: &SlotStore,
        whole: &[StoredSlot],
        converted: &mut ConversionReport,
    ) -> Result<(), TierError> {
        if whole.is_empty() {
            return Ok(());
        }
        let lease = self
            .manager
            .lease(self.target, &ids(whole.len()), LeaseMode::Read)?;
        let mut writes = Vec::with_capacity(whole.len());
        for (index, block) in whole.iter().enumerate() {
            writes.push(SlotWrite {
                slot: u32::try_from(converted.blocks + index).unwrap_or(u32::MAX),
                key: block.key,
                parent: block.parent,
                position: block.position,
                tenant: block.tenant,
                bytes: lease.block(index as u64)?,
            });
        }
        let failed = store.write(&writes).failed;
        if let Some(failed) = failed.into_iter().next() {
            return Err(failed.error);
        }
        let synced = store.sync();
        if let Some(failure) = synced.failure {
            return Err(failure);
        }
        if synced.blocks != whole.len() {
            broken(format_args!(
                "{} of {} blocks are durable",
                synced.blocks,
                whole.len()
            ));
        }
        converted.blocks += whole.len();
        converted.bytes += self.block_bytes * whole.len() as u64;
        Ok(())
    }
}

fn ids(blocks: usize) -> Vec<usize> {
    (0..blocks).collect()
}
