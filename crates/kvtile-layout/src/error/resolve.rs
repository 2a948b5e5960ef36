//! A word or digits that do not describe a layout of the shape.

use thiserror::Error;

use crate::{
    axis::{self, Axis},
    shape::PlaneName,
};

/// A word or digits that do not describe a layout of the shape.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ResolveError {
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
