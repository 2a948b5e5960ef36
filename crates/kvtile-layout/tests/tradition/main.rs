//! The names of the block-manager tradition: configs, details, specs, pages.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod config;
mod details;
mod pages;
mod properties;
mod words;

use kvtile_layout::{
    Axis, LayoutError, Plane, Shape, Shard, StridedLayout, Unit, UnitIndex, Word,
    tensor::TensorFormat,
    tradition::{
        BlockDim, BlockDimension, BlockFormat, BlockOrder, ConfigError, FullyContiguousDetails,
        InnerShape, KvBlockLayout, LayerSeparateDetails, LayoutConfig, LayoutConfigBuilder,
        LayoutKind, LayoutSpec, LayoutTypeDetails, WordDetails,
    },
};
use proptest::prelude::*;

fn builder() -> LayoutConfigBuilder {
    LayoutConfig::builder()
        .num_blocks(6)
        .num_layers(3)
        .outer_dim(2)
        .page_size(4)
        .inner_dim(10)
        .num_heads(5)
}

fn config(inner: InnerShape) -> LayoutConfig {
    builder().inner_shape(inner).build().unwrap()
}

fn refusal<T: std::fmt::Debug>(result: Result<T, LayoutError>) -> ConfigError {
    match result {
        Err(LayoutError::Config(error)) => error,
        other => panic!("expected a config error, got {other:?}"),
    }
}

fn words(spec: &LayoutSpec) -> [String; 3] {
    [InnerShape::NHD, InnerShape::HND, InnerShape::Unknown]
        .map(|inner| spec.word(inner).unwrap().to_string())
}
