//! The traditional config: five counts, an alignment and an element width.

use serde::{Deserialize, Serialize};

use super::{InnerShape, LayoutConfigBuilder};

/// The contents of a traditional layout. It is always valid: [`LayoutConfig::builder`] and
/// deserialising check all fields.
///
/// Sizes are payload. Resolving a layout adds the padding for `alignment`.
///
/// Its JSON is one object with the names of the setters. `alignment`, `dtype_width_bytes`,
/// `inner_shape` and `num_heads` are optional. Unknown fields are skipped, because other systems
/// write some.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "LayoutConfigBuilder")]
pub struct LayoutConfig {
    pub(super) num_blocks: usize,
    pub(super) num_layers: usize,
    pub(super) outer_dim: usize,
    pub(super) page_size: usize,
    pub(super) inner_dim: usize,
    pub(super) alignment: usize,
    pub(super) dtype_width_bytes: usize,
    pub(super) inner_shape: InnerShape,
    pub(super) num_heads: Option<usize>,
}

impl LayoutConfig {
    /// A builder with nothing set.
    ///
    /// ```
    /// use kvtile_layout::tradition::{InnerShape, LayoutConfig};
    ///
    /// let config = LayoutConfig::builder()
    ///     .num_blocks(100)
    ///     .num_layers(32)
    ///     .outer_dim(2)
    ///     .page_size(16)
    ///     .inner_dim(8 * 128)
    ///     .num_heads(8)
    ///     .inner_shape(InnerShape::NHD)
    ///     .build()?;
    /// assert_eq!(config.head_size(), Some(128));
    /// assert_eq!(config.page_bytes(), 16 * 8 * 128 * 2);
    /// # Ok::<(), kvtile_layout::LayoutError>(())
    /// ```
    #[must_use]
    pub fn builder() -> LayoutConfigBuilder {
        LayoutConfigBuilder::default()
    }

    /// A builder that starts with the values of this config.
    #[must_use]
    pub fn to_builder(&self) -> LayoutConfigBuilder {
        LayoutConfigBuilder {
            num_blocks: Some(self.num_blocks),
            num_layers: Some(self.num_layers),
            outer_dim: Some(self.outer_dim),
            page_size: Some(self.page_size),
            inner_dim: Some(self.inner_dim),
            alignment: Some(self.alignment),
            dtype_width_bytes: Some(self.dtype_width_bytes),
            inner_shape: Some(self.inner_shape),
            num_heads: self.num_heads,
        }
    }

    /// Number of blocks.
    #[must_use]
    pub fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    /// Number of layers.
    #[must_use]
    pub fn num_layers(&self) -> usize {
        self.num_layers
    }

    /// Number of planes: 2 for K and V, 1 where there is one.
    #[must_use]
    pub fn outer_dim(&self) -> usize {
        self.outer_dim
    }

    /// Tokens per block.
    #[must_use]
    pub fn page_size(&self) -> usize {
        self.page_size
    }

    /// Elements of one token in one plane: heads times head size.
    #[must_use]
    pub fn inner_dim(&self) -> usize {
        self.inner_dim
    }

    /// The alignment in bytes, a power of two: block strides are rounded up to it, and region
    /// starts must be a multiple of it.
    #[must_use]
    pub fn alignment(&self) -> usize {
        self.alignment
    }

    /// Bytes of an element: 1, 2, 4 or 8.
    #[must_use]
    pub fn dtype_width_bytes(&self) -> usize {
        self.dtype_width_bytes
    }

    /// The order inside one block, layer and plane.
    #[must_use]
    pub fn inner_shape(&self) -> InnerShape {
        self.inner_shape
    }

    /// KV heads, where known.
    #[must_use]
    pub fn num_heads(&self) -> Option<usize> {
        self.num_heads
    }

    /// Elements of one head of one token, where the heads are known.
    #[must_use]
    pub fn head_size(&self) -> Option<usize> {
        self.num_heads
            .and_then(|heads| self.inner_dim.checked_div(heads))
    }

    /// Bytes of one block, layer and plane: `page_size * inner_dim * dtype_width_bytes`.
    #[must_use]
    pub fn page_bytes(&self) -> usize {
        self.page_size * self.inner_dim * self.dtype_width_bytes
    }

    /// Bytes of one block: all layers and planes, without padding.
    #[must_use]
    pub fn bytes_per_block(&self) -> usize {
        self.num_layers * self.outer_dim * self.page_bytes()
    }

    /// Bytes of all blocks, without padding. For an allocation use
    /// [`StridedLayout::region_bytes`](crate::StridedLayout::region_bytes) of the resolved layout,
    /// which includes padding.
    #[must_use]
    pub fn required_bytes(&self) -> usize {
        self.num_blocks * self.bytes_per_block()
    }
}
