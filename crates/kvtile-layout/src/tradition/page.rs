//! Where one block, layer and plane lies, as the tradition asks.

use super::ConfigError;
use crate::{
    axis::Axis,
    error::LayoutError,
    strided::{Digit, StridedLayout, UnitIndex},
};

/// The run of bytes of one block, layer and plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PagePlace {
    /// Index of the region.
    pub region: u64,
    /// Offset in the region, in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// Where the bytes of block `block`, layer `layer` and plane number `outer` lie: `page_size *
/// inner_dim * dtype_width_bytes` bytes in the layouts of the tradition.
///
/// # Errors
/// An index out of range; a layout in which these bytes are not one run.
pub fn page_place(
    layout: &StridedLayout,
    block: u64,
    layer: u64,
    outer: u64,
) -> Result<PagePlace, LayoutError> {
    let found = usize::try_from(outer)
        .ok()
        .and_then(|i| layout.planes().nth(i));
    let Some((plane, piece)) = found else {
        return Err(ConfigError::OuterOutOfRange {
            outer,
            planes: layout.pieces().len(),
        }
        .into());
    };
    let index = UnitIndex::new().at(Axis::B, block).at(Axis::L, layer);
    let first = layout.locate(plane.name().as_str(), &index)?;
    let mut inside: Vec<&Digit> = piece
        .digits()
        .iter()
        .filter(|digit| !matches!(digit.axis, Axis::B | Axis::L))
        .collect();
    inside.sort_unstable_by_key(|digit| (digit.step.bytes, digit.extent));
    let mut bytes = plane.unit().bytes();
    for digit in inside {
        if !digit.step.is_local() || digit.step.bytes != bytes {
            return Err(ConfigError::NotContiguous {
                plane: plane.name().clone(),
                layout: layout.describe(),
            }
            .into());
        }
        bytes *= digit.extent;
    }
    Ok(PagePlace {
        region: first.region,
        offset: first.offset,
        bytes,
    })
}

/// Whether each block, all its layers and planes, is one run of bytes in one region.
#[must_use]
pub fn blocks_are_contiguous(layout: &StridedLayout) -> bool {
    let Ok(payload) = layout.shape().block_bytes() else {
        return false;
    };
    let mut region = None;
    let (mut start, mut end) = (u64::MAX, 0);
    for (plane, piece) in layout.planes() {
        let mut last = piece.offset();
        for digit in piece.digits().iter().filter(|d| d.axis != Axis::B) {
            if !digit.step.is_local() {
                return false;
            }
            last += (digit.extent - 1) * digit.step.bytes;
        }
        if *region.get_or_insert(piece.region()) != piece.region() {
            return false;
        }
        start = start.min(piece.offset());
        end = end.max(last + plane.unit().bytes());
    }
    layout.is_injective() && end.checked_sub(start) == Some(payload)
}
