//! The trait `Layout`: which bytes belong to a block, a layer and a plane.

use std::fmt::Debug;

use kvtile_layout::{
    Span, StridedLayout,
    tradition::{LayoutConfig, LayoutTypeDetails},
};
use kvtile_memory::{MemoryDescriptor, OwnedMemoryRegion};

use crate::error::TransferError;

/// A layout with its regions, as the block-manager tradition sees it: maps block, layer and plane to
/// memory.
///
/// It is a view that a layout has where a [`LayoutConfig`] describes it
/// ([`PhysicalLayout::layout`](crate::PhysicalLayout::layout)); nothing that moves bytes needs it.
///
/// Addresses are addresses of this process for memory, and file offsets for files.
pub trait Layout: Send + Sync + Debug {
    /// The configuration.
    fn config(&self) -> &LayoutConfig;

    /// The digits that all addresses come from.
    fn strided(&self) -> &StridedLayout;

    /// The regions, in the order of [`Layout::required_allocations`].
    fn memory_regions(&self) -> &[OwnedMemoryRegion];

    /// What a descriptor says about the order.
    fn serialization_details(&self) -> LayoutTypeDetails;

    /// Address and size of the `page_size * inner_dim * dtype_width_bytes` bytes of one block,
    /// layer and plane.
    ///
    /// # Errors
    /// An index out of range; a layout in which these bytes are not contiguous.
    fn memory_region(
        &self,
        block_id: usize,
        layer_id: usize,
        outer_id: usize,
    ) -> Result<MemoryDescriptor, TransferError> {
        let span = self
            .strided()
            .plane_span(block_id as u64, layer_id as u64, outer_id)?;
        let region = usize::try_from(span.start.region)
            .ok()
            .and_then(|index| self.memory_regions().get(index));
        memory_of_span(span, region.map(|region| region.addr()))
    }

    /// Bytes that each region must have.
    fn required_allocations(&self) -> Vec<usize> {
        let bytes = self.strided().region_bytes().iter();
        // Layouts of more than `usize::MAX` bytes are refused when they are built.
        bytes
            .map(|&bytes| usize::try_from(bytes).unwrap_or(usize::MAX))
            .collect()
    }

    /// Whether all blocks lie in one region, each block in one piece.
    fn is_fully_contiguous(&self) -> bool {
        self.strided().blocks_are_contiguous() && self.strided().region_bytes().len() == 1
    }

    /// Number of blocks.
    fn num_blocks(&self) -> usize {
        self.config().num_blocks()
    }

    /// Number of layers.
    fn num_layers(&self) -> usize {
        self.config().num_layers()
    }

    /// Planes a layer: 2 for keys and values, else 1.
    fn outer_dim(&self) -> usize {
        self.config().outer_dim()
    }

    /// Tokens a block.
    fn page_size(&self) -> usize {
        self.config().page_size()
    }

    /// Elements of one token in one plane.
    fn inner_dim(&self) -> usize {
        self.config().inner_dim()
    }

    /// Bytes of an element.
    fn dtype_width_bytes(&self) -> usize {
        self.config().dtype_width_bytes()
    }
}

/// Address and size of `span`, whose region starts at `base`: an address, or an offset in a file.
pub(super) fn memory_of_span(
    span: Span,
    base: Option<usize>,
) -> Result<MemoryDescriptor, TransferError> {
    let outside = TransferError::OutsidePlan {
        region: span.start.region,
    };
    let (Some(base), Ok(offset), Ok(size)) = (
        base,
        usize::try_from(span.start.offset),
        usize::try_from(span.bytes),
    ) else {
        return Err(outside);
    };
    let addr = base.checked_add(offset).ok_or(outside)?;
    Ok(MemoryDescriptor { addr, size })
}
