//! The block-manager tradition: the names that existing systems use for two families of layouts.
//!
//! | name | region | word, NHD | word, HND |
//! | --- | --- | --- | --- |
//! | fully contiguous | `[num_blocks, num_layers, outer_dim, page_size, inner_dim]` | `BLKNHC` | `BLKHNC` |
//! | layer separate, block first | a layer: `[num_blocks, outer_dim, page_size, inner_dim]` | `L\|BKNHC` | `L\|BKHNC` |
//! | layer separate, block second | a layer: `[outer_dim, num_blocks, page_size, inner_dim]` | `L\|KBNHC` | `L\|KBHNC` |
//!
//! A [`LayoutConfig`] has the counts, a [`LayoutSpec`] the order, and together they resolve to a
//! [`StridedLayout`](crate::StridedLayout). [`LayoutTypeDetails`] is the order in a descriptor.
//! This module knows no addresses, and it never guesses an inner order that is not stated: that
//! interior is one opaque unit.

mod builder;
mod config;
mod details;
mod error;
mod kinds;
mod kv_block_layout;
mod reading;
mod shapes;
mod spec;

pub use builder::LayoutConfigBuilder;
pub use config::LayoutConfig;
pub use details::{
    DigitsDetails, FullyContiguousDetails, LayerSeparateDetails, LayoutTypeDetails, WordDetails,
};
pub use error::ConfigError;
pub use kinds::{BlockDimension, BlockFormat, InnerShape, LayoutKind};
pub use kv_block_layout::{BlockDim, BlockOrder, KvBlockLayout};
pub use spec::LayoutSpec;
