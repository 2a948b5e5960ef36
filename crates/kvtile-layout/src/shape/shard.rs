//! The part of the whole model that a layout holds.

use serde::{Deserialize, Serialize};

use crate::error::{LayoutError, ShapeError};

/// `count` entries of an axis, starting at `start`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AxisRange {
    /// First entry.
    pub start: u64,
    /// Number of entries.
    pub count: u64,
}

impl AxisRange {
    /// `count` entries, starting at `start`.
    #[must_use]
    pub fn new(start: u64, count: u64) -> AxisRange {
        AxisRange { start, count }
    }

    /// One past the last entry; `None` on overflow.
    #[must_use]
    pub fn end(self) -> Option<u64> {
        self.start.checked_add(self.count)
    }

    /// The entries that both ranges have; `None` where there are none.
    #[must_use]
    pub fn intersection(self, other: AxisRange) -> Option<AxisRange> {
        let start = self.start.max(other.start);
        let end = self.end()?.min(other.end()?);
        (start < end).then(|| AxisRange::new(start, end - start))
    }
}

impl std::fmt::Display for AxisRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}..{}",
            self.start,
            self.start.saturating_add(self.count)
        )
    }
}

/// The layers and heads of the whole model that a layout holds, and its replica number.
///
/// Tensor parallelism splits heads, pipeline parallelism splits layers. With more ranks than KV
/// heads, several replicas hold the same heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shard {
    /// The layers held, counted in the whole model.
    pub layers: AxisRange,
    /// Layers of the whole model.
    pub total_layers: u64,
    /// The KV heads held, counted in the whole model.
    pub heads: AxisRange,
    /// KV heads of the whole model.
    pub total_heads: u64,
    /// Number of this copy among equal copies.
    #[serde(default)]
    pub replica: u32,
}

impl Default for Shard {
    fn default() -> Shard {
        Shard::whole(1, 1)
    }
}

impl Shard {
    /// The whole of a model with `layers` layers and `heads` KV heads.
    #[must_use]
    pub fn whole(layers: u64, heads: u64) -> Shard {
        Shard {
            layers: AxisRange::new(0, layers),
            total_layers: layers,
            heads: AxisRange::new(0, heads),
            total_heads: heads,
            replica: 0,
        }
    }

    /// The heads of tensor-parallel rank `rank` of `size`, all layers. With more ranks than heads,
    /// consecutive ranks hold replicas of one head.
    ///
    /// # Errors
    /// A rank outside `0..size`; a size that neither divides the heads nor is a multiple of them.
    pub fn tensor_parallel(
        layers: u64,
        heads: u64,
        rank: u64,
        size: u64,
    ) -> Result<Shard, LayoutError> {
        let refused = LayoutError::Shape(ShapeError::TensorParallel { heads, rank, size });
        if rank >= size || heads == 0 {
            return Err(refused);
        }
        let mut shard = Shard::whole(layers, heads);
        if heads.is_multiple_of(size) {
            let count = heads / size;
            shard.heads = AxisRange::new(rank * count, count);
        } else if size.is_multiple_of(heads) {
            let replicas = size / heads;
            shard.heads = AxisRange::new(rank / replicas, 1);
            shard.replica = u32::try_from(rank % replicas).map_err(|_| refused)?;
        } else {
            return Err(refused);
        }
        Ok(shard)
    }

    pub(super) fn check(&self, num_layers: u64, num_heads: u64) -> Result<(), LayoutError> {
        for (axis, range, total, held) in [
            ("layers", self.layers, self.total_layers, num_layers),
            ("heads", self.heads, self.total_heads, num_heads),
        ] {
            if range.count != held || range.end().is_none_or(|end| end > total) {
                return Err(LayoutError::Shape(ShapeError::ShardRange {
                    axis,
                    range,
                    total,
                    held,
                }));
            }
        }
        Ok(())
    }
}
