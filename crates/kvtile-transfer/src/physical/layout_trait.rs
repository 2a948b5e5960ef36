//! The trait `Layout`: maps a block, a layer and a plane to bytes.

use std::fmt::Debug;

use kvtile_layout::{
    RegionSpan, StridedLayout,
    tradition::{LayoutConfig, LayoutTypeDetails},
};
use kvtile_memory::{MemoryDescriptor, OwnedMemoryRegion};

use crate::error::{CopyError, TransferError};

/// A layout with its regions, as the block-manager tradition defines it: maps a block, a layer and
/// a plane to memory.
///
/// A layout has this view where a [`LayoutConfig`] describes it
/// ([`PhysicalLayout::layout`](crate::PhysicalLayout::layout)). Code that moves bytes does not need
/// it.
///
/// Addresses are addresses of this process for memory, and file offsets for files.
pub trait Layout: Send + Sync + Debug {
    /// The configuration.
    fn config(&self) -> &LayoutConfig;

    /// The strided layout from which all addresses are computed.
    fn strided(&self) -> &StridedLayout;

    /// The regions, in the order of [`Layout::required_allocations`].
    fn memory_regions(&self) -> &[OwnedMemoryRegion];

    /// The order, as a descriptor describes it.
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

    /// Required size of each region, in bytes.
    fn required_allocations(&self) -> Vec<usize> {
        let bytes = self.strided().region_bytes().iter();
        // The builder refuses layouts of more than `usize::MAX` bytes.
        bytes
            .map(|&bytes| usize::try_from(bytes).unwrap_or(usize::MAX))
            .collect()
    }

    /// Whether all blocks lie in one region and each block is contiguous.
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
    span: RegionSpan,
    base: Option<usize>,
) -> Result<MemoryDescriptor, TransferError> {
    let outside = TransferError::Copy(CopyError::OutsidePlan {
        region: span.start.region,
    });
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
