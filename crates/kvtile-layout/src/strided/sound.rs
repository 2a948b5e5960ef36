//! Invariants of every resolved layout, asserted after resolving.
//!
//! `from_digits` checks digits of callers with errors. Digits that this crate computes can only be
//! wrong through a defect.

use super::{AddressStep, Digit, PlanePiece, StridedLayout};
use crate::{
    axis::Axis,
    shape::{Plane, Shape},
};

impl StridedLayout {
    /// Asserts that the digits of each axis make up its extent, and that every plane ends inside its last
    /// region.
    pub(super) fn assert_sound(&self) {
        assert_eq!(
            self.pieces.len(),
            self.shape.planes().len(),
            "pieces and planes"
        );
        for (plane, piece) in self.planes() {
            let declared = plane.extents().iter().map(|(axis, _)| *axis);
            for axis in [Axis::B, Axis::L, Axis::N].into_iter().chain(declared) {
                assert_axis(&self.shape, plane, piece, axis);
            }
            self.assert_inside(plane, piece);
        }
    }

    fn assert_inside(&self, plane: &Plane, piece: &PlanePiece) {
        let first = AddressStep {
            regions: piece.region,
            bytes: piece.offset,
        };
        let last = piece.digits.iter().try_fold(first, |last, digit| {
            last.plus(digit.step.times(digit.extent - 1)?)
        });
        let size = last.and_then(|last| self.region_bytes.get(usize::try_from(last.regions).ok()?));
        let end = last.and_then(|last| last.bytes.checked_add(plane.unit().bytes()));
        assert!(
            end.zip(size).is_some_and(|(end, size)| end <= *size),
            "plane {} ends at {last:?} with units of {} bytes, outside its region of {size:?} bytes: {}",
            plane.name(),
            plane.unit().bytes(),
            self.describe()
        );
    }
}

/// Asserts that the lows of an axis start at 1 and are the products of the extents below them, up
/// to the extent of the axis.
fn assert_axis(shape: &Shape, plane: &Plane, piece: &PlanePiece, axis: Axis) {
    let extent = shape.extent(plane, axis);
    let mut digits: Vec<&Digit> = piece.digits_of(axis).collect();
    digits.sort_unstable_by_key(|digit| digit.low);
    let mut reached = 1;
    for digit in &digits {
        assert!(
            digit.low == reached && digit.extent > 1,
            "digits {digits:?} of {axis} in plane {}",
            plane.name()
        );
        reached *= digit.extent;
    }
    assert_eq!(
        reached,
        extent,
        "extent of the digits {digits:?} of {axis} in plane {}",
        plane.name()
    );
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use super::*;
    use crate::{Unit, Word};

    fn layout() -> StridedLayout {
        let shape = Shape::key_value(4, 2, 16, 2, 8, Unit::raw(2).unwrap()).unwrap();
        let word: Word = "BLKN8HNC".parse().unwrap();
        StridedLayout::resolve(&word, &shape, 1).unwrap()
    }

    /// Whether `assert_sound` catches `change`.
    fn is_found(change: impl Fn(&mut StridedLayout)) -> bool {
        let mut layout = layout();
        layout.assert_sound();
        change(&mut layout);
        catch_unwind(|| layout.assert_sound()).is_err()
    }

    #[test]
    fn digits_that_do_not_make_up_their_axis_and_planes_outside_their_regions_are_caught() {
        assert!(is_found(|layout| layout.pieces[1].digits[0].extent += 1));
        assert!(is_found(|layout| layout.pieces[1].digits[0].low = 2));
        assert!(is_found(|layout| layout.pieces[0].digits.truncate(1)));
        assert!(is_found(|layout| layout.pieces[0].offset += 1 << 20));
        assert!(is_found(|layout| layout.pieces[0].region = 1));
        assert!(is_found(|layout| layout.region_bytes[0] -= 1));
        assert!(is_found(|layout| drop(layout.pieces.pop())));
        assert!(!is_found(|_| {}));
    }
}
