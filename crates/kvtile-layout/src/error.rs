//! The errors of layouts, words, plans and identities.

use std::convert::Infallible;

use thiserror::Error;

use crate::{
    axis::{self, Axis},
    identity::IdentityError,
    presets::PresetError,
    shape::{AxisRange, PLANES_MAX, PlaneName},
    tensor::TensorError,
    tradition::ConfigError,
    unit::UNIT_BYTES_MAX,
    word::ParseError,
};

/// Why a layout or a plan was refused. Every message gives the values and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// A text that is not a word of the layout language, with the parse error.
    #[error("not a layout word: {0}")]
    Parse(#[from] ParseError),
    /// An invalid traditional config or layout details that are invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An invalid identity, or a part of one.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A preset that is unknown, refused or broken.
    #[error(transparent)]
    Preset(#[from] PresetError),
    /// Imported tensors that make no layout.
    #[error(transparent)]
    Tensor(#[from] TensorError),
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
    /// A word that does not give the order of its planes.
    #[error(
        "{word} does not separate the planes {planes}; use K, or name them: (k…,v…){}",
        instead(meant)
    )]
    PlanesNotSeparated {
        /// The word.
        word: String,
        /// The planes.
        planes: String,
        /// Words that differ from it by an axis and fit the shape.
        meant: Vec<String>,
    },
    /// A part of a sum that applies to no plane.
    #[error("the part {part:?} matches no plane; the shape has {planes}")]
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
    /// A plane that the shape does not have.
    #[error("no plane {plane:?} here; there are {known}")]
    UnknownPlane {
        /// The requested name.
        plane: String,
        /// The names of the shape.
        known: String,
    },
    /// A word with its axes in small letters, which are for planes.
    #[error(
        "{word:?} has its axes in small letters; axes are capital letters, planes small ones: {meant}"
    )]
    SmallAxes {
        /// The word.
        word: String,
        /// The word with its axes in capitals, which fits the shape.
        meant: String,
    },
    /// A name that belongs to no data type.
    #[error("no data type is called {name:?}; {advice}")]
    UnknownDtype {
        /// The name.
        name: String,
        /// The suggested replacement.
        advice: String,
    },
    /// An axis that no plane declares.
    #[error(
        "axis {axis} of {word} is neither one of B L K N H C nor declared by a plane{}",
        foreign(*axis)
    )]
    UnknownAxis {
        /// The axis.
        axis: Axis,
        /// The word or the plane that has the axis.
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
        "{word} lacks axis {axis}{}, of which plane {plane} has {extent}; put {axis} where it lies{}",
        stands_for(*axis),
        instead(meant)
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
        /// Words that add the missing axis and fit the shape.
        meant: Vec<String>,
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
    /// A word in which some paths cross a bar and others cross none or two.
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
    /// A fixed stride below the size that it must hold.
    #[error("the stride of {axis} is fixed at {stride} bytes and has to hold {holds}")]
    StrideTooSmall {
        /// The axis.
        axis: Axis,
        /// The stride in bytes.
        stride: u64,
        /// The bytes that one step must hold.
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
    /// A plane whose digits are missing or given twice.
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

    /// Bytes that are not contiguous.
    #[error("the bytes of {what} are not contiguous in {layout}")]
    NotContiguous {
        /// The requested bytes.
        what: String,
        /// The layout.
        layout: String,
    },

    // Plans.
    /// No block pairs.
    #[error("no blocks are selected; a transfer of nothing is refused, skip it instead")]
    NothingSelected,
    /// Block lists of different lengths.
    #[error(
        "{source_blocks} source blocks and {destination_blocks} destination blocks; \
         each source block needs one destination block"
    )]
    BlockListsDiffer {
        /// Length of the source list.
        source_blocks: usize,
        /// Length of the destination list.
        destination_blocks: usize,
    },
    /// More tokens than the blocks hold.
    #[error(
        "{tokens} tokens; the source blocks hold {source_tokens}, the destination blocks \
         {destination_tokens}"
    )]
    SequenceTooLong {
        /// Requested tokens.
        tokens: u64,
        /// Tokens that the source blocks hold.
        source_tokens: u64,
        /// Tokens that the destination blocks hold.
        destination_tokens: u64,
    },
    /// A block id that the layout does not have.
    #[error("{side} block {block} is outside 0..{num_blocks}")]
    BlockOutOfRange {
        /// `source` or `destination`.
        side: &'static str,
        /// The block id.
        block: u64,
        /// Blocks of the layout.
        num_blocks: u64,
    },
    /// A range of tokens, layers or heads that is empty or leaves its axis.
    #[error("{side} {axis} {start}..+{count} must be at least 1 and inside 0..{extent}")]
    SelectionRange {
        /// `source` or `destination`.
        side: &'static str,
        /// `tokens`, `layers` or `heads`.
        axis: &'static str,
        /// First entry.
        start: u64,
        /// Number of entries.
        count: u64,
        /// Entries of the layout.
        extent: u64,
    },
    /// A destination token that two pairs write.
    #[error("destination block {block} is written twice at token {token}")]
    DuplicateDestination {
        /// The block.
        block: u64,
        /// The first token written twice.
        token: u64,
    },
    /// Shards that hold different ranges, without a selected range.
    #[error(
        "the source holds {axis} {source_range} of {source_total}, the destination \
         {destination_range} of {destination_total}; select the {axis} to copy"
    )]
    ShardsDiffer {
        /// `layers` or `heads`.
        axis: &'static str,
        /// The range of the source.
        source_range: AxisRange,
        /// Entries of the source's whole model.
        source_total: u64,
        /// The range of the destination.
        destination_range: AxisRange,
        /// Entries of the destination's whole model.
        destination_total: u64,
    },
    /// A plane that only the destination has.
    #[error("the source has no plane {plane}; it has {known}")]
    PlaneNotInSource {
        /// The plane.
        plane: PlaneName,
        /// Planes of the source.
        known: String,
    },
    /// A plane that only the source has.
    #[error("the destination has no plane {plane}; it has {known}")]
    PlaneNotInDestination {
        /// The plane.
        plane: PlaneName,
        /// Planes of the destination.
        known: String,
    },
    /// Planes of one name with different properties.
    #[error(
        "{field} of plane {plane}: {source_value} in the source, {destination_value} in the \
         destination; a copy converts nothing"
    )]
    PlanesDiffer {
        /// The plane.
        plane: PlaneName,
        /// The first differing field.
        field: String,
        /// Its value in the source.
        source_value: String,
        /// Its value in the destination.
        destination_value: String,
    },
    /// A token range of a plane that has no token axis.
    #[error(
        "plane {plane} is one piece a page: {tokens} tokens of pages of {source_page_size} and \
         {destination_page_size} cannot be copied, only whole pages of equal size"
    )]
    PlaneNotPerToken {
        /// The plane.
        plane: PlaneName,
        /// Requested tokens.
        tokens: u64,
        /// Page size of the source.
        source_page_size: u64,
        /// Page size of the destination.
        destination_page_size: u64,
    },
    /// A head range of a plane that has no heads.
    #[error("plane {plane} has no heads: {count} heads of it cannot be copied, only all")]
    PlaneNotPerHead {
        /// The plane.
        plane: PlaneName,
        /// Requested heads.
        count: u64,
    },
    /// Moduli of one axis that do not divide each other.
    #[error("no common refinement of {axis}: {first}, {second}")]
    NoCommonRefinement {
        /// The axis.
        axis: Axis,
        /// A modulus.
        first: u64,
        /// Another modulus.
        second: u64,
    },
    /// A destination whose units are not proved disjoint.
    #[error("units of the destination may share bytes, so it cannot be written: {layout}")]
    DestinationOverlaps {
        /// The layout.
        layout: String,
    },
    /// Ranges that cut tiles into too many pieces.
    #[error("the ranges cut plane {plane} into more than {max} pieces; align them to its tiles")]
    TooManyPieces {
        /// The plane.
        plane: PlaneName,
        /// The limit.
        max: usize,
    },
}

/// The suggested words, as the end of a message.
fn instead(meant: &[String]) -> String {
    match meant {
        [] => String::new(),
        meant => format!(", for instance {}", meant.join(" or ")),
    }
}

/// The meaning of an axis, where its letter does not make it clear.
fn stands_for(axis: Axis) -> String {
    let says = match axis {
        Axis::B => "the blocks",
        Axis::L => "the layers",
        Axis::K => "the planes, such as K and V",
        Axis::N => "the tokens of a block",
        Axis::H => "the KV heads",
        Axis::C => "the content: the elements of one head of one token",
        _ => return String::new(),
    };
    format!(" ({says})")
}

/// The meaning of the letter in other projects.
fn foreign(axis: Axis) -> String {
    match axis::foreign(axis) {
        Some((name, here)) => format!("; what others call {axis} ({name}) is {here} here"),
        None => String::new(),
    }
}

/// For arguments that are converted: a value that is already of the type is never refused.
impl From<Infallible> for LayoutError {
    fn from(never: Infallible) -> LayoutError {
        match never {}
    }
}
