//! The reference for layouts: a list with the offset of every unit.

mod paths;
mod walk;

use kvtile_layout::{Axis, Plane, Shape, StridedLayout, UnitIndex, Word};

use crate::error::TestkitError;

/// The most units that a reference layout lists.
pub const UNITS_MAX: u64 = 1 << 21;

/// The start of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitPlace {
    /// Index of the region.
    pub region: usize,
    /// Offset in the region, in bytes.
    pub offset: u64,
}

/// One unit: its plane, its index and its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReferenceUnit {
    /// Index of the plane in the shape.
    pub plane: usize,
    /// The index along each axis of [`axes`], in that order.
    pub index: Vec<(Axis, u64)>,
    /// Where it starts.
    pub place: UnitPlace,
}

/// A layout as the list of its units.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReferenceLayout {
    shape: Shape,
    region_bytes: Vec<u64>,
    units: Vec<ReferenceUnit>,
    /// For each plane, the start of every unit, row-major over [`axes`].
    places: Vec<Vec<UnitPlace>>,
}

/// The axes of the index of a unit of `plane`: B, L, N, then those that the plane declares.
#[must_use]
pub fn axes(plane: &Plane) -> Vec<Axis> {
    let declared = plane.extents().iter().map(|(axis, _)| *axis);
    [Axis::B, Axis::L, Axis::N]
        .into_iter()
        .chain(declared)
        .collect()
}

impl ReferenceLayout {
    /// Walks `word` over `shape` with a cursor. `alignment` rounds up the stride of blocks.
    ///
    /// # Errors
    /// A word that is no layout of the shape; more than [`UNITS_MAX`] units.
    pub fn new(
        word: &Word,
        shape: &Shape,
        alignment: u64,
    ) -> Result<ReferenceLayout, TestkitError> {
        check_size(shape)?;
        let (units, region_bytes) = walk::walk(word, shape, alignment)?;
        ReferenceLayout::from_units(shape, units, region_bytes)
    }

    /// Locates every unit with `layout`, for layouts without a word, such as imported tensors. The
    /// result is independent of the planner, but not of the layout.
    ///
    /// # Errors
    /// An error of `locate`; more than [`UNITS_MAX`] units.
    pub fn from_strided(layout: &StridedLayout) -> Result<ReferenceLayout, TestkitError> {
        let shape = layout.shape();
        ReferenceLayout::from_fn(shape, layout.region_bytes(), |plane, index| {
            let mut at = UnitIndex::new();
            for &(axis, i) in index {
                at = at.at(axis, i);
            }
            let location = layout.locate(plane.name().as_str(), &at)?;
            Ok(UnitPlace {
                region: to_usize(location.region)?,
                offset: location.offset,
            })
        })
    }

    /// The layout in which `place` returns the start of each unit.
    ///
    /// # Errors
    /// An error of `place`; more than [`UNITS_MAX`] units.
    pub fn from_fn(
        shape: &Shape,
        region_bytes: &[u64],
        mut place: impl FnMut(&Plane, &[(Axis, u64)]) -> Result<UnitPlace, TestkitError>,
    ) -> Result<ReferenceLayout, TestkitError> {
        check_size(shape)?;
        let mut units = Vec::new();
        for (i, plane) in shape.planes().iter().enumerate() {
            for index in indices(shape, plane) {
                let place = place(plane, &index)?;
                units.push(ReferenceUnit {
                    plane: i,
                    index,
                    place,
                });
            }
        }
        ReferenceLayout::from_units(shape, units, region_bytes.to_vec())
    }

    fn from_units(
        shape: &Shape,
        units: Vec<ReferenceUnit>,
        region_bytes: Vec<u64>,
    ) -> Result<ReferenceLayout, TestkitError> {
        let mut places = Vec::new();
        for (i, plane) in shape.planes().iter().enumerate() {
            let mut mine = vec![None; indices(shape, plane).count()];
            for unit in units.iter().filter(|unit| unit.plane == i) {
                let slot = row_major(shape, plane, &unit.index).and_then(|at| mine.get_mut(at));
                if let Some(slot @ None) = slot {
                    *slot = Some(unit.place);
                } else {
                    return Err(no_unit(plane, &unit.index));
                }
            }
            let mine: Option<Vec<UnitPlace>> = mine.into_iter().collect();
            places.push(mine.ok_or_else(|| no_unit(plane, &[]))?);
        }
        Ok(ReferenceLayout {
            shape: shape.clone(),
            region_bytes,
            units,
            places,
        })
    }

