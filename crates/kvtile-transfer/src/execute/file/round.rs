//! Rounds: tiles that are copied together through one slot of staging memory.

use super::{
    super::{
        bound::{BoundLayout, RegionBacking},
        place::copy_nest,
    },
    limits::FileLimits,
    tiling::{FileTile, TileNest},
    window::{FileWindow, place, staged_bytes, total, windows},
};
use crate::error::TransferError;

/// The tiles of the next round, while they are collected.
#[derive(Default)]
pub(super) struct FileRound<'a> {
    tiles: Vec<(FileTile, &'a TileNest)>,
    bytes: u64,
    /// Lower bound of the bytes of the source windows, without gaps.
    read_bytes: u64,
}

impl<'a> FileRound<'a> {
    pub(super) fn is_empty(&self) -> bool {
        self.tiles.is_empty()
    }

    pub(super) fn push(&mut self, tile: FileTile, nest: &'a TileNest) {
        self.bytes = self.bytes.saturating_add(nest.bytes);
        self.read_bytes = self.read_bytes.saturating_add(nest.source_span);
        self.tiles.push((tile, nest));
    }

    pub(super) fn has_room(
        &mut self,
        nest: &TileNest,
        source: &BoundLayout,
        limits: &FileLimits,
    ) -> bool {
        let fits = |have: u64, more: u64, max| have.saturating_add(more) <= max;
        if self.tiles.len() >= limits.round_tiles
            || !fits(self.bytes, nest.bytes, limits.round_bytes)
        {
            return false;
        }
        let is_memory = matches!(source.backing(), RegionBacking::Memory(_));
        if is_memory || fits(self.read_bytes, nest.source_span, limits.round_read_bytes) {
            return true;
        }
        // Overlapping spans were counted several times, so count exactly. Half of the limit stays
        // free, so that such a count serves many tiles.
        self.read_bytes = total(&windows(source, 0, 0, self.source_spans()));
        fits(
            self.read_bytes,
            nest.source_span,
            limits.round_read_bytes / 2,
        )
    }

    fn source_spans(&self) -> impl Iterator<Item = (kvtile_layout::Location, u64)> {
        let tiles = self.tiles.iter();
        tiles.map(|(tile, nest)| (tile.source, nest.source_span))
    }

    /// Computes the windows of these tiles.
    pub(super) fn windows(
        self,
        source: &BoundLayout,
        destination: &BoundLayout,
        limits: &FileLimits,
    ) -> RoundWindows<'a> {
        let mut reads = windows(source, limits.read_gap_bytes, 0, self.source_spans());
        if total(&reads) > limits.round_read_bytes {
            reads = windows(source, 0, 0, self.source_spans());
        }
        let tiles = self.tiles.iter();
        let spans = tiles.map(|(tile, nest)| (tile.destination, nest.destination_span));
        let writes = windows(destination, 0, staged_bytes(&reads), spans);
        RoundWindows {
            tiles: self.tiles,
            reads,
            writes,
        }
    }
}

/// The tiles of a round with their windows in staging memory.
pub(super) struct RoundWindows<'a> {
    tiles: Vec<(FileTile, &'a TileNest)>,
    pub(super) reads: Vec<FileWindow>,
    pub(super) writes: Vec<FileWindow>,
}

impl RoundWindows<'_> {
    /// Bytes of staging memory that they need.
    pub(super) fn staged_bytes(&self) -> usize {
        staged_bytes(&self.reads).max(staged_bytes(&self.writes))
    }

    /// Runs the nests of all tiles. The windows are staged at `start`.
    ///
    /// # Safety
    /// `start` is valid for [`RoundWindows::staged_bytes`] bytes that nothing else uses; for the sides
    /// in memory as for [`copy_nest`].
    pub(super) unsafe fn permute(
        &self,
        source: &BoundLayout,
        destination: &BoundLayout,
        start: *mut u8,
    ) -> Result<(), TransferError> {
        for (tile, nest) in &self.tiles {
            let from = place(source, tile.source, &self.reads, start)?;
            let to = place(destination, tile.destination, &self.writes, start)?;
            // SAFETY: the caller guarantees the regions; windows of reads and of writes lie in
            // staging memory one after the other.
            unsafe { copy_nest(&nest.far, &nest.local, (from, to)) }?;
        }
        Ok(())
    }
}
