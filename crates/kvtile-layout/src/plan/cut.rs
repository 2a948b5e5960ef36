//! Cuts one axis at the moduli of both sides.
//!
//! Index `start + i` of an axis is an affine function of the loop indices only between the
//! multiples of the moduli. An aligned range is one segment whose loops run over the digits of
//! the common refinement; a range that starts or ends inside a tile becomes several segments.

use super::{AxisSet, Loop};
use crate::{
    axis::Axis,
    error::{LayoutError, PlanError},
    strided::{AddressStep, PlanePiece},
};

/// A range of an axis, on both sides.
#[derive(Clone, Copy)]
pub(super) struct CutRange {
    pub(super) axis: Axis,
    pub(super) source: u64,
    pub(super) destination: u64,
    pub(super) count: u64,
}

/// A part of a range that is affine on both sides.
#[derive(Clone)]
pub(super) struct AxisSegment {
    pub(super) source: AddressStep,
    pub(super) destination: AddressStep,
    pub(super) loops: Vec<Loop>,
}

/// The segments of `range`, in order.
pub(super) fn cut(
    range: CutRange,
    source: &PlanePiece,
    destination: &PlanePiece,
) -> Result<Vec<AxisSegment>, LayoutError> {
    let axis = range.axis;
    let lows = |piece: &PlanePiece| -> Vec<u64> {
        let lows = piece.digits_of(axis).map(|d| d.low);
        let mut lows: Vec<u64> = lows.filter(|&low| low > 1).collect();
        lows.sort_unstable();
        lows
    };
    let (mine, theirs) = (lows(source), lows(destination));
    let mut moduli: Vec<u64> = mine.iter().chain(&theirs).copied().collect();
    moduli.sort_unstable();
    moduli.dedup();
    for pair in moduli.windows(2) {
        if let [low, high] = pair
            && high % low != 0
        {
            return Err(LayoutError::Plan(PlanError::NoCommonRefinement {
                axis,
                first: *high,
                second: *low,
            }));
        }
    }
    let mut segments = Vec::new();
    let mut done = 0;
    while done < range.count {
        let at = (range.source + done, range.destination + done);
        let (modulus, count) = chunk(at, range.count - done, &moduli, (&mine, &theirs));
        segments.push(AxisSegment {
            source: source.axis_step(axis, at.0),
            destination: destination.axis_step(axis, at.1),
            loops: loops(axis, count, modulus, &moduli, (source, destination)),
        });
        done += count;
    }
    assert_eq!(
        done, range.count,
        "entries of {axis} in segments, and in the range"
    );
    Ok(segments)
}

/// The largest modulus at which both positions are aligned, and a number of entries that is affine
/// in the digits up to it: a multiple of the modulus that ends at or before the next boundary of
/// every larger modulus.
fn chunk(
    at: (u64, u64),
    left: u64,
    moduli: &[u64],
    (mine, theirs): (&[u64], &[u64]),
) -> (u64, u64) {
    for &modulus in moduli.iter().rev().chain(&[1]) {
        let aligned = at.0.is_multiple_of(modulus) && at.1.is_multiple_of(modulus);
        if !aligned || left < modulus {
            continue;
        }
        let boundary = |position: u64, moduli: &[u64]| {
            let larger = moduli.iter().filter(|&&m| m > modulus);
            larger.map(|m| m - position % m).min()
        };
        let limit = [boundary(at.0, mine), boundary(at.1, theirs), Some(left)];
        let limit = limit.into_iter().flatten().min().unwrap_or(left);
        let count = limit / modulus * modulus;
        if count > 0 {
            return (modulus, count);
        }
    }
    (1, 1)
}

/// The loops over the digits of `count` entries: one for each modulus up to `modulus`, and one
/// above them.
fn loops(
    axis: Axis,
    count: u64,
    modulus: u64,
    moduli: &[u64],
    (source, destination): (&PlanePiece, &PlanePiece),
) -> Vec<Loop> {
    let mut lows: Vec<u64> = vec![1];
    lows.extend(moduli.iter().copied().filter(|&m| m <= modulus));
    assert!(
        count.is_multiple_of(modulus) && lows.last() == Some(&modulus),
        "{count} entries of {axis} in digits of {lows:?} up to {modulus}"
    );
    let highs = lows.iter().copied().skip(1).chain([count]);
    lows.iter()
        .zip(highs)
        .filter(|(low, high)| high / **low > 1)
        .map(|(&low, high)| Loop {
            extent: high / low,
            source: digit_step(source, axis, low),
            destination: digit_step(destination, axis, low),
            axes: AxisSet::of(axis),
        })
        .collect()
}

/// The step of `low` entries inside the digit of `axis` that covers them.
fn digit_step(piece: &PlanePiece, axis: Axis, low: u64) -> AddressStep {
    piece
        .digits_of(axis)
        .find(|d| d.low <= low && low < d.low * d.extent)
        .map_or_else(AddressStep::default, |digit| AddressStep {
            regions: digit.step.regions * (low / digit.low),
            bytes: digit.step.bytes * (low / digit.low),
        })
}
