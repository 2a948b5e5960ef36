//! Builds layouts from explicit digits, for imported tensors.

use serde::{Deserialize, Serialize};

use super::{
    AddressStep, Digit, PlanePiece, REGIONS_MAX, StridedLayout, disjoint, resolve::check_alignment,
};
use crate::{
    axis::Axis,
    error::{LayoutError, ResolveError},
    shape::{BYTES_MAX, Plane, Shape},
};

/// Most digits a plane may have.
const DIGITS_MAX: usize = 64;

/// The explicit place of one plane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlaneDigits {
    /// Name of the plane.
    pub plane: String,
    /// Region of its first unit.
    pub region: u64,
    /// Offset of its first unit in that region, in bytes.
    pub offset: u64,
    /// Digits of its axes, in any order; an axis of extent 1 needs none.
    pub digits: Vec<Digit>,
}

impl StridedLayout {
    /// The layout with the given digits over regions of the given sizes in bytes.
    ///
    /// A step of zero (one source for several units) is allowed, and so are crossing steps without
    /// a proof that no two units share a byte. Such a layout can only be a source.
    ///
    /// # Errors
    /// Planes that are not the shape's; digits that do not make up their axes; units outside their
    /// regions; no regions or too many.
    pub fn from_digits(
        shape: &Shape,
        planes: &[PlaneDigits],
        region_bytes: &[u64],
        alignment: u64,
    ) -> Result<StridedLayout, LayoutError> {
        check_alignment(alignment)?;
        let regions = region_bytes.len() as u64;
        if regions == 0 || regions > REGIONS_MAX {
            return Err(LayoutError::Resolve(ResolveError::TooManyRegions {
                regions,
                max: REGIONS_MAX,
            }));
        }
        let mut pieces = Vec::new();
        for plane in shape.planes() {
            let mut given = planes.iter().filter(|p| p.plane == plane.name().as_str());
            let (Some(digits), None) = (given.next(), given.next()) else {
                return Err(LayoutError::Resolve(ResolveError::PlanesGiven {
                    plane: plane.name().clone(),
                }));
            };
            pieces.push(piece(shape, plane, digits, region_bytes)?);
        }
        if let Some(extra) = planes
            .iter()
            .find(|p| !shape.planes().iter().any(|q| q.name().as_str() == p.plane))
        {
            return Err(LayoutError::Resolve(ResolveError::UnknownPlane {
                plane: extra.plane.clone(),
                known: super::names(shape.planes()),
            }));
        }
        let injective = disjoint::proved(shape, &pieces);
        Ok(StridedLayout {
            shape: shape.clone(),
            pieces,
            region_bytes: region_bytes.to_vec(),
            alignment,
            word: None,
            injective,
        })
    }
}

fn piece(
    shape: &Shape,
    plane: &Plane,
    given: &PlaneDigits,
    region_bytes: &[u64],
) -> Result<PlanePiece, LayoutError> {
    if given.digits.len() > DIGITS_MAX {
        return Err(LayoutError::Resolve(ResolveError::DigitsIncomplete {
            plane: plane.name().clone(),
            axis: Axis::K,
            extent: 0,
        }));
    }
    let declared = plane.extents().iter().map(|(axis, _)| *axis);
    let axes: Vec<Axis> = [Axis::B, Axis::L, Axis::N]
        .into_iter()
        .chain(declared)
        .collect();
    for &axis in &axes {
        check_axis(shape, plane, given, axis)?;
    }
    if let Some(digit) = given.digits.iter().find(|d| !axes.contains(&d.axis)) {
        return Err(LayoutError::Resolve(ResolveError::UnknownAxis {
            axis: digit.axis,
            word: format!("plane {}", plane.name()),
        }));
    }
    let mut digits: Vec<Digit> = given
        .digits
        .iter()
        .copied()
        .filter(|d| d.extent > 1)
        .collect();
    digits.sort_by_key(|d| std::cmp::Reverse((d.step.regions, d.step.bytes)));
    let piece = PlanePiece {
        region: given.region,
        offset: given.offset,
        digits,
    };
    check_span(plane, &piece, region_bytes)?;
    Ok(piece)
}

/// Checks that the digits of `axis` make up its extent: the first low is 1, each further low is the
/// product of the extents below it.
fn check_axis(
    shape: &Shape,
    plane: &Plane,
    given: &PlaneDigits,
    axis: Axis,
) -> Result<(), LayoutError> {
    let extent = shape.extent(plane, axis);
    let mut digits: Vec<&Digit> = given
        .digits
        .iter()
        .filter(|d| d.axis == axis && d.extent != 1)
        .collect();
    digits.sort_by_key(|d| d.low);
    let mut reached = Some(1u64);
    for digit in digits {
        if reached != Some(digit.low) || digit.extent == 0 {
            reached = None;
            break;
        }
        reached = digit.low.checked_mul(digit.extent);
    }
    if reached == Some(extent) {
        return Ok(());
    }
    Err(LayoutError::Resolve(ResolveError::DigitsIncomplete {
        plane: plane.name().clone(),
        axis,
        extent,
    }))
}

/// Checks that every unit of `piece` lies inside the region that its digits give.
fn check_span(plane: &Plane, piece: &PlanePiece, region_bytes: &[u64]) -> Result<(), LayoutError> {
    let outside = |region: u64, end: Option<u64>| {
        LayoutError::Resolve(ResolveError::OutsideRegion {
            plane: plane.name().clone(),
            region,
            end: end.unwrap_or(u64::MAX),
            bytes: usize::try_from(region)
                .ok()
                .and_then(|r| region_bytes.get(r))
                .copied()
                .unwrap_or(0),
        })
    };
    let mut last = Some(AddressStep {
        regions: piece.region,
        bytes: piece.offset,
    });
    for digit in &piece.digits {
        let span = digit.step.times(digit.extent - 1);
        last = last.zip(span).and_then(|(last, span)| last.plus(span));
    }
    let Some(last) = last.filter(|l| l.regions < region_bytes.len() as u64) else {
        return Err(outside(piece.region, None));
    };
    let end = last.bytes.checked_add(plane.unit().bytes());
    if end.is_none_or(|end| end > BYTES_MAX) {
        return Err(outside(piece.region, end));
    }
    for region in touched(piece, last.regions) {
        let size = usize::try_from(region)
            .ok()
            .and_then(|r| region_bytes.get(r));
        if size.is_none_or(|&size| end.is_none_or(|end| end > size)) {
            return Err(outside(region, end));
        }
    }
    Ok(())
}

/// The regions that the digits of `piece` reach. Where there are more combinations than regions, it
/// returns all regions from the first to the last.
fn touched(piece: &PlanePiece, last: u64) -> Vec<u64> {
    let far = || piece.digits.iter().filter(|d| d.step.regions > 0);
    let combinations = far().fold(1u64, |product, d| product.saturating_mul(d.extent));
    if combinations > last - piece.region + 1 {
        return (piece.region..=last).collect();
    }
    far().fold(vec![piece.region], |regions, digit| {
        let steps = |r: u64| (0..digit.extent).map(move |i| r + i * digit.step.regions);
        regions.into_iter().flat_map(steps).collect()
    })
}
