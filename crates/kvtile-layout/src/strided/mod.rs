//! Strided layouts: for each plane an offset and digits, and the regions that back them.
//!
//! ```text
//! address(plane, block, layer, token, head, content) =
//!     region: piece.region + sum over digits of ((index[axis] / low) % extent) * step.regions
//!     offset: piece.offset + sum over digits of ((index[axis] / low) % extent) * step.bytes
//! ```
//!
//! All other code works on strided layouts; words and tensor strides are two ways to build one. A
//! strided layout does not know the addresses of its regions.

mod canonical;
mod dense;
mod disjoint;
mod from_digits;
mod meant;
mod resolve;
mod sound;

pub use dense::RegionSpan;
pub use from_digits::PlaneDigits;
use serde::{Deserialize, Serialize};

use crate::{
    axis::Axis,
    error::{LayoutError, ResolveError},
    shape::{BYTES_MAX, Plane, Shape},
    word::Word,
};

/// Most regions a layout may have.
pub const REGIONS_MAX: u64 = 1 << 20;

/// The distance of one step along a digit: in regions, in bytes inside a region, or both.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct AddressStep {
    /// Regions further.
    pub regions: u64,
    /// Bytes further inside a region.
    pub bytes: u64,
}

impl AddressStep {
    /// A step of `bytes` bytes inside a region.
    #[must_use]
    pub fn bytes(bytes: u64) -> AddressStep {
        AddressStep { regions: 0, bytes }
    }

    /// A step of `regions` regions.
    #[must_use]
    pub fn regions(regions: u64) -> AddressStep {
        AddressStep { regions, bytes: 0 }
    }

    /// `count` steps; `None` where the result does not fit [`BYTES_MAX`].
    #[must_use]
    pub fn times(self, count: u64) -> Option<AddressStep> {
        let fits = |value: u64| value.checked_mul(count).filter(|&v| v <= BYTES_MAX);
        Some(AddressStep {
            regions: fits(self.regions)?,
            bytes: fits(self.bytes)?,
        })
    }

    /// The sum of both steps; `None` where it does not fit [`BYTES_MAX`].
    #[must_use]
    pub fn plus(self, other: AddressStep) -> Option<AddressStep> {
        let fits = |a: u64, b: u64| a.checked_add(b).filter(|&v| v <= BYTES_MAX);
        Some(AddressStep {
            regions: fits(self.regions, other.regions)?,
            bytes: fits(self.bytes, other.bytes)?,
        })
    }

    /// Whether the step stays in its region.
    #[must_use]
    pub fn is_local(self) -> bool {
        self.regions == 0
    }
}

/// One digit of an axis: `(index / low) % extent`, each worth `step`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Digit {
    /// The axis.
    pub axis: Axis,
    /// The modulus below this digit; 1 for the fastest digit of an axis.
    pub low: u64,
    /// How many values the digit takes; the modulus above it is `low * extent`.
    pub extent: u64,
    /// The distance of one step along it.
    pub step: AddressStep,
}

/// The place of one plane: a first unit, and digits from slowest to fastest in the order of the
/// word.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PlanePiece {
    region: u64,
    offset: u64,
    digits: Vec<Digit>,
}

impl PlanePiece {
    /// Region of the first unit.
    #[must_use]
    pub fn region(&self) -> u64 {
        self.region
    }

    /// Offset of the first unit in its region, in bytes.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The digits, without those of extent 1.
    #[must_use]
    pub fn digits(&self) -> &[Digit] {
        &self.digits
    }

    /// The digits of one axis, in the order of the piece.
    pub(crate) fn digits_of(&self, axis: Axis) -> impl Iterator<Item = &Digit> {
        self.digits.iter().filter(move |digit| digit.axis == axis)
    }

    /// The position of entry `index` of `axis` relative to entry 0. The result fits, because the
    /// constructor checks that the layout fits. An index outside the axis wraps inside it.
    pub(crate) fn axis_step(&self, axis: Axis, index: u64) -> AddressStep {
        let mut sum = AddressStep::default();
        for digit in self.digits_of(axis) {
            let value = (index / digit.low) % digit.extent;
            sum.regions += value * digit.step.regions;
            sum.bytes += value * digit.step.bytes;
        }
        sum
    }
}

/// The position of one unit of a plane: an index along each axis, 0 where not set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnitIndex {
    indices: Vec<(Axis, u64)>,
}

