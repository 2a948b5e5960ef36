//! Block leases, and safe access to the bytes of leased blocks.

use std::{ops::Range, sync::Arc};

use kvtile_layout::RegionSpan;

use super::{
    LayoutHandle, SharedLedger, SideBlockIds,
    layers::HeldLayers,
    ledger::{LeaseSide, LeaseTicket},
    lock,
    spans::stored_spans,
};
use crate::{
    error::{CopyError, LeaseError, TransferError},
    execute::access,
    physical::PhysicalLayout,
};

/// The access mode of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseMode {
    /// Read access; other leases may read too.
    Read,
    /// Exclusive write access.
    Write,
}

/// Holds blocks of a layout, or some of their layers. While it lives, a read lease excludes
/// writers, and a write lease excludes all other access.
///
/// An engine holds a write lease while it fills blocks, and a read lease while attention reads
/// them. The manager refuses a transfer that conflicts with a lease.
pub struct BlockLease {
    ledger: SharedLedger,
    ticket: LeaseTicket,
    handle: LayoutHandle,
    layout: PhysicalLayout,
    layers: HeldLayers,
    blocks: Vec<u64>,
    mode: LeaseMode,
}

impl std::fmt::Debug for BlockLease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlockLease")
            .field("handle", &self.handle)
            .field("blocks", &self.blocks)
            .field("layers", &self.layers())
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

impl BlockLease {
    pub(crate) fn take(
        ledger: &SharedLedger,
        handle: LayoutHandle,
        blocks: &[u64],
        layers: Option<Range<u64>>,
        mode: LeaseMode,
    ) -> Result<BlockLease, TransferError> {
        let mut blocks = blocks.to_vec();
        blocks.sort_unstable();
        blocks.dedup();
        let mut guard = lock(ledger);
        let layout = guard.layout(handle)?.clone();
        layout.bound()?;
        let layers = match layers {
            None => HeldLayers::All,
            Some(range) => HeldLayers::of(range, layout.shape().num_layers())?,
        };
        let num_blocks = layout.shape().num_blocks();
        if let Some(&block) = blocks.last().filter(|&&block| block >= num_blocks) {
            return Err(TransferError::Layout(kvtile_layout::LayoutError::Plan(
                kvtile_layout::PlanError::BlockOutOfRange {
                    side: "leased",
                    block,
                    num_blocks,
                },
            )));
        }
        let side = LeaseSide {
            handle,
            layers: &layers,
        };
        let ticket = guard.lease(side, SideBlockIds::Leased(blocks.iter()), mode)?;
        drop(guard);
        Ok(BlockLease {
            ledger: Arc::clone(ledger),
            ticket,
            handle,
            layout,
            layers,
            blocks,
            mode,
        })
    }

    /// The handle of the layout.
    #[must_use]
    pub fn handle(&self) -> LayoutHandle {
        self.handle
    }

    /// The blocks, sorted.
    #[must_use]
    pub fn blocks(&self) -> &[u64] {
        &self.blocks
    }

    /// The leased layers of each block: all layers, unless the lease was taken for some.
    #[must_use]
    pub fn layers(&self) -> Range<u64> {
        self.layers.range(self.layout.shape().num_layers())
    }

    /// The access mode.
    #[must_use]
    pub fn mode(&self) -> LeaseMode {
        self.mode
    }

    /// The bytes of one block and layer, all planes.
    ///
    /// # Errors
    /// A block or layer that is not leased; a layer out of range; bytes that are not contiguous,
    /// not in memory, or in memory that another process may change.
    pub fn page(&self, block: u64, layer: u64) -> Result<&[u8], TransferError> {
        self.check_not_shared()?;
        let span = self.span(block, layer)?;
        // SAFETY: the lease holds this layer of the block and keeps writers away from it while
        // `self` is borrowed; where layers are contiguous, no two units share a byte, so no other
        // layer has these bytes.
        unsafe { access::bytes(self.layout.bound()?, span) }
    }

    /// The bytes of one block and layer, all planes, for writing.
    ///
    /// # Errors
    /// As for [`BlockLease::page`]; a read lease; read-only memory.
    pub fn page_mut(&mut self, block: u64, layer: u64) -> Result<&mut [u8], TransferError> {
        self.check_not_shared()?;
        let span = self.span(block, layer)?;
        self.check_writable()?;
        // SAFETY: a write lease excludes all other access to this layer of the block, no other
        // layer has these bytes (as above), and `self` is borrowed exclusively.
        unsafe { access::bytes_mut(self.layout.bound()?, span) }
    }

    /// The bytes of one block, all layers and planes.
    ///
    /// # Errors
    /// A block of which the lease does not hold all layers; bytes that are not contiguous, not in
    /// memory, or in memory that another process may change.
    pub fn block(&self, block: u64) -> Result<&[u8], TransferError> {
        self.check_not_shared()?;
        let span = self.block_span(block)?;
        // SAFETY: the lease holds all layers of the block and keeps writers away while `self` is borrowed.
        unsafe { access::bytes(self.layout.bound()?, span) }
    }

