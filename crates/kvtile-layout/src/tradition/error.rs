//! The errors of a traditional config and of layout details.

use thiserror::Error;

use super::{BlockDimension, InnerShape, KvBlockLayout};
use crate::shape::PlaneName;

/// Why a [`LayoutConfig`](super::LayoutConfig) or the details of a layout were refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A required field that is not set.
    #[error("layout config: {field} is missing; set it before build()")]
    MissingField {
        /// The field.
        field: &'static str,
    },
    /// A number of planes other than 1 and 2.
    #[error("outer_dim is {outer_dim}; it is 2 (K and V) or 1 (one plane)")]
    OuterDim {
        /// The number given.
        outer_dim: usize,
    },
    /// Heads that do not divide the inner dimension.
    #[error("num_heads {num_heads} does not divide inner_dim {inner_dim}")]
    HeadsDoNotDivide {
        /// KV heads.
        num_heads: usize,
        /// Elements of one token in one plane.
        inner_dim: usize,
    },
    /// An order that places heads, without `num_heads`.
    #[error("{order} places heads, and num_heads is not set; set num_heads")]
    NeedsHeads {
        /// The order.
        order: String,
    },
    /// A kind without an inner order, over planes for which the order matters.
    #[error(
        "plane {plane} has {tokens} tokens and {heads} heads, and the inner shape is Unknown; \
         say NHD or HND, or give a word"
    )]
    InnerOrderUnknown {
        /// The plane.
        plane: PlaneName,
        /// Tokens per block.
        tokens: u64,
        /// Its heads.
        heads: u64,
    },
    /// A custom order that repeats an axis, and so lacks another one.
    #[error("custom order {order}: Layer, Outer, Page and Head occur once each")]
    RepeatedBlockDim {
        /// The order.
        order: String,
    },
    /// An order inside a block that one region a layer cannot hold.
    #[error("a layer-separate layout with {block_dim:?} cannot hold the order {kv_block_layout}")]
    LayerSeparateOrder {
        /// The position of the block axis.
        block_dim: BlockDimension,
        /// The order.
        kv_block_layout: KvBlockLayout,
    },
    /// Two statements of the inner order that contradict each other.
    #[error("inner_shape {inner_shape:?} contradicts kv_block_layout {kv_block_layout}")]
    InnerShapeContradicts {
        /// The inner shape of the config.
        inner_shape: InnerShape,
        /// The order of the details.
        kv_block_layout: KvBlockLayout,
    },
    /// An explicit shape that contradicts the config.
    #[error("the layout config has {what} {config}, the shape {shape}")]
    ShapeDisagrees {
        /// What is counted.
        what: &'static str,
        /// The count in the config.
        config: u64,
        /// The count in the shape.
        shape: u64,
    },
    /// A shape whose blocks have no whole number of bytes per token.
    #[error(
        "{bytes} bytes a layer and block are no multiple of the {page_size} tokens, and a layout \
         config counts whole elements of each token"
    )]
    NoInnerDim {
        /// Bytes of one layer and block.
        bytes: u64,
        /// Tokens per block.
        page_size: u64,
    },
}
