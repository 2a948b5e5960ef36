//! Finds contiguous parts of a layout, and builds the canonical dense layout of a shape.

use super::{AddressStep, Digit, Location, PlaneDigits, PlanePiece, StridedLayout};
use crate::{
    axis::Axis,
    error::{LayoutError, ResolveError},
    shape::{Plane, Shape, checked},
};

/// A contiguous piece of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionSpan {
    /// Where it starts.
    pub start: Location,
    /// Its length in bytes.
    pub bytes: u64,
}

impl StridedLayout {
    /// The bytes of one plane of one block and layer, where they are contiguous: `page_size *
    /// num_heads * content` units.
    ///
    /// # Errors
    /// An index out of range; a layout in which these bytes are not contiguous.
    pub fn plane_span(
        &self,
        block: u64,
        layer: u64,
        plane: usize,
    ) -> Result<RegionSpan, LayoutError> {
        self.check_index(Axis::B, block, self.shape.num_blocks())?;
        self.check_index(Axis::L, layer, self.shape.num_layers())?;
        let planes = self.shape.planes().len() as u64;
        let Some((plane, piece)) = self.planes().nth(plane) else {
            return Err(LayoutError::Resolve(ResolveError::IndexOutOfRange {
                axis: Axis::K,
                index: plane as u64,
                extent: planes,
            }));
        };
        let page = part(&[(Axis::B, block), (Axis::L, layer)], plane, piece);
        self.dense(&[page]).ok_or_else(|| {
            LayoutError::Resolve(ResolveError::NotContiguous {
                what: format!("plane {} of one block and layer", plane.name()),
                layout: self.describe(),
            })
        })
    }

    /// The bytes of all planes of one block and layer, where they are contiguous.
    ///
    /// # Errors
    /// An index out of range; a layout in which these bytes are not contiguous.
    pub fn page_span(&self, block: u64, layer: u64) -> Result<RegionSpan, LayoutError> {
        self.check_index(Axis::B, block, self.shape.num_blocks())?;
        self.check_index(Axis::L, layer, self.shape.num_layers())?;
        let fixed = [(Axis::B, block), (Axis::L, layer)];
        self.dense(&self.parts(&fixed)).ok_or_else(|| {
            LayoutError::Resolve(ResolveError::NotContiguous {
                what: "one block and layer".to_owned(),
                layout: self.describe(),
            })
        })
    }

    /// The bytes of a block, all its layers and planes, where they are contiguous.
    ///
    /// # Errors
    /// A block out of range; a layout in which its bytes are not contiguous.
    pub fn block_span(&self, block: u64) -> Result<RegionSpan, LayoutError> {
        self.check_index(Axis::B, block, self.shape.num_blocks())?;
        self.dense(&self.parts(&[(Axis::B, block)])).ok_or_else(|| {
            LayoutError::Resolve(ResolveError::NotContiguous {
                what: "one block".to_owned(),
                layout: self.describe(),
            })
        })
    }

    /// Whether each block, all its layers and planes, is one run of bytes in one region.
    #[must_use]
    pub fn blocks_are_contiguous(&self) -> bool {
        let Ok(payload) = self.shape.block_bytes() else {
            return false;
        };
        let region = self.pieces.first().map_or(0, PlanePiece::region);
        let (mut start, mut end) = (u64::MAX, 0);
        for (plane, piece) in self.planes() {
            let mut last = piece.offset();
            for digit in piece.digits().iter().filter(|d| d.axis != Axis::B) {
                if !digit.step.is_local() {
                    return false;
                }
                last += (digit.extent - 1) * digit.step.bytes;
            }
            if piece.region() != region {
                return false;
            }
            start = start.min(piece.offset());
            end = end.max(last + plane.unit().bytes());
        }
        self.injective && end.checked_sub(start) == Some(payload)
    }