impl UnitIndex {
    /// The first unit.
    #[must_use]
    pub fn new() -> UnitIndex {
        UnitIndex::default()
    }

    /// The same position with `index` along `axis`.
    #[must_use]
    pub fn at(mut self, axis: Axis, index: u64) -> UnitIndex {
        self.indices.retain(|(a, _)| *a != axis);
        self.indices.push((axis, index));
        self
    }

    /// The indices set so far.
    #[must_use]
    pub fn indices(&self) -> &[(Axis, u64)] {
        &self.indices
    }
}

/// The location of one unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    /// Index of the region.
    pub region: u64,
    /// Offset in the region, in bytes.
    pub offset: u64,
}

/// A shape with a location for every unit: the result of resolving a word or explicit strides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StridedLayout {
    shape: Shape,
    pieces: Vec<PlanePiece>,
    region_bytes: Vec<u64>,
    alignment: u64,
    word: Option<Word>,
    injective: bool,
}

impl StridedLayout {
    /// The shape.
    #[must_use]
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// One piece for each plane of the shape, in its order.
    #[must_use]
    pub fn pieces(&self) -> &[PlanePiece] {
        &self.pieces
    }

    /// Planes with their pieces.
    pub fn planes(&self) -> impl Iterator<Item = (&Plane, &PlanePiece)> {
        self.shape.planes().iter().zip(&self.pieces)
    }

    /// Bytes of each region, padding included.
    #[must_use]
    pub fn region_bytes(&self) -> &[u64] {
        &self.region_bytes
    }

    /// The alignment in bytes: block strides are rounded up to it, and region starts must be a
    /// multiple of it.
    #[must_use]
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// The word of the layout; `None` where it was built from digits.
    #[must_use]
    pub fn word(&self) -> Option<&Word> {
        self.word.as_ref()
    }

    /// Whether no two units share a byte, by proof. Layouts from words always have the proof. A
    /// layout without it can be a source, never a destination.
    #[must_use]
    pub fn is_injective(&self) -> bool {
        self.injective
    }

    /// A description for people: the word and its long form, or the digits.
    #[must_use]
    pub fn describe(&self) -> String {
        match &self.word {
            Some(word) => format!("{word} ({})", word.long_form()),
            None => self
                .planes()
                .map(|(plane, piece)| format!("{}: {}", plane.name(), describe_piece(piece)))
                .collect::<Vec<_>>()
                .join("; "),
        }
    }

    /// The location of the unit of `plane` at `index`.
    ///
    /// # Errors
    /// A plane that the shape does not have; an index outside its axis.
    pub fn locate(&self, plane: &str, index: &UnitIndex) -> Result<Location, LayoutError> {
        let (plane, piece) = self
            .planes()
            .find(|(p, _)| p.name().as_str() == plane)
            .ok_or_else(|| {
                LayoutError::Resolve(ResolveError::UnknownPlane {
                    plane: plane.to_owned(),
                    known: self.plane_names(),
                })
            })?;
        let mut location = Location {
            region: piece.region,
            offset: piece.offset,
        };
        for &(axis, index) in index.indices() {
            let extent = self.shape.extent(plane, axis);
            if index >= extent {
                return Err(LayoutError::Resolve(ResolveError::IndexOutOfRange {
                    axis,
                    index,
                    extent,
                }));
            }
            let step = piece.axis_step(axis, index);
            location.region += step.regions;
            location.offset += step.bytes;
        }
        Ok(location)
    }

    pub(crate) fn plane_names(&self) -> String {
        names(self.shape.planes())
    }
}

pub(crate) fn names(planes: &[Plane]) -> String {
    planes
        .iter()
        .map(|plane| plane.name().as_str())
        .collect::<Vec<_>>()
        .join(", ")
}

fn describe_piece(piece: &PlanePiece) -> String {
    let digits: Vec<String> = piece
        .digits
        .iter()
        .map(|digit| {
            let Digit {
                axis, extent, step, ..
            } = digit;
            let low = match digit.low {
                1 => String::new(),
                low => format!("/{low}"),
            };
            match step.regions {
                0 => format!("{axis}{low}:{extent} stride {}", step.bytes),
                regions => format!("{axis}{low}:{extent} every {regions} regions"),
            }
        })
        .collect();
    format!(
        "region {} offset {} [{}]",
        piece.region,
        piece.offset,
        digits.join(", ")
    )
}
