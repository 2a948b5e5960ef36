//! Access to the bytes of leased blocks: as slices in memory, or piece by piece in files.

use kvtile_layout::RegionSpan;

use super::bound::{BoundLayout, RegionBacking};
use crate::error::{CopyError, TransferError};

/// The bytes of `span`.
///
/// # Safety
/// While the slice lives, nothing writes these bytes.
pub(crate) unsafe fn bytes(layout: &BoundLayout, span: RegionSpan) -> Result<&[u8], TransferError> {
    let pointer = layout.pointer(span.start, span.bytes)?;
    let length = length(span)?;
    // SAFETY: `pointer` reaches `length` bytes of a region that `layout` keeps alive, mapped and
    // initialised; the caller keeps writers away.
    Ok(unsafe { std::slice::from_raw_parts(pointer, length) })
}

/// The bytes of `span`, for writing.
///
/// # Safety
/// While the slice lives, nothing else reads or writes these bytes.
#[expect(
    clippy::mut_from_ref,
    reason = "the region is not owned by the layout; exclusivity comes from the caller's lease"
)]
pub(crate) unsafe fn bytes_mut(
    layout: &BoundLayout,
    span: RegionSpan,
) -> Result<&mut [u8], TransferError> {
    if !layout.is_writable() {
        return Err(TransferError::Copy(CopyError::ReadOnly));
    }
    let pointer = layout.pointer(span.start, span.bytes)?;
    let length = length(span)?;
    // SAFETY: `pointer` reaches `length` bytes of a writable region that `layout` keeps alive; the
    // caller excludes all other access.
    Ok(unsafe { std::slice::from_raw_parts_mut(pointer, length) })
}

/// Bytes per read from a file.
const READ_BYTES: usize = 1 << 20;

/// Passes the bytes of `span` to `take`: in one piece from memory, in several from a file.
///
/// # Safety
/// For the whole call nothing writes these bytes.
pub(crate) unsafe fn for_each_piece(
    layout: &BoundLayout,
    span: RegionSpan,
    buffer: &mut Vec<u8>,
    mut take: impl FnMut(&[u8]),
) -> Result<(), TransferError> {
    match layout.backing() {
        RegionBacking::Memory(_) => {
            // SAFETY: passed on to the caller.
            take(unsafe { bytes(layout, span) }?);
        }
        RegionBacking::Device(engine, _) => {
            let address = layout.address(span.start, span.bytes)?;
            // SAFETY: the address reaches that many bytes of a region that `layout` keeps alive; the caller keeps
            // writers away.
            unsafe { engine.read(address, span.bytes, &mut take) }?;
        }
        RegionBacking::File => {
            let (file, base) = layout.file(span.start.region)?;
            for start in (0..span.bytes).step_by(READ_BYTES) {
                let left = usize::try_from(span.bytes - start);
                buffer.resize(left.map_or(READ_BYTES, |left| left.min(READ_BYTES)), 0);
                file.read_exact_at(base + span.start.offset + start, buffer)?;
                take(buffer);
            }
        }
    }
    Ok(())
}

fn length(span: RegionSpan) -> Result<usize, TransferError> {
    usize::try_from(span.bytes).map_err(|_| {
        TransferError::Copy(CopyError::OutsidePlan {
            region: span.start.region,
        })
    })
}
