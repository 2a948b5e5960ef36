//! Checks of the layout and of the block ids of a load or a store.

use kvtile_layout::broken;
use kvtile_transfer::{DeviceMark, LayoutHandle, TransferManager, TransferOptions};

use super::CacheParts;
use crate::{
    error::{RequestError, TierError},
    ids::check_ids,
    opening::check_identity,
};

/// The layout of a load or a store. Refuses a layout of another identity, ids out of range, and
/// duplicate ids.
pub(super) fn check_blocks(
    inner: &CacheParts,
    layout: Option<LayoutHandle>,
    blocks: &[usize],
) -> Result<LayoutHandle, TierError> {
    let (handle, count) = match layout {
        None => match inner.engine {
            Some(engine) => (engine.handle, engine.blocks),
            // The cache over groups has refused a call without a layout.
            None => broken(format_args!("{} blocks of no layout", blocks.len())),
        },
        Some(handle) => {
            let layout = inner.manager.layout(handle)?;
            check_identity(&inner.settings.identity, &layout)?;
            (handle, layout.shape().num_blocks())
        }
    };
    check_ids(blocks, count)?;
    Ok(handle)
}

/// Refuses work of a device to wait for, where the layout is not in memory of one.
pub(super) fn check_after(
    manager: &TransferManager,
    layout: LayoutHandle,
    after: &[DeviceMark],
) -> Result<(), TierError> {
    if after.is_empty() || manager.layout(layout)?.device().is_some() {
        return Ok(());
    }
    Err(TierError::Request(RequestError::NoDeviceToWait))
}

/// The options of a transfer that comes after work of devices.
pub(super) fn transfer_after(after: &[DeviceMark]) -> TransferOptions {
    let marks = after.iter().cloned();
    marks.fold(TransferOptions::new(), TransferOptions::after)
}
