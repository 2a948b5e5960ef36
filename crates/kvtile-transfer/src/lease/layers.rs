//! The layers of its blocks that a lease holds.

use std::ops::Range;

use kvtile_layout::{LayoutError, PlanError};

use crate::error::TransferError;

/// All layers, or a proper subrange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HeldLayers {
    All,
    Part(Range<u64>),
}

impl HeldLayers {
    /// The layers of `range` among `num_layers`.
    ///
    /// # Errors
    /// An empty range; a range that exceeds the layers.
    pub(super) fn of(range: Range<u64>, num_layers: u64) -> Result<HeldLayers, TransferError> {
        if range.is_empty() || range.end > num_layers {
            let refused = LayoutError::Plan(PlanError::SelectionRange {
                side: "leased",
                axis: "layers",
                start: range.start,
                count: range.end.saturating_sub(range.start),
                extent: num_layers,
            });
            return Err(TransferError::Layout(refused));
        }
        match range == (0..num_layers) {
            true => Ok(HeldLayers::All),
            false => Ok(HeldLayers::Part(range)),
        }
    }

    /// The range of layers, for a layout with `num_layers`.
    pub(super) fn range(&self, num_layers: u64) -> Range<u64> {
        match self {
            HeldLayers::All => 0..num_layers,
            HeldLayers::Part(range) => range.clone(),
        }
    }

    /// Whether both have a layer in common.
    pub(super) fn meets(&self, other: &HeldLayers) -> bool {
        match (self, other) {
            (HeldLayers::Part(a), HeldLayers::Part(b)) => a.start < b.end && b.start < a.end,
            _ => true,
        }
    }
}
