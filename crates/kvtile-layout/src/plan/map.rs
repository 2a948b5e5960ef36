//! Block maps: from the indices that nests leave open to offsets.
//!
//! Nests have loops for the copied part of a block. Execution supplies three further indices, once
//! for each pair and nest: the block, the first token rounded down to a whole tile, and the layer
//! of a plan that covers one layer.

use std::sync::Arc;

use super::AddressStep;
use crate::{
    axis::Axis,
    strided::{Digit, PlanePiece},
};

/// Maps a block, a first token and a layer to an offset, on one side, for some planes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockMap {
    /// The offset of the layer.
    start: AddressStep,
    /// The step from one block to the next, where it is constant.
    block_step: Option<AddressStep>,
    digits: Arc<MapDigits>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct MapDigits {
    block: Vec<Digit>,
    token: Vec<Digit>,
    layer: Vec<Digit>,
}

/// The indices that a map resolves besides the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct MapKind {
    /// Whole tiles of tokens.
    pub(super) token: bool,
    /// The layer.
    pub(super) layer: bool,
}

impl MapKind {
    pub(super) const ALL: [MapKind; 4] = [
        MapKind::new(false, false),
        MapKind::new(true, false),
        MapKind::new(false, true),
        MapKind::new(true, true),
    ];

    pub(super) const fn new(token: bool, layer: bool) -> MapKind {
        MapKind { token, layer }
    }

    /// Its position in [`MapKind::ALL`].
    pub(super) fn index(self) -> usize {
        usize::from(self.token) + 2 * usize::from(self.layer)
    }
}

impl BlockMap {
    /// The map of a plane whose entries along N are of `every` tokens each.
    pub(super) fn new(piece: &PlanePiece, every: u64, kind: MapKind) -> BlockMap {
        let digits = |axis, wanted: bool| -> Vec<Digit> {
            let digits = piece.digits_of(axis).filter(|_| wanted);
            digits.copied().collect()
        };
        let in_tokens = |digit: Digit| Digit {
            low: digit.low.saturating_mul(every),
            ..digit
        };
        let token = digits(Axis::N, kind.token).into_iter().map(in_tokens);
        let block = digits(Axis::B, true);
        let block_step = match block.as_slice() {
            [] => Some(AddressStep::default()),
            [one] if one.low == 1 => Some(one.step),
            _ => None,
        };
        BlockMap {
            start: AddressStep::default(),
            block_step,
            digits: Arc::new(MapDigits {
                block,
                token: token.collect(),
                layer: digits(Axis::L, kind.layer),
            }),
        }
    }

    /// The offset of `block` and of `token`, the first token rounded down to the largest modulus,
    /// in the layer of the plan. Blocks and tokens outside the plan give meaningless offsets.
    #[inline]
    #[must_use]
    pub fn base(&self, block: u64, token: u64) -> AddressStep {
        let mut base = match self.block_step {
            // No division: execution calls this for every pair and nest.
            Some(step) => AddressStep {
                regions: block.wrapping_mul(step.regions),
                bytes: block.wrapping_mul(step.bytes),
            },
            None => place(&self.digits.block, block),
        };
        if token != 0 {
            base = sum(base, place(&self.digits.token, token));
        }
        sum(base, self.start)
    }

    /// The same map in layer `layer` of its side.
    pub(super) fn in_layer(&self, layer: u64) -> BlockMap {
        BlockMap {
            start: place(&self.digits.layer, layer),
            ..self.clone()
        }
    }
}

fn place(digits: &[Digit], index: u64) -> AddressStep {
    digits.iter().fold(AddressStep::default(), |place, digit| {
        let value = (index / digit.low) % digit.extent;
        let step = AddressStep {
            regions: value.wrapping_mul(digit.step.regions),
            bytes: value.wrapping_mul(digit.step.bytes),
        };
        sum(place, step)
    })
}

#[inline]
fn sum(a: AddressStep, b: AddressStep) -> AddressStep {
    AddressStep {
        regions: a.regions.wrapping_add(b.regions),
        bytes: a.bytes.wrapping_add(b.bytes),
    }
}

/// The maps of both sides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MapPair {
    /// Of the source.
    pub source: BlockMap,
    /// Of the destination.
    pub destination: BlockMap,
}
