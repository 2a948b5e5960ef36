//! Windows: contiguous pieces of files, and their offsets in staging memory.

use kvtile_layout::{Location, broken};

use super::super::{
    bound::{BoundLayout, RegionBacking},
    place::NestPlace,
};
use crate::error::{CopyError, TransferError};

/// A window's offset in staging memory equals its file offset modulo this, for direct I/O.
const WINDOW_ALIGNMENT: u64 = 4096;

/// A contiguous piece of a file with its offset in staging memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct FileWindow {
    pub(super) region: u64,
    /// Its offset in the region.
    pub(super) from: u64,
    to: u64,
    pub(super) staged_at: usize,
}

impl FileWindow {
    fn staged_end(&self) -> usize {
        self.staged_at.saturating_add(self.len())
    }

    pub(super) fn len(&self) -> usize {
        // Its region was bound, so its size fits a `usize`.
        usize::try_from(self.to - self.from).unwrap_or(usize::MAX)
    }
}

/// Total bytes of all windows.
pub(super) fn total(windows: &[FileWindow]) -> u64 {
    windows.iter().map(|window| window.to - window.from).sum()
}

/// Bytes of staging memory that the windows need, from its start on.
pub(super) fn staged_bytes(windows: &[FileWindow]) -> usize {
    windows
        .iter()
        .map(FileWindow::staged_end)
        .max()
        .unwrap_or(0)
}

/// The windows that cover `spans` (start and length) of a side in files, merged across gaps of up
/// to `gap` bytes, in file order. Their offsets in staging memory start at `staged_from` and equal
/// their file offsets modulo [`WINDOW_ALIGNMENT`]. A side in memory has none.
pub(super) fn windows(
    layout: &BoundLayout,
    gap: u64,
    staged_from: usize,
    spans: impl Iterator<Item = (Location, u64)>,
) -> Vec<FileWindow> {
    if matches!(layout.backing(), RegionBacking::Memory(_)) {
        return Vec::new();
    }
    let mut spans: Vec<(u64, u64, u64)> = spans
        .map(|(start, bytes)| {
            let end = start.offset.saturating_add(bytes);
            (start.region, start.offset, end)
        })
        .collect();
    spans.sort_unstable();
    let mut windows: Vec<FileWindow> = Vec::new();
    for (region, from, to) in spans {
        match windows.last_mut() {
            Some(last) if last.region == region && from <= last.to.saturating_add(gap) => {
                last.to = last.to.max(to);
            }
            _ => windows.push(FileWindow {
                region,
                from,
                to,
                staged_at: 0,
            }),
        }
    }
    let mut cursor = staged_from as u64;
    for window in &mut windows {
        let base = match layout.file(window.region) {
            Ok((_, base)) => base,
            Err(error) => broken(format_args!("a window outside the files: {error}")),
        };
        let phase = base.wrapping_add(window.from) % WINDOW_ALIGNMENT;
        cursor = cursor.next_multiple_of(WINDOW_ALIGNMENT) + phase;
        window.staged_at = usize::try_from(cursor).unwrap_or(usize::MAX);
        cursor = cursor.saturating_add(window.to - window.from);
    }
    windows
}

/// The place of a side of a tile: in the regions themselves, or in the window that contains it. The
/// windows are staged at `start`.
pub(super) fn place<'b>(
    layout: &'b BoundLayout,
    location: Location,
    windows: &[FileWindow],
    start: *mut u8,
) -> Result<NestPlace<'b>, TransferError> {
    let RegionBacking::File = layout.backing() else {
        return Ok(NestPlace::Regions(layout, location));
    };
    let after =
        windows.partition_point(|w| (w.region, w.from) <= (location.region, location.offset));
    let window = after
        .checked_sub(1)
        .and_then(|index| windows.get(index))
        .filter(|window| window.region == location.region)
        .ok_or(TransferError::Copy(CopyError::OutsidePlan {
            region: location.region,
        }))?;
    Ok(NestPlace::Buffer {
        buffer: start.wrapping_add(window.staged_at),
        bytes: window.len(),
        from: window.from,
        at: location.offset,
    })
}
