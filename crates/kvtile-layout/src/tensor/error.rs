//! The errors of imported tensors.

use thiserror::Error;

use super::TensorFormat;
use crate::{axis::Axis, shape::PlaneName};

/// Why imported tensors were refused. Tensors count from 0 in the given order, and so do
/// dimensions.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TensorError {
    /// No tensors at all.
    #[error("no tensors are given; give at least one")]
    NoTensors,
    /// Sizes, strides and roles of different lengths, or too many dimensions.
    #[error(
        "tensor {tensor} has {sizes} sizes, {strides} strides and {roles} roles; give one of each \
         a dimension, at most {max}"
    )]
    Dimensions {
        /// The tensor.
        tensor: usize,
        /// How many sizes.
        sizes: usize,
        /// How many strides.
        strides: usize,
        /// How many roles; equal to the sizes where none are given.
        roles: usize,
        /// Most dimensions.
        max: usize,
    },
    /// An element size of zero, or one above the limit.
    #[error("tensor {tensor} has elements of {bytes} bytes; elements have 1 to {max}")]
    ElementBytes {
        /// The tensor.
        tensor: usize,
        /// Bytes of an element.
        bytes: u64,
        /// The limit.
        max: u64,
    },
    /// A stride of zero, which puts several entries at one place.
    #[error("tensor {tensor}: stride 0 in dimension {dim} puts {size} entries at one place")]
    ZeroStride {
        /// The tensor.
        tensor: usize,
        /// The dimension.
        dim: usize,
        /// Its size.
        size: usize,
    },
    /// A stride below zero.
    #[error("tensor {tensor}: stride {stride} in dimension {dim}; strides are positive")]
    NegativeStride {
        /// The tensor.
        tensor: usize,
        /// The dimension.
        dim: usize,
        /// Its stride in elements.
        stride: isize,
    },
    /// A stride below the span of the faster dimensions.
    #[error(
        "tensor {tensor}: stride {stride} in dimension {dim}, but the faster dimensions span \
         {span} elements, so entries may share bytes"
    )]
    OverlappingStride {
        /// The tensor.
        tensor: usize,
        /// The dimension.
        dim: usize,
        /// Its stride in elements.
        stride: u64,
        /// Elements from the first to the last of the faster dimensions.
        span: u64,
    },
    /// A size that contradicts the role.
    #[error(
        "tensor {tensor}: dimension {dim} is {role} and has size {size} where {expected} is \
         expected"
    )]
    DimensionSize {
        /// The tensor.
        tensor: usize,
        /// The dimension.
        dim: usize,
        /// Its role.
        role: String,
        /// Its size.
        size: usize,
        /// The size that the shape requires.
        expected: u64,
    },
    /// Sizes that do not add up to the planes that the tensor holds.
    #[error("tensor {tensor} has {bytes} bytes of elements, its planes {planes} need {expected}")]
    TensorBytes {
        /// The tensor.
        tensor: usize,
        /// Bytes of all its elements.
        bytes: u64,
        /// The planes that the tensor holds.
        planes: String,
        /// The bytes that these planes need.
        expected: u64,
    },
    /// A tensor whose planes are ambiguous or not given.
    #[error(
        "tensor {tensor} does not name which of the planes {known} it holds, or names one twice"
    )]
    WhichPlane {
        /// The tensor.
        tensor: usize,
        /// Planes of the shape.
        known: String,
    },
    /// A tensor whose layer is not given.
    #[error(
        "tensor {tensor} does not name which of the {num_layers} layers it holds: set its layer, \
         or give a dimension the role L, not both"
    )]
    WhichLayer {
        /// The tensor.
        tensor: usize,
        /// Layers of the shape.
        num_layers: u64,
    },
    /// A tensor without roles, where the roles decide.
    #[error("tensor {tensor} has no roles; give the role of each dimension")]
    RolesMissing {
        /// The tensor.
        tensor: usize,
    },
    /// A tensor whose sizes, strides or elements differ from those of tensor 0.
    #[error(
        "tensor {tensor} is {found}, tensor {first} is {expected}; tensors of one plane must have one shape"
    )]
    ShapesDiffer {
        /// The tensor.
        tensor: usize,
        /// The tensor that it is compared with.
        first: usize,
        /// The properties of the tensor.
        found: String,
        /// The properties of tensor 0.
        expected: String,
    },
    /// Two tensors with different orders of tokens and heads.
    #[error("tensor {tensor} is {found:?}, tensor 0 is {expected:?}; give digits for each plane")]
    FormatsDiffer {
        /// The tensor.
        tensor: usize,
        /// Its format.
        found: TensorFormat,
        /// The format of tensor 0.
        expected: TensorFormat,
    },
    /// Sizes that match the shape in no order.
    #[error("no order of {expected} gives the sizes {sizes:?}; give the roles")]
    NoReading {
        /// The sizes.
        sizes: Vec<usize>,
        /// The extents of the shape.
        expected: String,
    },
    /// Sizes that match the shape in two orders.
    #[error("the sizes {sizes:?} can be read as {first} and as {second}; give the roles")]
    TwoReadings {
        /// The sizes.
        sizes: Vec<usize>,
        /// One reading.
        first: String,
        /// Another reading.
        second: String,
    },
    /// A layer of a plane that is missing or given twice.
    #[error("layer {layer} of plane {plane} is given {count} times; give it once")]
    LayerCount {
        /// The plane.
        plane: PlaneName,
        /// The layer.
        layer: u64,
        /// How many times.
        count: usize,
    },
    /// Layers of a plane with different interiors or uneven distances.
    #[error(
        "layer {layer} of plane {plane} does not have the placement of layer 0, one even step further for \
         each layer; number the regions in the order of the layers"
    )]
    UnevenLayers {
        /// The plane.
        plane: PlaneName,
        /// The first layer that differs.
        layer: u64,
    },
    /// A number of tensors that differs from the number of regions of a word.
    #[error("{given} tensors for {word}, which has {needed} regions; give one tensor a region")]
    RegionTensors {
        /// How many were given.
        given: usize,
        /// Regions of the word.
        needed: usize,
        /// The word.
        word: String,
    },
    /// A tensor whose size differs from that of its region.
    #[error("tensor {tensor} of sizes {sizes:?} has {bytes} bytes, its region has {expected}")]
    RegionBytes {
        /// The tensor.
        tensor: usize,
        /// Its sizes.
        sizes: Vec<usize>,
        /// Its bytes.
        bytes: u64,
        /// The bytes of the region.
        expected: u64,
    },
    /// A tensor whose dimensions are not in memory order.
    #[error(
        "tensor {tensor} can be read in two ways as {word}: along its dimensions as it shows them, \
         {shown:?}, or along its memory, {memory:?}; a word speaks of memory, slowest first: give the \
         view with its dimensions in that order, which are its dimensions {order:?}, under the word \
         of that order",
        memory = permuted(.shown, .order)
    )]
    TwoOrders {
        /// The tensor.
        tensor: usize,
        /// The word.
        word: Box<str>,
        /// Its sizes in the order of its dimensions.
        shown: Box<[usize]>,
        /// Its dimensions from the slowest stride to the fastest: the permutation to apply to the
        /// view.
        order: Box<[usize]>,
    },
    /// Tensors whose sizes are those of the word in another order.
    #[error(
        "tensors of sizes {sizes:?} can be read in two ways: {word} is {of_word} in memory, and the \
         sizes are the same in another order; give the word of the order that memory has, or, where \
         the sizes do not say what is in memory, give the tensors flat"
    )]
    SizesInOtherOrder {
        /// The word.
        word: Box<str>,
        /// The sizes, slowest first.
        sizes: Box<[usize]>,
        /// Axes of the word with their extents, slowest first.
        of_word: Box<str>,
    },
    /// Strides with a gap inside what the word keeps contiguous.
    #[error(
        "the strides of the tensors leave a gap inside {what} of plane {plane}; the word keeps \
         that together, so it is another layout than the tensors have"
    )]
    TensorGap {
        /// The plane.
        plane: PlaneName,
        /// What the gap would split.
        what: String,
    },
    /// Tensors that may share bytes.
    #[error("the tensors may share bytes: {layout}")]
    TensorsOverlap {
        /// The layout of the tensors.
        layout: String,
    },
    /// Strides or sizes above the limit.
    #[error("tensor {tensor}: {axis} reaches beyond 2^63 - 1 bytes")]
    TooFar {
        /// The tensor.
        tensor: usize,
        /// The axis.
        axis: Axis,
    },
}

/// The sizes in the given order of the dimensions.
fn permuted(sizes: &[usize], order: &[usize]) -> Vec<usize> {
    let sizes = order.iter().filter_map(|&dim| sizes.get(dim).copied());
    sizes.collect()
}
