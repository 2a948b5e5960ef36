//! The builder of a config; deserialising goes through it too.

use serde::Deserialize;

use super::{ConfigError, InnerShape, LayoutConfig};
use crate::error::{LayoutError, ResolveError, ShapeError};

/// Largest alignment, in bytes.
pub(super) const ALIGNMENT_MAX: usize = 1 << 30;

/// Sets the fields of a [`LayoutConfig`]; [`build`](LayoutConfigBuilder::build) checks them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct LayoutConfigBuilder {
    pub(super) num_blocks: Option<usize>,
    pub(super) num_layers: Option<usize>,
    pub(super) outer_dim: Option<usize>,
    pub(super) page_size: Option<usize>,
    pub(super) inner_dim: Option<usize>,
    pub(super) alignment: Option<usize>,
    pub(super) dtype_width_bytes: Option<usize>,
    pub(super) inner_shape: Option<InnerShape>,
    pub(super) num_heads: Option<usize>,
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

    /// Tokens per block. Required.
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

    /// Alignment in bytes, a power of two; 1 by default.
    #[must_use]
    pub fn alignment(mut self, alignment: usize) -> Self {
        self.alignment = Some(alignment);
        self
    }

    /// Bytes of an element, 1, 2, 4 or 8; 2 by default.
    #[must_use]
    pub fn dtype_width_bytes(mut self, dtype_width_bytes: usize) -> Self {
        self.dtype_width_bytes = Some(dtype_width_bytes);
        self
    }

    /// The order inside one block, layer and plane; [`InnerShape::Unknown`] by default.
    #[must_use]
    pub fn inner_shape(mut self, inner_shape: InnerShape) -> Self {
        self.inner_shape = Some(inner_shape);
        self
    }

    /// KV heads: a number, or `None`. Every order that separates heads from elements needs them.
    #[must_use]
    pub fn num_heads(mut self, num_heads: impl Into<Option<usize>>) -> Self {
        self.num_heads = num_heads.into();
        self
    }

    /// Checks all fields and builds the config.
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
        Some(0) => Err(LayoutError::Shape(ShapeError::ZeroExtent {
            what: field.into(),
        })),
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
        return Err(LayoutError::Resolve(ResolveError::Alignment {
            alignment: config.alignment as u64,
        }));
    }
    if !matches!(config.dtype_width_bytes, 1 | 2 | 4 | 8) {
        return Err(LayoutError::Shape(ShapeError::DtypeWidth {
            bytes: config.dtype_width_bytes as u64,
        }));
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
        Some(0) => Err(LayoutError::Shape(ShapeError::ZeroExtent {
            what: "num_heads".into(),
        })),
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

/// Checks that every size of a traditional layout of this config fits a signed offset, even with
/// padding of each block, layer and plane.
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
        .ok_or(LayoutError::Shape(ShapeError::TooLarge {
            what: "num_blocks * num_layers * outer_dim * page_size * inner_dim * dtype_width_bytes",
        }))
}
