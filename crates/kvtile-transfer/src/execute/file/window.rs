//! Windows: contiguous pieces of files, and where they lie in a staging buffer.

use kvtile_layout::Location;
use kvtile_memory::AlignedBuffer;

use super::super::{
    bound::{Backing, BoundLayout},
    copy::Place,
};
use crate::error::TransferError;

/// Alignment of windows, for direct I/O.
const WINDOW_ALIGNMENT: u64 = 4096;

/// A contiguous piece of a file and where it lies in the staging buffer.
#[derive(Clone, Copy)]
pub(super) struct Window {
    region: u64,
    from: u64,
    to: u64,
    staged_at: usize,
}

impl Window {
    fn staged_end(&self) -> usize {
        usize::try_from(self.to - self.from)
            .ok()
            .and_then(|bytes| self.staged_at.checked_add(bytes))
            .unwrap_or(usize::MAX)
    }
}

/// Bytes of all windows.
pub(super) fn total(windows: &[Window]) -> u64 {
    windows.iter().map(|window| window.to - window.from).sum()
}

/// The windows of a side in files that cover `spans` (start and length), merged across gaps of up
/// to `gap` bytes and placed in a buffer at their file offset modulo [`WINDOW_ALIGNMENT`]. None
/// for a side in memory.
pub(super) fn windows(
    layout: &BoundLayout,
    gap: u64,
    spans: impl Iterator<Item = (Location, u64)>,
) -> Vec<Window> {
    if matches!(layout.backing(), Backing::Memory(_)) {
        return Vec::new();
    }
    let mut spans: Vec<(u64, u64, u64)> = spans
        .map(|(start, bytes)| {
            (
                start.region,
                start.offset,
                start.offset.saturating_add(bytes),
            )
        })
        .collect();
    spans.sort_unstable();
    let mut windows: Vec<Window> = Vec::new();
    for (region, from, to) in spans {
        match windows.last_mut() {
            Some(last) if last.region == region && from <= last.to.saturating_add(gap) => {
                last.to = last.to.max(to);
            }
            _ => windows.push(Window {
                region,
                from,
                to,
                staged_at: 0,
            }),
        }
    }
    let mut cursor = 0u64;
    for window in &mut windows {
        let base = layout.file(window.region).map_or(0, |(_, base)| base);
        let phase = base.wrapping_add(window.from) % WINDOW_ALIGNMENT;
        cursor = cursor.next_multiple_of(WINDOW_ALIGNMENT) + phase;
        window.staged_at = usize::try_from(cursor).unwrap_or(usize::MAX);
        cursor += window.to - window.from;
    }
    windows
}

/// Makes `buffer` large enough for `windows`.
pub(super) fn prepare(
    buffer: &mut Option<AlignedBuffer>,
    windows: &[Window],
) -> Result<(), TransferError> {
    let Some(needed) = windows.iter().map(Window::staged_end).max() else {
        return Ok(());
    };
    if buffer.as_ref().is_none_or(|b| b.len() < needed) {
        let alignment = usize::try_from(WINDOW_ALIGNMENT).unwrap_or(1);
        *buffer = Some(AlignedBuffer::new(needed, alignment)?);
    }
    Ok(())
}

/// Reads every window into its place.
pub(super) fn read(
    layout: &BoundLayout,
    windows: &[Window],
    buffer: &mut AlignedBuffer,
) -> Result<(), TransferError> {
    for window in windows {
        let (file, base) = layout.file(window.region)?;
        let part = buffer
            .get_mut(window.staged_at..window.staged_end())
            .ok_or(TransferError::OutsidePlan {
                region: window.region,
            })?;
        file.read_exact_at(base + window.from, part)?;
    }
    Ok(())
}

/// Writes every window from its place.
pub(super) fn write(
    layout: &BoundLayout,
    windows: &[Window],
    buffer: &AlignedBuffer,
) -> Result<(), TransferError> {
    for window in windows {
        let (file, base) = layout.file(window.region)?;
        let part = buffer.get(window.staged_at..window.staged_end()).ok_or(
            TransferError::OutsidePlan {
                region: window.region,
            },
        )?;
        file.write_all_at(base + window.from, part)?;
    }
    Ok(())
}

/// Where a side of a tile lies: in the regions themselves, or in the window that has it.
pub(super) fn place<'b>(
    layout: &'b BoundLayout,
    location: Location,
    windows: &[Window],
    buffer: Option<&'b mut AlignedBuffer>,
) -> Result<Place<'b>, TransferError> {
    let Backing::File = layout.backing() else {
        return Ok(Place::Regions(layout, location));
    };
    let outside = || TransferError::OutsidePlan {
        region: location.region,
    };
    let after =
        windows.partition_point(|w| (w.region, w.from) <= (location.region, location.offset));
    let window = after
        .checked_sub(1)
        .and_then(|index| windows.get(index))
        .filter(|window| window.region == location.region)
        .ok_or_else(outside)?;
    let part = buffer
        .and_then(|buffer| buffer.get_mut(window.staged_at..window.staged_end()))
        .ok_or_else(outside)?;
    Ok(Place::Buffer {
        bytes: part.len(),
        buffer: part.as_mut_ptr(),
        from: window.from,
        at: location.offset,
    })
}
