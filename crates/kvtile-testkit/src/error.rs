//! Errors of the reference and of checks.

use kvtile_layout::{Axis, LayoutError};
use thiserror::Error;

/// The reference refuses a word or a copy, or a check finds a wrong byte.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TestkitError {
    /// An error of the layout crate.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Several planes share the units at the end of the word.
    #[error("{word} does not separate its planes")]
    PlanesNotSeparated {
        /// The word.
        word: String,
    },
    /// A plane that the word does not place.
    #[error("{word} has no place for plane {plane}")]
    PlaneMissing {
        /// The word.
        word: String,
        /// The plane.
        plane: String,
    },
    /// A part of a sum that is for no plane, or a plane in two parts.
    #[error("the part {part} is for no plane, or for one that has a part already")]
    PartPlanes {
        /// The part.
        part: String,
    },
    /// A plane name that is not available at its position in the word.
    #[error("no plane {plane} at this point of the word, or in this layout")]
    UnknownPlane {
        /// The plane.
        plane: String,
    },
    /// An axis that the shape does not know.
    #[error("axis {axis} is not known to the shape")]
    UnknownAxis {
        /// The axis.
        axis: Axis,
    },
    /// A digit that occurs twice on one path.
    #[error("axis {axis} with modulus {modulus:?} occurs twice")]
    RepeatedDigit {
        /// The axis.
        axis: Axis,
        /// The modulus.
        modulus: Option<u64>,
    },
    /// Moduli that do not divide each other or the extent.
    #[error("modulus {modulus} of {axis} does not divide {of}")]
    ModulusDoesNotDivide {
        /// The axis.
        axis: Axis,
        /// The modulus.
        modulus: u64,
        /// The next larger modulus, or the extent.
        of: u64,
    },
    /// An axis whose index the word does not determine.
    #[error("the word leaves {candidates} indices of axis {axis} open")]
    AxisMissing {
        /// The axis.
        axis: Axis,
        /// The number of possible indices.
        candidates: usize,
    },
    /// Planes that share a digit along which they differ.
    #[error("planes that share axis {axis} differ along it")]
    SharedAxisDiffers {
        /// The axis.
        axis: Axis,
    },
    /// A path with two bars, or without one beside a path that has one.
    #[error("{word} has a path that crosses '|' not exactly once")]
    Bars {
        /// The word.
        word: String,
    },
    /// A stride rule left of the bar.
    #[error("axis {axis} enumerates regions and has a stride rule")]
    RuleOnRegions {
        /// The axis.
        axis: Axis,
    },
    /// A fixed stride that is smaller than its content.
    #[error("{axis}={stride} has to hold {holds} bytes")]
    StrideTooSmall {
        /// The axis.
        axis: Axis,
        /// The stride in bytes.
        stride: u64,
        /// Bytes of the content.
        holds: u64,
    },
    /// A size beyond the limits of a reference that lists every unit.
    #[error("{what} is {size}; the reference takes at most {max}")]
    TooLarge {
        /// The name of the size.
        what: &'static str,
        /// Its size.
        size: u64,
        /// The limit.
        max: u64,
    },
    /// A position that the layout does not have.
    #[error("plane {plane} has no unit at {index:?}")]
    NoUnit {
        /// The plane.
        plane: String,
        /// The position.
        index: Vec<(Axis, u64)>,
    },
    /// An image whose regions differ from those of the layout.
    #[error("the image has regions of {found:?} bytes, the layout of {expected:?}")]
    ImageRegions {
        /// Sizes of the layout's regions.
        expected: Vec<u64>,
        /// Sizes of the image's regions.
        found: Vec<u64>,
    },
    /// Planes that cannot be copied between the sides.
    #[error("plane {plane} differs between the sides: unit, per token or extent of {axis:?}")]
    PlanesDiffer {
        /// The plane.
        plane: String,
        /// The axis, if an extent differs.
        axis: Option<Axis>,
    },
    /// Some tokens of a page, for a plane with one entry per page.
    #[error("plane {plane} has one entry a page and the pair is not a whole page on both sides")]
    PartialPage {
        /// The plane.
        plane: String,
    },
    /// Some of the heads, for a plane without heads.
    #[error("plane {plane} has no heads and not all heads of both sides are selected")]
    PartOfHeads {
        /// The plane.
        plane: String,
    },
    /// A unit with a byte that differs from the pattern.
    #[error(
        "plane {plane} at {index:?}: byte {byte} of the unit (region {region}, offset {offset}) \
         is {found}, the pattern has {expected}"
    )]
    WrongByte {
        /// The plane.
        plane: String,
        /// The position.
        index: Vec<(Axis, u64)>,
        /// Byte of the unit.
        byte: u64,
        /// Region.
        region: usize,
        /// Offset of that byte in the region.
        offset: u64,
        /// The byte of the pattern.
        expected: u8,
        /// The byte found.
        found: u8,
    },
    /// A padding byte that was overwritten.
    #[error("padding at region {region}, offset {offset} is {found}, was {expected}")]
    PaddingWritten {
        /// Region.
        region: usize,
        /// Offset in the region.
        offset: u64,
        /// The poison byte.
        expected: u8,
        /// The byte found.
        found: u8,
    },
}
