//! The proof that no two units of a layout share a byte.
//!
//! The proof is sufficient, not necessary: strides nest (each is at least the span of the smaller
//! ones), and two pieces are separate in regions or in bytes after equal outer strides are removed.
//! Without a proof, a layout counts as overlapping.

use super::{Digit, PlanePiece};
use crate::shape::Shape;

pub(super) fn proved(shape: &Shape, pieces: &[PlanePiece]) -> bool {
    let lines: Vec<PlaneLines> = shape
        .planes()
        .iter()
        .zip(pieces)
        .map(|(plane, piece)| lines(piece, plane.unit().bytes()))
        .collect();
    let each = lines
        .iter()
        .all(|lines| lines.regions.nests() && lines.bytes_in_region.nests());
    each && lines.iter().enumerate().all(|(i, a)| {
        lines
            .iter()
            .skip(i + 1)
            .all(|b| a.regions.separate(&b.regions) || a.bytes.separate(&b.bytes))
    })
}

/// The positions of the units of a plane.
struct PlaneLines {
    /// The regions.
    regions: ByteLine,
    /// The bytes inside one region.
    bytes_in_region: ByteLine,
    /// The bytes inside all regions together: a step to another region may also change the offset.
    bytes: ByteLine,
}

fn lines(piece: &PlanePiece, unit_bytes: u64) -> PlaneLines {
    let line = |of: &dyn Fn(&Digit) -> bool| {
        let digits = piece.digits.iter().filter(|digit| of(digit));
        let digits = digits.map(|digit| (digit.step.bytes, digit.extent));
        ByteLine::new(piece.offset, unit_bytes, digits)
    };
    let far = piece.digits.iter().filter(|digit| digit.step.regions > 0);
    let far = far.map(|digit| (digit.step.regions, digit.extent));
    PlaneLines {
        regions: ByteLine::new(piece.region, 1, far),
        bytes_in_region: line(&|digit| digit.step.regions == 0),
        bytes: line(&|digit| digit.step.regions == 0 || digit.step.bytes > 0),
    }
}

/// Positions `base + sum of i * stride`, each `width` wide; strides in descending order.
struct ByteLine {
    base: u64,
    width: u64,
    digits: Vec<(u64, u64)>,
}

impl ByteLine {
    fn new(base: u64, width: u64, digits: impl Iterator<Item = (u64, u64)>) -> ByteLine {
        let mut digits: Vec<(u64, u64)> = digits.collect();
        digits.sort_unstable_by(|a, b| b.cmp(a));
        ByteLine {
            base,
            width,
            digits,
        }
    }

    /// Whether different indices give positions that do not overlap.
    fn nests(&self) -> bool {
        let mut reach = self.width;
        self.digits.iter().rev().all(|&(stride, extent)| {
            let nests = stride >= reach;
            reach = reach.saturating_add(stride.saturating_mul(extent - 1));
            nests
        })
    }

    fn span(&self, digits: &[(u64, u64)]) -> u64 {
        digits.iter().fold(self.width, |span, (stride, extent)| {
            span.saturating_add(stride.saturating_mul(extent - 1))
        })
    }

    fn separate(&self, other: &ByteLine) -> bool {
        let (mut mine, mut theirs) = (self.digits.as_slice(), other.digits.as_slice());
        loop {
            let ends = (
                self.base.saturating_add(self.span(mine)),
                other.base.saturating_add(other.span(theirs)),
            );
            if ends.0 <= other.base || ends.1 <= self.base {
                return true;
            }
            let (Some(((a, _), rest_a)), Some(((b, _), rest_b))) =
                (mine.split_first(), theirs.split_first())
            else {
                return false;
            };
            let low = self.base.min(other.base);
            let high = self
                .base
                .saturating_add(self.span(rest_a))
                .max(other.base.saturating_add(other.span(rest_b)));
            if a != b || high - low > *a {
                return false;
            }
            (mine, theirs) = (rest_a, rest_b);
        }
    }
}
