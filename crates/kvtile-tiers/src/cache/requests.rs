//! Checks of the layout and of the block ids of a load or a store.

use kvtile_transfer::LayoutHandle;

use super::CacheParts;
use crate::{error::TierError, ids::check_ids, opening::check_identity};

/// The layout of a load or a store. Refuses a layout of another identity, ids out of range, and
/// duplicate ids.
pub(super) fn check_blocks(
    inner: &CacheParts,
    layout: Option<LayoutHandle>,
    blocks: &[usize],
) -> Result<LayoutHandle, TierError> {
    let (handle, count) = match layout {
        None => (inner.engine, inner.engine_blocks),
        Some(handle) => {
            let layout = inner.manager.layout(handle)?;
            check_identity(&inner.settings.identity, &layout)?;
            (handle, layout.shape().num_blocks())
        }
    };
    check_ids(blocks, count)?;
    Ok(handle)
}
