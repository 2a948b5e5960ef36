//! The walk: a cursor moves over the memory in the order of the word.

use std::collections::BTreeSet;

use kvtile_layout::{Axis, AxisItem, Shape, StrideRule, Word, WordItem};

use super::{
    ReferenceUnit, UnitPlace, axes,
    paths::{only, paths, share},
};
use crate::error::TestkitError;

/// Every unit in memory order, and the bytes of each region.
pub(super) fn walk(
    word: &Word,
    shape: &Shape,
    alignment: u64,
) -> Result<(Vec<ReferenceUnit>, Vec<u64>), TestkitError> {
    let mut walker = WordWalker {
        word,
        shape,
        alignment,
        paths: paths(word, shape)?,
        picked: Vec::new(),
        units: Vec::new(),
        regions: Vec::new(),
    };
    let all: Vec<usize> = (0..shape.planes().len()).collect();
    let items: Vec<&WordItem> = word.items().iter().collect();
    if word.has_regions() {
        walker.go(&items, &all, WalkCursor::Regions)?;
    } else {
        walker.region(&items, &all)?;
    }
    Ok((walker.units, walker.regions))
}

/// The position of the walk: still choosing a region, or at an offset of the last region.
#[derive(Clone, Copy, Debug)]
enum WalkCursor {
    Regions,
    Bytes(u64),
}

/// A chosen digit: `(index % modulus) / low == value`, where low is the next smaller modulus on the
/// path of a plane.
struct PickedDigit {
    axis: Axis,
    modulus: Option<u64>,
    value: u64,
}

fn value_of(modulus: Option<u64>, low: u64, index: u64) -> u64 {
    modulus.map_or(index, |m| index % m) / low
}

struct WordWalker<'a> {
    word: &'a Word,
    shape: &'a Shape,
    alignment: u64,
    paths: Vec<Vec<AxisItem>>,
    picked: Vec<PickedDigit>,
    units: Vec<ReferenceUnit>,
    regions: Vec<u64>,
}