    /// The bytes of one block, all layers and planes, for writing.
    ///
    /// # Errors
    /// As for [`BlockLease::block`]; a read lease; read-only memory.
    pub fn block_mut(&mut self, block: u64) -> Result<&mut [u8], TransferError> {
        self.check_not_shared()?;
        let span = self.block_span(block)?;
        self.check_writable()?;
        // SAFETY: a write lease of all layers excludes all other access, and `self` is borrowed
        // exclusively.
        unsafe { access::bytes_mut(self.layout.bound()?, span) }
    }

    /// The bytes of the leased layers of one block, in layer order. A lease of all layers gives all
    /// bytes of the block.
    ///
    /// # Errors
    /// A block that is not leased; bytes that are not contiguous in layer order
    /// ([`PhysicalLayout::layer_ranges`]), not in memory, or in memory that another process may
    /// change.
    pub fn part(&self, block: u64) -> Result<&[u8], TransferError> {
        self.check_not_shared()?;
        let span = self.part_span(block)?;
        // SAFETY: the lease holds these layers of the block and keeps writers away from them while `self` is
        // borrowed; no other layer has these bytes, since no two units of a contiguous block share one.
        unsafe { access::bytes(self.layout.bound()?, span) }
    }

    /// The bytes of the leased layers of one block, for writing.
    ///
    /// # Errors
    /// As for [`BlockLease::part`]; a read lease; read-only memory.
    pub fn part_mut(&mut self, block: u64) -> Result<&mut [u8], TransferError> {
        self.check_not_shared()?;
        let span = self.part_span(block)?;
        self.check_writable()?;
        // SAFETY: a write lease excludes all other access to these layers of the block, no other
        // layer has these bytes (as above), and `self` is borrowed exclusively.
        unsafe { access::bytes_mut(self.layout.bound()?, span) }
    }

    /// CRC-64/NVME of the stored bytes of a block: the bytes of its units without padding, in the
    /// order of regions and offsets. It depends on the layout; [`TransferManager::block_digest`]
    /// does not.
    ///
    /// [`TransferManager::block_digest`]: crate::TransferManager::block_digest
    ///
    /// # Errors
    /// A block of which the lease does not hold all layers; a file that cannot be read.
    pub fn checksum(&self, block: u64) -> Result<u64, TransferError> {
        self.check_holds_all(block)?;
        let bound = self.layout.bound()?;
        let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
        let mut buffer = Vec::new();
        for span in stored_spans(bound.layout(), &[block], u64::MAX)? {
            // SAFETY: the lease holds all layers of the block and keeps writers away from them.
            unsafe {
                access::for_each_piece(bound, span, &mut buffer, |bytes| digest.update(bytes))
            }?;
        }
        Ok(digest.finalize())
    }

    /// The layout of the leased blocks.
    pub(crate) fn layout(&self) -> &PhysicalLayout {
        &self.layout
    }

    fn span(&self, block: u64, layer: u64) -> Result<RegionSpan, TransferError> {
        self.check_holds(block)?;
        let layers = self.layers();
        if layer < self.layout.shape().num_layers() && !layers.contains(&layer) {
            return Err(TransferError::Lease(LeaseError::LayerNotLeased {
                handle: self.handle.to_string(),
                block,
                layer,
                layers,
            }));
        }
        Ok(self.layout.strided().page_span(block, layer)?)
    }

    fn block_span(&self, block: u64) -> Result<RegionSpan, TransferError> {
        self.check_holds_all(block)?;
        Ok(self.layout.strided().block_span(block)?)
    }

    fn part_span(&self, block: u64) -> Result<RegionSpan, TransferError> {
        self.check_holds(block)?;
        match &self.layers {
            HeldLayers::All => Ok(self.layout.strided().block_span(block)?),
            HeldLayers::Part(layers) => self.layout.layers_span(block, layers),
        }
    }

    /// A lease binds this process only: memory that another process may change cannot be a `&[u8]`.
    fn check_not_shared(&self) -> Result<(), TransferError> {
        match self.layout.is_written_by_others() {
            false => Ok(()),
            true => Err(TransferError::Lease(LeaseError::SharedPages)),
        }
    }

    pub(super) fn check_writable(&self) -> Result<(), TransferError> {
        let writable = self.layout.bound()?.is_writable();
        if writable && self.mode == LeaseMode::Write {
            return Ok(());
        }
        Err(TransferError::Copy(CopyError::ReadOnly))
    }

    pub(super) fn check_holds(&self, block: u64) -> Result<(), TransferError> {
        if self.blocks.binary_search(&block).is_ok() {
            return Ok(());
        }
        Err(TransferError::Lease(LeaseError::NotLeased {
            handle: self.handle.to_string(),
            block,
        }))
    }

    pub(super) fn check_holds_all(&self, block: u64) -> Result<(), TransferError> {
        self.check_holds(block)?;
        match &self.layers {
            HeldLayers::All => Ok(()),
            HeldLayers::Part(layers) => Err(TransferError::Lease(LeaseError::BlockPartlyLeased {
                handle: self.handle.to_string(),
                block,
                layers: layers.clone(),
                num_layers: self.layout.shape().num_layers(),
            })),
        }
    }
}

impl Drop for BlockLease {
    fn drop(&mut self) {
        let blocks = SideBlockIds::Leased(self.blocks.iter());
        lock(&self.ledger).release(&self.ticket, blocks);
    }
}
