//! The implementations of `Layout`: the two of the tradition, and one for all other orders.

use std::sync::Arc;

use kvtile_layout::{
    StridedLayout,
    tradition::{BlockDimension, LayoutConfig, LayoutSpec, LayoutTypeDetails},
};
use kvtile_memory::OwnedMemoryRegion;

use super::Layout;
use crate::{error::TransferError, execute::BoundLayout};

/// A configuration, its details and the layout bound to its regions.
#[derive(Debug, Clone)]
pub(super) struct ConfiguredLayout {
    pub(super) config: LayoutConfig,
    pub(super) details: LayoutTypeDetails,
    pub(super) layout: Arc<BoundLayout>,
}

impl ConfiguredLayout {
    fn new(
        config: LayoutConfig,
        spec: &LayoutSpec,
        regions: Vec<OwnedMemoryRegion>,
    ) -> Result<ConfiguredLayout, TransferError> {
        let shape = spec.shape(&config)?;
        let alignment = config.alignment() as u64;
        let strided = spec.resolve(&shape, config.inner_shape(), alignment)?;
        let details = LayoutTypeDetails::describing(spec, &shape, &config)?;
        Ok(ConfiguredLayout {
            config,
            details,
            layout: Arc::new(BoundLayout::new(Arc::new(strided), regions)?),
        })
    }
}

/// One region `[num_blocks, num_layers, outer_dim, page_size, inner_dim]`: the word `BLKNHC`, or
/// `BLKHNC` where the inner shape is HND.
#[derive(Debug, Clone)]
pub struct FullyContiguousLayout(pub(super) ConfiguredLayout);

impl FullyContiguousLayout {
    /// Binds `config` to `memory`.
    ///
    /// # Errors
    /// A region that is too small, misaligned, or that the CPU and files of this process cannot
    /// reach.
    pub fn new(
        config: LayoutConfig,
        memory: OwnedMemoryRegion,
    ) -> Result<FullyContiguousLayout, TransferError> {
        ConfiguredLayout::new(config, &LayoutSpec::FullyContiguous, vec![memory])
            .map(FullyContiguousLayout)
    }
}

/// One region a layer: `[num_blocks, outer_dim, page_size, inner_dim]` (block first, the word
/// `L|BKNHC`) or `[outer_dim, num_blocks, page_size, inner_dim]` (block second, `L|KBNHC`).
#[derive(Debug, Clone)]
pub struct LayerSeparateLayout(pub(super) ConfiguredLayout, pub(super) BlockDimension);

impl LayerSeparateLayout {
    /// Binds `config` to `memory`, one region a layer.
    ///
    /// # Errors
    /// Not one region a layer; a region that is too small, misaligned, overlapping another, or
    /// that the CPU and files of this process cannot reach.
    pub fn new(
        config: LayoutConfig,
        memory: Vec<OwnedMemoryRegion>,
        block_dim: BlockDimension,
    ) -> Result<LayerSeparateLayout, TransferError> {
        let spec = LayoutSpec::LayerSeparate(block_dim);
        Ok(LayerSeparateLayout(
            ConfiguredLayout::new(config, &spec, memory)?,
            block_dim,
        ))
    }

    /// The position of the block axis.
    #[must_use]
    pub fn block_dim(&self) -> BlockDimension {
        self.1
    }
}

/// Any other layout: a word, or explicit strides.
#[derive(Debug, Clone)]
pub struct WordLayout(pub(super) ConfiguredLayout);

/// Implements the trait through the inner `ConfiguredLayout`: the accessors are the same for every family.
macro_rules! layout_of_bound {
    ($($name:ty),*) => {$(
        impl Layout for $name {
            fn config(&self) -> &LayoutConfig {
                &self.0.config
            }

            fn strided(&self) -> &StridedLayout {
                self.0.layout.layout()
            }

            fn memory_regions(&self) -> &[OwnedMemoryRegion] {
                self.0.layout.regions()
            }

            fn serialization_details(&self) -> LayoutTypeDetails {
                self.0.details.clone()
            }
        }
    )*};
}

layout_of_bound!(FullyContiguousLayout, LayerSeparateLayout, WordLayout);
