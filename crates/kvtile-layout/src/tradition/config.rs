//! The config of the tradition: five counts, an alignment and an element width.

use serde::{Deserialize, Serialize};

use super::{ConfigError, InnerShape};
use crate::error::LayoutError;

/// Largest alignment, in bytes.
pub(super) const ALIGNMENT_MAX: usize = 1 << 30;

/// What a traditional layout holds. Always valid: it is made by [`LayoutConfig::builder`] or by
/// deserialising, and both check everything.
///
/// Sizes are payload; padding by `alignment` comes on top when a layout is resolved.
///
/// As JSON it is one object with the names of the setters. `alignment`, `dtype_width_bytes`,
/// `inner_shape` and `num_heads` may be missing; fields that are not known are skipped, because
/// other writers have some.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "LayoutConfigBuilder")]
pub struct LayoutConfig {
    num_blocks: usize,
    num_layers: usize,
    outer_dim: usize,
    page_size: usize,
    inner_dim: usize,
    alignment: usize,
    dtype_width_bytes: usize,
    inner_shape: InnerShape,
    num_heads: Option<usize>,
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

    /// A builder with everything set as it is here, to change some of it.
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

    /// Tokens a block.
    #[must_use]
    pub fn page_size(&self) -> usize {
        self.page_size
    }

    /// Elements of one token in one plane: heads times head size.
    #[must_use]
    pub fn inner_dim(&self) -> usize {
        self.inner_dim
    }

    /// What block strides are rounded up to and region starts must be a multiple of, in bytes; a
    /// power of two.
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

    /// KV heads, where they are known.
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

    /// Bytes of all blocks, without padding. What to allocate, padding included, is
    /// [`StridedLayout::region_bytes`](crate::StridedLayout::region_bytes) of the resolved layout.
    #[must_use]
    pub fn required_bytes(&self) -> usize {
        self.num_blocks * self.bytes_per_block()
    }
}

/// Sets the fields of a [`LayoutConfig`]; [`build`](LayoutConfigBuilder::build) checks them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct LayoutConfigBuilder {
    num_blocks: Option<usize>,
    num_layers: Option<usize>,
    outer_dim: Option<usize>,
    page_size: Option<usize>,
    inner_dim: Option<usize>,
    alignment: Option<usize>,
    dtype_width_bytes: Option<usize>,
    inner_shape: Option<InnerShape>,
    num_heads: Option<usize>,
}

impl LayoutConfigBuilder {
    /// Number of blocks. Required.
    #[must_use]
    pub fn num_blocks(mut self, num_blocks: usize) -> Self {
        self.num_blocks = Some(num_blocks);
        self
    }

    /// Number of layers. Required.
    #[must_use]
    pub fn num_layers(mut self, num_layers: usize) -> Self {
        self.num_layers = Some(num_layers);
        self
    }

    /// Number of planes, 1 or 2. Required.
    #[must_use]
    pub fn outer_dim(mut self, outer_dim: usize) -> Self {
        self.outer_dim = Some(outer_dim);
        self
    }

    /// Tokens a block. Required.
    #[must_use]
    pub fn page_size(mut self, page_size: usize) -> Self {
        self.page_size = Some(page_size);
        self
    }

    /// Elements of one token in one plane. Required.
    #[must_use]
    pub fn inner_dim(mut self, inner_dim: usize) -> Self {
        self.inner_dim = Some(inner_dim);
        self
    }

    /// Alignment in bytes, a power of two; 1 unless set.
    #[must_use]
    pub fn alignment(mut self, alignment: usize) -> Self {
        self.alignment = Some(alignment);
        self
    }

    /// Bytes of an element, 1, 2, 4 or 8; 2 unless set.
    #[must_use]
    pub fn dtype_width_bytes(mut self, dtype_width_bytes: usize) -> Self {
        self.dtype_width_bytes = Some(dtype_width_bytes);
        self
    }

    /// The order inside one block, layer and plane; [`InnerShape::Unknown`] unless set.
    #[must_use]
    pub fn inner_shape(mut self, inner_shape: InnerShape) -> Self {
        self.inner_shape = Some(inner_shape);
        self
    }