    /// The shape.
    #[must_use]
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Bytes of each region, padding included.
    #[must_use]
    pub fn region_bytes(&self) -> &[u64] {
        &self.region_bytes
    }

    /// Every unit; in memory order if the layout was created from a word.
    #[must_use]
    pub fn units(&self) -> &[ReferenceUnit] {
        &self.units
    }

    /// The start of the unit of `plane` at `index`; omitted axes are 0.
    ///
    /// # Errors
    /// A plane or a position that the layout does not have.
    pub fn place(&self, plane: &str, index: &[(Axis, u64)]) -> Result<UnitPlace, TestkitError> {
        let planes = self.shape.planes().iter().zip(&self.places);
        let (plane, places) = planes
            .into_iter()
            .find(|(p, _)| p.name().as_str() == plane)
            .ok_or_else(|| TestkitError::UnknownPlane {
                plane: plane.to_owned(),
            })?;
        row_major(&self.shape, plane, index)
            .and_then(|at| places.get(at))
            .copied()
            .ok_or_else(|| no_unit(plane, index))
    }

    /// For every region, which of its bytes belong to a unit; the others are padding. `None` if two
    /// units overlap or one ends outside its region.
    #[must_use]
    pub fn used_bytes(&self) -> Option<Vec<Vec<bool>>> {
        let mut used: Vec<Vec<bool>> = Vec::new();
        for &bytes in &self.region_bytes {
            used.push(vec![false; usize::try_from(bytes).ok()?]);
        }
        for unit in &self.units {
            let bytes = self.shape.planes().get(unit.plane)?.unit().bytes();
            let start = usize::try_from(unit.place.offset).ok()?;
            let end = start.checked_add(usize::try_from(bytes).ok()?)?;
            for byte in used.get_mut(unit.place.region)?.get_mut(start..end)? {
                if std::mem::replace(byte, true) {
                    return None;
                }
            }
        }
        Some(used)
    }
}

/// Every position of a plane, row-major over [`axes`].
pub(crate) fn indices(shape: &Shape, plane: &Plane) -> impl Iterator<Item = Vec<(Axis, u64)>> {
    let extents: Vec<(Axis, u64)> = axes(plane)
        .into_iter()
        .map(|axis| (axis, shape.extent(plane, axis)))
        .collect();
    let count: u64 = extents.iter().map(|(_, extent)| extent).product();
    (0..count).map(move |mut rest| {
        let mut index: Vec<(Axis, u64)> = extents
            .iter()
            .rev()
            .map(|&(axis, extent)| {
                let i = rest % extent;
                rest /= extent;
                (axis, i)
            })
            .collect();
        index.reverse();
        index
    })
}

fn row_major(shape: &Shape, plane: &Plane, index: &[(Axis, u64)]) -> Option<usize> {
    let axes = axes(plane);
    let known = |&(axis, i): &(Axis, u64)| axes.contains(&axis) || i == 0;
    if !index.iter().all(known) {
        return None;
    }
    let mut at = 0u64;
    for axis in axes {
        let i = index
            .iter()
            .find(|(a, _)| *a == axis)
            .map_or(0, |(_, i)| *i);
        let extent = shape.extent(plane, axis);
        if i >= extent {
            return None;
        }
        at = at * extent + i;
    }
    usize::try_from(at).ok()
}

fn check_size(shape: &Shape) -> Result<(), TestkitError> {
    let units = shape.planes().iter().try_fold(0u64, |sum, plane| {
        let mut extents = axes(plane).into_iter().map(|a| shape.extent(plane, a));
        let units = extents.try_fold(1u64, u64::checked_mul)?;
        sum.checked_add(units)
    });
    match units {
        Some(units) if units <= UNITS_MAX => Ok(()),
        units => Err(TestkitError::TooLarge {
            what: "the number of units",
            size: units.unwrap_or(u64::MAX),
            max: UNITS_MAX,
        }),
    }
}

fn no_unit(plane: &Plane, index: &[(Axis, u64)]) -> TestkitError {
    TestkitError::NoUnit {
        plane: plane.name().to_string(),
        index: index.to_vec(),
    }
}

pub(crate) fn to_usize(value: u64) -> Result<usize, TestkitError> {
    usize::try_from(value).map_err(|_| TestkitError::TooLarge {
        what: "a size in bytes",
        size: value,
        max: usize::MAX as u64,
    })
}