impl WordWalker<'_> {
    /// Visits the units that `items` list for the planes of `set`; returns the cursor after them.
    fn go(
        &mut self,
        items: &[&WordItem],
        set: &[usize],
        cursor: WalkCursor,
    ) -> Result<WalkCursor, TestkitError> {
        let Some((first, rest)) = items.split_first() else {
            return self.unit(set, cursor);
        };
        match first {
            WordItem::Bar => match cursor {
                WalkCursor::Regions => self.region(rest, set),
                WalkCursor::Bytes(_) => Err(self.bars()),
            },
            WordItem::Plane(name) => {
                let plane = only(self.shape, set, name.as_str())?;
                self.go(rest, &[plane], cursor)
            }
            WordItem::Sum(parts) => {
                let mut cursor = cursor;
                for (part, planes) in parts.iter().zip(share(self.shape, set, parts)?) {
                    let items: Vec<&WordItem> =
                        part.items().iter().chain(rest.iter().copied()).collect();
                    cursor = self.go(&items, &planes, cursor)?;
                }
                Ok(cursor)
            }
            WordItem::Axis(item) if item.axis == Axis::K => {
                let mut cursor = cursor;
                for &plane in set {
                    let end = self.go(rest, &[plane], cursor)?;
                    cursor = self.padded(*item, cursor, end)?;
                }
                Ok(cursor)
            }
            WordItem::Axis(item) => {
                let values = self.values(*item, set)?;
                let mut cursor = cursor;
                for value in 0..values {
                    self.picked.push(PickedDigit {
                        axis: item.axis,
                        modulus: item.modulus,
                        value,
                    });
                    let end = self.go(rest, set, cursor)?;
                    cursor = self.padded(*item, cursor, end)?;
                    self.picked.pop();
                }
                Ok(cursor)
            }
        }
    }

    /// Adds a region with the units that `items` list.
    fn region(&mut self, items: &[&WordItem], set: &[usize]) -> Result<WalkCursor, TestkitError> {
        self.regions.push(0);
        let WalkCursor::Bytes(end) = self.go(items, set, WalkCursor::Bytes(0))? else {
            return Err(self.bars());
        };
        if let Some(bytes) = self.regions.last_mut() {
            *bytes = end;
        }
        Ok(WalkCursor::Regions)
    }

    fn unit(&mut self, set: &[usize], cursor: WalkCursor) -> Result<WalkCursor, TestkitError> {
        let WalkCursor::Bytes(offset) = cursor else {
            return Err(self.bars());
        };
        let (&[i], Some(region)) = (set, self.regions.len().checked_sub(1)) else {
            return Err(TestkitError::PlanesNotSeparated {
                word: self.word.to_string(),
            });
        };
        let plane = self.shape.planes().get(i).ok_or_else(|| self.bars())?;
        let mut index = Vec::new();
        for axis in axes(plane) {
            let picked: Vec<(&PickedDigit, u64)> = self
                .picked
                .iter()
                .filter(|p| p.axis == axis)
                .map(|p| (p, self.low(i, axis, p.modulus)))
                .collect();
            let agrees = |&index: &u64| {
                let mut picked = picked.iter();
                picked.all(|(p, low)| value_of(p.modulus, *low, index) == p.value)
            };
            let open: Vec<u64> = (0..self.shape.extent(plane, axis)).filter(agrees).collect();
            let [only] = open.as_slice() else {
                return Err(TestkitError::AxisMissing {
                    axis,
                    candidates: open.len(),
                });
            };
            index.push((axis, *only));
        }
        let bytes = plane.unit().bytes();
        self.units.push(ReferenceUnit {
            plane: i,
            index,
            place: UnitPlace { region, offset },
        });
        Ok(WalkCursor::Bytes(fits(offset.checked_add(bytes))?))
    }

    /// The next smaller modulus of `axis` on the path of a plane.
    fn low(&self, plane: usize, axis: Axis, modulus: Option<u64>) -> u64 {
        let path = self.paths.get(plane).into_iter().flatten();
        path.filter(|item| item.axis == axis)
            .filter_map(|item| item.modulus)
            .filter(|&m| modulus.is_none_or(|own| m < own))
            .max()
            .unwrap_or(1)
    }

    /// The number of values of the digit, which must be the same for all planes.
    fn values(&self, item: AxisItem, set: &[usize]) -> Result<u64, TestkitError> {
        let mut each = BTreeSet::new();
        for &i in set {
            let Some(plane) = self.shape.planes().get(i) else {
                continue;
            };
            let low = self.low(i, item.axis, item.modulus);
            let values: BTreeSet<u64> = (0..self.shape.extent(plane, item.axis))
                .map(|index| value_of(item.modulus, low, index))
                .collect();
            each.insert(values.len() as u64);
        }
        match (each.pop_first(), each.is_empty()) {
            (Some(values), true) => Ok(values),
            _ => Err(TestkitError::SharedAxisDiffers { axis: item.axis }),
        }
    }

    /// The start of the next entry of `item`, if the current entry spans `start..end`.
    fn padded(
        &self,
        item: AxisItem,
        start: WalkCursor,
        end: WalkCursor,
    ) -> Result<WalkCursor, TestkitError> {
        let axis = item.axis;
        let (WalkCursor::Bytes(start), WalkCursor::Bytes(end)) = (start, end) else {
            return match item.rule {
                None => Ok(end),
                Some(_) => Err(TestkitError::RuleOnRegions { axis }),
            };
        };
        let holds = end - start;
        let mut stride = match item.rule {
            None => holds,
            Some(StrideRule::RoundUp(to)) => fits(holds.checked_next_multiple_of(to))?,
            Some(StrideRule::Fixed(stride)) if stride < holds => {
                return Err(TestkitError::StrideTooSmall {
                    axis,
                    stride,
                    holds,
                });
            }
            Some(StrideRule::Fixed(stride)) => stride,
        };
        if axis == Axis::B {
            stride = fits(stride.checked_next_multiple_of(self.alignment))?;
        }
        Ok(WalkCursor::Bytes(fits(start.checked_add(stride))?))
    }

    fn bars(&self) -> TestkitError {
        TestkitError::Bars {
            word: self.word.to_string(),
        }
    }
}

fn fits(bytes: Option<u64>) -> Result<u64, TestkitError> {
    bytes
        .filter(|&b| b <= kvtile_layout::BYTES_MAX)
        .ok_or(TestkitError::TooLarge {
            what: "a size in bytes",
            size: u64::MAX,
            max: kvtile_layout::BYTES_MAX,
        })
}
