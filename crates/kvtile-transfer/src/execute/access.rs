//! Leased blocks as slices.

use kvtile_layout::Span;

use super::bound::BoundLayout;
use crate::error::TransferError;

/// The bytes of `span`.
///
/// # Safety
/// While the slice lives nobody writes these bytes.
pub(super) unsafe fn bytes(layout: &BoundLayout, span: Span) -> Result<&[u8], TransferError> {
    let pointer = layout.pointer(span.start, span.bytes)?;
    let length = length(span)?;
    // SAFETY: `pointer` reaches `length` bytes of a region that `layout` keeps alive, mapped and
    // initialised; the caller keeps writers away.
    Ok(unsafe { std::slice::from_raw_parts(pointer, length) })
}

/// The bytes of `span`, to write.
///
/// # Safety
/// While the slice lives nobody else reads or writes these bytes.
#[expect(
    clippy::mut_from_ref,
    reason = "the region is not owned by the layout; exclusivity comes from the caller's lease"
)]
pub(super) unsafe fn bytes_mut(
    layout: &BoundLayout,
    span: Span,
) -> Result<&mut [u8], TransferError> {
    if !layout.is_writable() {
        return Err(TransferError::ReadOnly);
    }
    let pointer = layout.pointer(span.start, span.bytes)?;
    let length = length(span)?;
    // SAFETY: `pointer` reaches `length` bytes of a writable region that `layout` keeps alive; the
    // caller keeps everybody else away.
    Ok(unsafe { std::slice::from_raw_parts_mut(pointer, length) })
}

fn length(span: Span) -> Result<usize, TransferError> {
    usize::try_from(span.bytes).map_err(|_| TransferError::OutsidePlan {
        region: span.start.region,
    })
}