    /// KV heads: a number, or `None`. Needed by every order that places heads apart from elements.
    #[must_use]
    pub fn num_heads(mut self, num_heads: impl Into<Option<usize>>) -> Self {
        self.num_heads = num_heads.into();
        self
    }

    /// Checks everything and makes the config.
    ///
    /// # Errors
    /// A required field that is missing; a count of zero; an `outer_dim` other than 1 and 2; an
    /// alignment that is no power of two up to 2^30; an element width other than 1, 2, 4 and 8;
    /// heads that do not divide `inner_dim`; HND without `num_heads`; sizes, padding included,
    /// that do not fit a signed offset; pages above 1 GiB where the inner shape is unknown.
    pub fn build(self) -> Result<LayoutConfig, LayoutError> {
        let config = LayoutConfig {
            num_blocks: required(self.num_blocks, "num_blocks")?,
            num_layers: required(self.num_layers, "num_layers")?,
            outer_dim: required(self.outer_dim, "outer_dim")?,
            page_size: required(self.page_size, "page_size")?,
            inner_dim: required(self.inner_dim, "inner_dim")?,
            alignment: self.alignment.unwrap_or(1),
            dtype_width_bytes: self.dtype_width_bytes.unwrap_or(2),
            inner_shape: self.inner_shape.unwrap_or_default(),
            num_heads: self.num_heads,
        };
        check_fields(&config)?;
        check_heads(&config)?;
        check_sizes(&config)?;
        config.shape()?;
        Ok(config)
    }
}

impl TryFrom<LayoutConfigBuilder> for LayoutConfig {
    type Error = LayoutError;

    fn try_from(builder: LayoutConfigBuilder) -> Result<LayoutConfig, LayoutError> {
        builder.build()
    }
}

/// A required count, at least 1.
fn required(value: Option<usize>, field: &'static str) -> Result<usize, LayoutError> {
    match value {
        None => Err(ConfigError::MissingField { field }.into()),
        Some(0) => Err(LayoutError::ZeroExtent { what: field.into() }),
        Some(value) => Ok(value),
    }
}

fn check_fields(config: &LayoutConfig) -> Result<(), LayoutError> {
    if config.outer_dim > 2 {
        return Err(ConfigError::OuterDim {
            outer_dim: config.outer_dim,
        }
        .into());
    }
    if !config.alignment.is_power_of_two() || config.alignment > ALIGNMENT_MAX {
        return Err(LayoutError::Alignment {
            alignment: config.alignment as u64,
        });
    }
    if !matches!(config.dtype_width_bytes, 1 | 2 | 4 | 8) {
        return Err(LayoutError::DtypeWidth {
            bytes: config.dtype_width_bytes as u64,
        });
    }
    Ok(())
}

fn check_heads(config: &LayoutConfig) -> Result<(), LayoutError> {
    match config.num_heads {
        None if config.inner_shape == InnerShape::HND => Err(ConfigError::NeedsHeads {
            order: "inner_shape HND".into(),
        }
        .into()),
        None => Ok(()),
        Some(0) => Err(LayoutError::ZeroExtent {
            what: "num_heads".into(),
        }),
        Some(num_heads) if !config.inner_dim.is_multiple_of(num_heads) => {
            Err(ConfigError::HeadsDoNotDivide {
                num_heads,
                inner_dim: config.inner_dim,
            }
            .into())
        }
        Some(_) => Ok(()),
    }
}

/// Every size that a traditional layout of this config can have fits a signed offset, even where
/// each block, layer and plane is padded by itself.
fn check_sizes(config: &LayoutConfig) -> Result<(), LayoutError> {
    config
        .page_size
        .checked_mul(config.inner_dim)
        .and_then(|elements| elements.checked_mul(config.dtype_width_bytes))
        .and_then(|bytes| bytes.checked_next_multiple_of(config.alignment))
        .and_then(|bytes| bytes.checked_mul(config.outer_dim))
        .and_then(|bytes| bytes.checked_mul(config.num_layers))
        .and_then(|bytes| bytes.checked_mul(config.num_blocks))
        .filter(|&bytes| isize::try_from(bytes).is_ok())
        .map(|_| ())
        .ok_or(LayoutError::TooLarge {
            what: "num_blocks * num_layers * outer_dim * page_size * inner_dim * dtype_width_bytes",
        })
}
