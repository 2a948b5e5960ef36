//! What can be wrong with a layout, a word, a plan or an identity.

use thiserror::Error;

use crate::{
    axis::Axis,
    shape::{AxisRange, PLANES_MAX, PlaneName},
    unit::UNIT_BYTES_MAX,
    word::ParseError,
};

/// Why a layout or a plan was refused. Every message names the values and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// A text that is not a word of the layout language.
    #[error("not a layout word: {0}")]
    Parse(#[from] ParseError),
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
    /// A unit that holds no values without being opaque, or an opaque one that claims values.
    #[error(
        "unit {codec} claims {values} values; a unit holds at least 1, an opaque one claims none"
    )]
    UnitValues {
        /// The codec.
        codec: String,
        /// The values claimed.
        values: u64,
    },
    /// An element width that no data type has.
    #[error("an element of {bytes} bytes: dtype_width_bytes is 1, 2, 4 or 8")]
    DtypeWidth {
        /// The width in bytes.
        bytes: u64,
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
    /// A shard whose range is not what the shape holds, or lies outside the model.
    #[error("the shard says {axis} {range} of {total}, the shape holds {held}")]
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
    /// A tensor-parallel split that does not come out even.
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
    /// A word that does not say in which order its planes lie.
    #[error("{word} does not separate the planes {planes}; use K, or name them: (k…,v…)")]
    PlanesNotSeparated {
        /// The word.
        word: String,
        /// The planes.
        planes: String,
    },
    /// A part of a sum that is for no plane.
    #[error("the part {part:?} is for no plane; the shape has {planes}")]
    EmptyPart {
        /// The part.
        part: String,
        /// The planes of the shape.
        planes: String,
    },
    /// A sum without a part for some plane.
    #[error("no part of ({parts}) is for plane {plane}")]
    PlaneMissing {
        /// The plane.
        plane: String,
        /// The parts.
        parts: String,
    },
    /// A plane that is not there.
    #[error("no plane {plane:?} here; there are {known}")]
    UnknownPlane {
        /// The name asked for.
        plane: String,
        /// The names there are.
        known: String,
    },
    /// An axis that no plane declares.
    #[error("axis {axis} of {word} is neither one of B L K N H C nor declared by a plane")]
    UnknownAxis {
        /// The axis.
        axis: Axis,
        /// The word, or the plane.
        word: String,
    },
    /// The same digit twice on one path.
    #[error(
        "{word} repeats axis {axis}{}; each digit of an axis occurs once",
        modulus.map_or(String::new(), |m| m.to_string())
    )]
    RepeatedAxis {
        /// The axis.
        axis: Axis,
        /// The modulus, if any.
        modulus: Option<u64>,
        /// The word.
        word: String,
    },
    /// An axis of the shape that the word lacks.
    #[error(
        "{word} has no slowest digit of axis {axis} for plane {plane}, which has {extent} of it"
    )]
    AxisMissing {
        /// The axis.
        axis: Axis,
        /// Its extent.
        extent: u64,
        /// The plane.
        plane: PlaneName,
        /// The word.
        word: String,
    },
    /// A modulus that divides neither the next one nor the extent.
    #[error("{axis}{modulus} of plane {plane}: {modulus} does not divide {of}")]
    ModulusDoesNotDivide {
        /// The axis.
        axis: Axis,
        /// The modulus.
        modulus: u64,
        /// The next larger modulus, or the extent.
        of: u64,
        /// The plane.
        plane: PlaneName,
    },
    /// Planes that share a digit along which they differ.
    #[error(
        "planes {first} and {second} share axis {axis} but differ along it \
         ({first_extent} and {second_extent}); give each its own part"
    )]
    SharedAxisDiffers {
        /// The axis.
        axis: Axis,
        /// A plane.
        first: PlaneName,
        /// Its extent.
        first_extent: u64,
        /// Another plane.
        second: PlaneName,
        /// Its extent.
        second_extent: u64,
    },
    /// Some paths through the word have a bar, others none or two.
    #[error("{word}: every path to a plane crosses '|' exactly once, or none does")]
    MixedBars {
        /// The word.
        word: String,
    },
    /// A stride rule on an axis that enumerates regions.
    #[error("{word}: axis {axis} enumerates regions, which have no stride")]
    RegionStride {
        /// The axis.
        axis: Axis,
        /// The word.
        word: String,
    },
    /// A fixed stride below what it has to hold.
    #[error("the stride of {axis} is fixed at {stride} bytes and has to hold {holds}")]
    StrideTooSmall {
        /// The axis.
        axis: Axis,
        /// The stride in bytes.
        stride: u64,
        /// The bytes right of it.
        holds: u64,
    },
    /// No regions, or too many.
    #[error("{regions} regions; a layout has 1 to {max}")]
    TooManyRegions {
        /// How many.
        regions: u64,
        /// The limit.
        max: u64,
    },
    /// An alignment that is not a power of two.
    #[error("alignment {alignment} is not a power of two up to 2^30")]
    Alignment {
        /// The alignment in bytes.
        alignment: u64,
    },
    /// A plane whose digits were given never, or twice.
    #[error("give the digits of plane {plane} once")]
    PlanesGiven {
        /// The plane.
        plane: PlaneName,
    },
    /// Digits that do not make up an axis.
    #[error("the digits of plane {plane} do not make up axis {axis} of extent {extent}")]
    DigitsIncomplete {
        /// The plane.
        plane: PlaneName,
        /// The axis.
        axis: Axis,
        /// Its extent.
        extent: u64,
    },
    /// Units that lie outside their region.
    #[error("plane {plane} ends at byte {end} of region {region}, which has {bytes} bytes")]
    OutsideRegion {
        /// The plane.
        plane: PlaneName,
        /// The region.
        region: u64,
        /// One past the last byte.
        end: u64,
        /// Bytes of the region.
        bytes: u64,
    },
    /// An index outside its axis.
    #[error("index {index} of axis {axis} is outside 0..{extent}")]
    IndexOutOfRange {
        /// The axis.
        axis: Axis,
        /// The index.
        index: u64,
        /// The extent.
        extent: u64,
    },
}
