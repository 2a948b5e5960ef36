//! The small enums of the tradition and their serialised forms.

use serde::{Deserialize, Serialize};

use crate::tensor::TensorFormat;

/// The order of tokens, heads and elements inside one block, layer and plane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum InnerShape {
    /// Not stated: the inner part of each plane is one opaque unit, which is copied whole or
    /// refused.
    #[default]
    Unknown,
    /// Tokens, then heads, then elements.
    NHD,
    /// Heads, then tokens, then elements.
    HND,
}

impl From<TensorFormat> for InnerShape {
    fn from(format: TensorFormat) -> InnerShape {
        match format {
            TensorFormat::NHD => InnerShape::NHD,
            TensorFormat::HND => InnerShape::HND,
            TensorFormat::Unknown => InnerShape::Unknown,
        }
    }
}

/// The position of the block axis in the regions of a layer-separate layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum BlockDimension {
    /// `[num_blocks, outer_dim, page_size, inner_dim]`: the word `L|BK…`.
    BlockIsFirstDim,
    /// `[outer_dim, num_blocks, page_size, inner_dim]`: the word `L|KB…`.
    BlockIsSecondDim,
}

/// The encoding of the blocks of a fully contiguous layout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum BlockFormat {
    /// The engine's own encoding.
    #[default]
    Operational,
}

/// The family of a layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum LayoutKind {
    /// `[num_blocks, num_layers, outer_dim, page_size, inner_dim]` in one region.
    FullyContiguous,
    /// One region per layer.
    LayerSeparate(BlockDimension),
    /// Any other order, given by a word or by digits.
    Strided,
}