    /// All blocks of `shape` in one region without padding, block by block. A block has the planes
    /// by name, and a plane has layer, token, head, declared axes by letter, content. Equal content
    /// has equal bytes here, independent of its original layout: digests and comparisons rely on
    /// it.
    ///
    /// # Errors
    /// A size that does not fit.
    pub fn canonical(shape: &Shape) -> Result<StridedLayout, LayoutError> {
        let block_bytes = shape.block_bytes()?;
        let mut planes: Vec<&Plane> = shape.planes().iter().collect();
        planes.sort_by_key(|plane| plane.name());
        let mut offset = 0;
        let mut given = Vec::new();
        for plane in planes {
            let declared = plane.extents().iter().map(|(axis, _)| *axis);
            let others = declared.filter(|axis| *axis != Axis::H && *axis != Axis::C);
            let axes: Vec<Axis> = [Axis::L, Axis::N, Axis::H]
                .into_iter()
                .chain(others)
                .chain([Axis::C])
                .collect();
            let mut digits = Vec::new();
            let mut bytes = plane.unit().bytes();
            for &axis in axes.iter().rev() {
                let extent = shape.extent(plane, axis);
                if extent > 1 {
                    digits.push(digit(axis, extent, bytes));
                    bytes = checked(bytes.checked_mul(extent), "bytes of a block")?;
                }
            }
            if shape.num_blocks() > 1 {
                digits.push(digit(Axis::B, shape.num_blocks(), block_bytes));
            }
            given.push(PlaneDigits {
                plane: plane.name().to_string(),
                region: 0,
                offset,
                digits,
            });
            offset += bytes;
        }
        StridedLayout::from_digits(shape, &given, &[shape.total_bytes()?], 1)
    }

    fn check_index(&self, axis: Axis, index: u64, extent: u64) -> Result<(), LayoutError> {
        if index < extent {
            return Ok(());
        }
        Err(LayoutError::Resolve(ResolveError::IndexOutOfRange {
            axis,
            index,
            extent,
        }))
    }

    fn parts(&self, fixed: &[(Axis, u64)]) -> Vec<PlanePart> {
        let planes = self.planes();
        planes
            .map(|(plane, piece)| part(fixed, plane, piece))
            .collect()
    }

    /// The span of the parts, where they lie in one region and fill it from the first byte to the
    /// last.
    fn dense(&self, parts: &[PlanePart]) -> Option<RegionSpan> {
        let region = parts.first()?.start.regions;
        let start = parts.iter().map(|p| p.start.bytes).min()?;
        let end = parts.iter().map(|p| p.end).max()?;
        let bytes: u64 = parts.iter().map(|p| p.bytes).sum();
        let whole = parts.iter().all(|p| p.local && p.start.regions == region);
        (self.injective && whole && end - start == bytes).then_some(RegionSpan {
            start: Location {
                region,
                offset: start,
            },
            bytes,
        })
    }
}

/// The bytes of a plane at some fixed indices.
struct PlanePart {
    start: AddressStep,
    end: u64,
    bytes: u64,
    local: bool,
}

/// The bytes of `plane` at the indices of `fixed`; the other axes are whole.
fn part(fixed: &[(Axis, u64)], plane: &Plane, piece: &PlanePiece) -> PlanePart {
    let first = AddressStep {
        regions: piece.region(),
        bytes: piece.offset(),
    };
    let steps = fixed.iter().map(|&(axis, at)| piece.axis_step(axis, at));
    let start = steps.fold(first, |sum, step| AddressStep {
        regions: sum.regions + step.regions,
        bytes: sum.bytes + step.bytes,
    });
    let mut part = PlanePart {
        start,
        end: start.bytes + plane.unit().bytes(),
        bytes: plane.unit().bytes(),
        local: true,
    };
    let whole = |axis: Axis| fixed.iter().all(|&(fixed, _)| fixed != axis);
    for digit in piece.digits().iter().filter(|digit| whole(digit.axis)) {
        part.local &= digit.step.is_local();
        part.end += digit.step.bytes * (digit.extent - 1);
        part.bytes *= digit.extent;
    }
    part
}

fn digit(axis: Axis, extent: u64, bytes: u64) -> Digit {
    Digit {
        axis,
        low: 1,
        extent,
        step: AddressStep::bytes(bytes),
    }
}
