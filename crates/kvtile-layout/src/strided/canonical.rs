//! The canonical form of digits: it identifies a layout independently of its text.

use super::{Digit, PlanePiece, StridedLayout};

impl StridedLayout {
    /// The digits of `piece` in the order of axis and modulus, with neighbours merged wherever one
    /// continues the other. Equal canonical digits mean equal places. The converse holds for
    /// layouts in which no two units share a byte.
    #[must_use]
    pub fn canonical_digits(piece: &PlanePiece) -> Vec<Digit> {
        let mut digits: Vec<Digit> = piece.digits().to_vec();
        digits.sort_unstable();
        let mut merged: Vec<Digit> = Vec::new();
        for digit in digits {
            match merged.last_mut() {
                Some(last)
                    if last.axis == digit.axis
                        && last.low * last.extent == digit.low
                        && last.step.times(last.extent) == Some(digit.step) =>
                {
                    last.extent *= digit.extent;
                }
                _ => merged.push(digit),
            }
        }
        merged
    }

    /// Whether both layouts put every unit at the same place: same shape, regions and digits. The
    /// words may differ.
    #[must_use]
    pub fn same_places(&self, other: &StridedLayout) -> bool {
        self.shape == other.shape
            && self.region_bytes == other.region_bytes
            && self.pieces.len() == other.pieces.len()
            && self.pieces.iter().zip(&other.pieces).all(|(a, b)| {
                a.region() == b.region()
                    && a.offset() == b.offset()
                    && StridedLayout::canonical_digits(a) == StridedLayout::canonical_digits(b)
            })
    }
}
