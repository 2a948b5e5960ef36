//! Memory for blocks of parts on their way into own blocks. Parts with equal numbers of layers and of
//! heads have equal blocks and share it.

use std::{ops::Range, sync::Arc};

use kvtile_layout::{
    Shape, StridedLayout, Word, broken,
    identity::{Identity, LayoutIdentity},
};
use kvtile_memory::Prefault;
use kvtile_transfer::{LayoutHandle, LeaseMode, TransferManager};
use parking_lot::{Condvar, Mutex};

use crate::{
    error::TierError,
    opening,
    tier::{BlockPieces, HostBlock},
};

/// The most blocks of one size.
const STAGING_BLOCKS: u64 = 64;

/// Blocks of one size.
pub(super) struct PartStaging {
    manager: Arc<TransferManager>,
    handle: LayoutHandle,
    pub(super) layout: Arc<StridedLayout>,
    pub(super) block_layout: LayoutIdentity,
    pub(super) pieces: BlockPieces,
    blocks: usize,
    free: Mutex<Vec<usize>>,
    freed: Condvar,
}

impl std::fmt::Debug for PartStaging {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PartStaging")
            .field("block_bytes", &self.pieces.block_bytes())
            .finish_non_exhaustive()
    }
}

/// Blocks in use, until this is dropped.
pub(super) struct StagedPlaces<'a> {
    staging: &'a PartStaging,
    pub(super) blocks: Vec<usize>,
}

impl PartStaging {
    /// Memory of up to `bytes` bytes, at least one block, for blocks of this shape in the order `word`. The system
    /// provides it at its first use.
    pub(super) fn new(
        manager: &Arc<TransferManager>,
        (shape, identity): (&Shape, &Identity),
        (word, bytes): (&Word, u64),
    ) -> Result<PartStaging, TierError> {
        let blocks = (bytes / shape.block_bytes()?.max(1)).clamp(1, STAGING_BLOCKS);
        let shape = shape.with_num_blocks(blocks)?;
        let storage = opening::storage(
            shape,
            identity,
            Some(word),
            opening::StorageMemory::Own(Prefault::None),
        )?;
        let layout = Arc::new(storage.strided().clone());
        let Ok(count) = usize::try_from(blocks) else {
            broken(format_args!("{blocks} blocks of at most {STAGING_BLOCKS}"))
        };
        Ok(PartStaging {
            manager: Arc::clone(manager),
            block_layout: LayoutIdentity::of_block(&layout),
            pieces: BlockPieces::of_layout(&layout)?,
            layout,
            handle: manager.register(storage)?,
            blocks: count,
            free: Mutex::new((0..count).collect()),
            freed: Condvar::new(),
        })
    }

    /// Takes up to `wanted` free blocks, at least one; waits if none is free. Only a thread that holds no blocks of any
    /// size may wait, so those that hold some can always go on.
    pub(super) fn take(&self, wanted: usize) -> StagedPlaces<'_> {
        let mut free = self.free.lock();
        while free.is_empty() {
            self.freed.wait(&mut free);
        }
        self.split(&mut free, wanted)
    }

    /// Takes up to `wanted` free blocks; `None` if none is free.
    pub(super) fn try_take(&self, wanted: usize) -> Option<StagedPlaces<'_>> {
        let mut free = self.free.lock();
        (!free.is_empty()).then(|| self.split(&mut free, wanted))
    }

    fn split(&self, free: &mut Vec<usize>, wanted: usize) -> StagedPlaces<'_> {
        let left = free.len().saturating_sub(wanted.max(1));
        StagedPlaces {
            blocks: free.split_off(left),
            staging: self,
        }
    }

    /// Blocks that are in use.
    pub(super) fn in_use(&self) -> usize {
        self.blocks.saturating_sub(self.free.lock().len())
    }

    /// Leases pieces of a block that is in use.
    pub(super) fn lease(
        &self,
        block: usize,
        pieces: &Range<usize>,
        mode: LeaseMode,
    ) -> Result<HostBlock, TierError> {
        let place = Arc::new(());
        let lease = match self.pieces.layers(pieces.clone()) {
            Some(layers) => self
                .manager
                .lease_layers(self.handle, &[block], layers, mode)?,
            // Pieces without known layers are whole blocks.
            None => self.manager.lease(self.handle, &[block], mode)?,
        };
        HostBlock::part(lease, self.pieces.bytes(pieces.clone()).start, place)
    }
}

impl Drop for StagedPlaces<'_> {
    fn drop(&mut self) {
        self.staging.free.lock().append(&mut self.blocks);
        self.staging.freed.notify_all();
    }
}
