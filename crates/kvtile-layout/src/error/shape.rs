//! A shape, a plane or a unit that is not valid.

use thiserror::Error;

use crate::{
    axis::Axis,
    shape::{AxisRange, LAYER_RUNS_MAX, PLANES_MAX, PlaneName, PlanePer},
    unit::UNIT_BYTES_MAX,
};

/// A shape, a plane or a unit that is not valid.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ShapeError {
    /// A count or an extent of zero.
    #[error("{what} is 0; give at least 1")]
    ZeroExtent {
        /// The count.
        what: String,
    },
    /// A size that no signed 64-bit offset can express.
    #[error("{what} does not fit 2^63 - 1; use smaller counts")]
    TooLarge {
        /// The size.
        what: &'static str,
    },
    /// A codec name with characters that are not allowed.
    #[error("codec name {codec:?} must be 1 to 64 characters of a-z A-Z 0-9 _ . : + / -")]
    CodecName {
        /// The name.
        codec: String,
    },
    /// A unit without bytes, or a giant one.
    #[error("unit {codec} has {bytes} bytes; a unit has 1 to {UNIT_BYTES_MAX}")]
    UnitBytes {
        /// The codec.
        codec: String,
        /// Its size in bytes.
        bytes: u64,
    },
    /// A unit with zero values that is not opaque, or an opaque unit with values.
    #[error(
        "unit {codec} claims {values} values; a unit holds at least 1, an opaque one claims none"
    )]
    UnitValues {
        /// The codec.
        codec: String,
        /// The values claimed.
        values: u64,
    },
    /// An element width that belongs to no data type.
    #[error("an element of {bytes} bytes: dtype_width_bytes is 1, 2, 4 or 8")]
    DtypeWidth {
        /// The width in bytes.
        bytes: u64,
    },
    /// A name that belongs to no data type.
    #[error("no data type is called {name:?}; {advice}")]
    UnknownDtype {
        /// The name.
        name: String,
        /// The suggested replacement.
        advice: String,
    },
    /// A plane name that is not lower-case letters.
    #[error("plane name {name:?} must be 1 to 64 letters a-z")]
    PlaneName {
        /// The name.
        name: String,
    },
    /// A plane that declares a standard axis of the whole shape, or one axis twice.
    #[error("plane {plane} declares axis {axis}; planes declare H, C and further axes, each once")]
    PlaneAxis {
        /// The plane.
        plane: PlaneName,
        /// The axis.
        axis: Axis,
    },
    /// A plane with an entry for zero tokens, or with entries of a page and of tokens at once.
    #[error(
        "plane {plane} has one entry every {tokens} tokens; give at least 1 token, and no tokens for \
         a plane that has one entry a page"
    )]
    PlaneEvery {
        /// The plane.
        plane: PlaneName,
        /// The tokens of an entry.
        tokens: u64,
    },
    /// A page that would cut an entry of a plane.
    #[error(
        "pages of {page_size} tokens, and plane {plane} has one entry every {per}; the page size must \
         be a multiple"
    )]
    PageNotMultiple {
        /// The plane.
        plane: PlaneName,
        /// Its entries.
        per: PlanePer,
        /// The page size.
        page_size: u64,
    },
    /// No planes, or too many.
    #[error("{count} planes; a shape has 1 to {PLANES_MAX}")]
    PlaneCount {
        /// How many.
        count: usize,
    },
    /// A plane name used twice.
    #[error("plane {plane} occurs twice; every plane has one place")]
    DuplicatePlane {
        /// The plane.
        plane: PlaneName,
    },
    /// Planes with different numbers of KV heads.
    #[error(
        "plane {first} has {first_count} heads, plane {second} {second_count}; \
         planes with heads share their number"
    )]
    HeadsDiffer {
        /// A plane.
        first: PlaneName,
        /// Its heads.
        first_count: u64,
        /// Another plane.
        second: PlaneName,
        /// Its heads.
        second_count: u64,
    },
    /// A shard whose range differs from the shape's, or lies outside the model.
    #[error("the shard has {axis} {range} of {total}, the shape holds {held}")]
    ShardRange {
        /// `layers` or `heads`.
        axis: &'static str,
        /// The range of the shard.
        range: AxisRange,
        /// Entries of the whole model.
        total: u64,
        /// Entries of the shape.
        held: u64,
    },
    /// A tensor-parallel size that neither divides the heads nor is a multiple of them.
    #[error(
        "rank {rank} of {size} over {heads} KV heads: the size must divide the heads or be a \
         multiple of them, and the rank be below it"
    )]
    TensorParallel {
        /// KV heads of the model.
        heads: u64,
        /// The rank.
        rank: u64,
        /// The tensor-parallel size.
        size: u64,
    },
    /// A run of layers that is empty, or whose end does not fit.
    #[error("layers {run} are none; give at least one layer, below 2^64")]
    LayerRun {
        /// The run.
        run: AxisRange,
    },
    /// Layers that are not in ascending order.
    #[error("layer {layer} after layer {previous}; give layers in ascending order, each once")]
    LayerOrder {
        /// A layer.
        previous: u64,
        /// The layer after it.
        layer: u64,
    },
    /// A set of layers with too many runs, or with layers that are too high.
    #[error(
        "{runs} runs of layers up to layer {end}; a set has at most {LAYER_RUNS_MAX} runs, and several runs end at \
         {end_max}"
    )]
    LayerSetSize {
        /// How many runs.
        runs: usize,
        /// The end of the last one.
        end: u64,
        /// The limit of it.
        end_max: u64,
    },
    /// A text that is no set of layers.
    #[error("{text:?} is not a set of layers, such as \"0..24\" or \"3, 7, 88..90\"")]
    LayerSetText {
        /// The text, cut to 64 characters.
        text: String,
    },
}
