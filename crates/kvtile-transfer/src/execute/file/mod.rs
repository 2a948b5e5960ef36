//! Files as source or destination: the permutation happens in staging buffers.
//!
//! ```text
//! nest  ->  tiles, each dense in the file      sorted and merged: windows of the file
//! read the source's windows  ->  run the tiles' nests  ->  write the destination's windows
//! ```
//!
//! A destination window is exactly the bytes that tiles fill, so nothing else in the file is ever
//! rewritten. Long runs between memory and file skip the staging. What a round stages is bounded,
//! however the pieces lie.

mod tiling;
mod window;

use kvtile_layout::CopyPlan;
use kvtile_memory::AlignedBuffer;
use tiling::{Files, Tile, TileNest, Tiling};
use window::{place, prepare, read, total, windows, write};

use super::{
    bound::{Backing, BoundLayout},
    copy::copy_nest,
};
use crate::error::TransferError;

/// Bytes that one round moves at most: enough to merge small pieces into large ones, and small
/// enough to stay in a shared cache.
const ROUND_BYTES: u64 = 4 << 20;

/// Tiles of one round at most, and so windows.
const ROUND_TILES: usize = 1 << 15;

/// Bytes of source windows that a round reads at most: pieces may lie far apart.
const ROUND_READ_BYTES: u64 = 64 << 20;

/// Runs from this length on go between memory and file without staging.
const DIRECT_RUN_BYTES: u64 = 256 << 10;

/// Source windows closer than this are read as one.
const READ_GAP_BYTES: u64 = 32 << 10;

/// Executes all of `plan`, where at least one side is in files.
///
/// # Safety
/// As for [`super::copy::copy_plan`].
pub(super) unsafe fn copy_plan(
    plan: &CopyPlan,
    source: &BoundLayout,
    destination: &BoundLayout,
) -> Result<(), TransferError> {
    let files = Files::of(source, destination);
    let mut buffers = Buffers::default();
    for class in plan.classes() {
        let tilings = class.nests.iter().map(|nest| Tiling::new(nest, files));
        let tilings: Vec<Tiling> = tilings.collect::<Result<_, _>>()?;
        let mut round = Round::new(source, destination);
        for pair in &class.pairs {
            for (nest, tiling) in class.nests.iter().zip(&tilings) {
                for tile in tiling.tiles(plan.start(nest, pair)) {
                    let nest = tiling.nest(&tile);
                    if !round.has_room(nest) {
                        // SAFETY: passed on to the caller.
                        unsafe { round.execute(&mut buffers) }?;
                    }
                    round.push(tile, nest);
                }
            }
        }
        // SAFETY: passed on to the caller.
        unsafe { round.execute(&mut buffers) }?;
    }
    Ok(())
}

/// The staging buffers, which rounds share.
#[derive(Default)]
struct Buffers {
    read: Option<AlignedBuffer>,
    write: Option<AlignedBuffer>,
}

/// The tiles that are moved together.
struct Round<'a> {
    source: &'a BoundLayout,
    destination: &'a BoundLayout,
    tiles: Vec<(Tile, &'a TileNest)>,
    bytes: u64,
    /// At least the bytes of the source windows, gaps aside.
    read_bytes: u64,
}

impl<'a> Round<'a> {
    fn new(source: &'a BoundLayout, destination: &'a BoundLayout) -> Round<'a> {
        Round {
            source,
            destination,
            tiles: Vec::new(),
            bytes: 0,
            read_bytes: 0,
        }
    }

    fn push(&mut self, tile: Tile, nest: &'a TileNest) {
        self.bytes = self.bytes.saturating_add(nest.bytes);
        self.read_bytes = self.read_bytes.saturating_add(nest.source_span);
        self.tiles.push((tile, nest));
    }

    fn has_room(&mut self, nest: &TileNest) -> bool {
        let fits = |have: u64, more: u64, max| have.saturating_add(more) <= max;
        if self.tiles.len() >= ROUND_TILES || !fits(self.bytes, nest.bytes, ROUND_BYTES) {
            return false;
        }
        let is_memory = matches!(self.source.backing(), Backing::Memory(_));
        if is_memory || fits(self.read_bytes, nest.source_span, ROUND_READ_BYTES) {
            return true;
        }
        // Spans that overlap were counted several times; each count here leaves room for many.
        self.read_bytes = total(&windows(self.source, 0, self.source_spans()));
        fits(self.read_bytes, nest.source_span, ROUND_READ_BYTES / 2)
    }

    fn source_spans(&self) -> impl Iterator<Item = (kvtile_layout::Location, u64)> {
        let tiles = self.tiles.iter();
        tiles.map(|(tile, nest)| (tile.source, nest.source_span))
    }

    /// Moves the tiles of this round, which is empty then.
    ///
    /// # Safety
    /// As for [`copy_plan`], for the tiles of this round.
    unsafe fn execute(&mut self, buffers: &mut Buffers) -> Result<(), TransferError> {
        (self.bytes, self.read_bytes) = (0, 0);
        let mut staged = Vec::with_capacity(self.tiles.len());
        for (tile, nest) in std::mem::take(&mut self.tiles) {
            if nest.is_run && nest.bytes >= DIRECT_RUN_BYTES {
                // SAFETY: passed on to the caller.
                let moved = unsafe { self.move_run(&tile, nest.bytes) }?;
                if moved {
                    continue;
                }
            }
            staged.push((tile, nest));
        }
        self.tiles = staged;
        // SAFETY: passed on to the caller.
        unsafe { self.execute_staged(buffers) }
    }

    /// # Safety
    /// As for [`copy_plan`], for the tiles of this round.
    unsafe fn execute_staged(&mut self, buffers: &mut Buffers) -> Result<(), TransferError> {
        let mut reads = windows(self.source, READ_GAP_BYTES, self.source_spans());
        if total(&reads) > ROUND_READ_BYTES {
            reads = windows(self.source, 0, self.source_spans());
        }
        let tiles = std::mem::take(&mut self.tiles);
        let spans = tiles
            .iter()
            .map(|(tile, nest)| (tile.destination, nest.destination_span));
        let writes = windows(self.destination, 0, spans);
        prepare(&mut buffers.read, &reads)?;
        prepare(&mut buffers.write, &writes)?;
        if let Some(buffer) = &mut buffers.read {
            read(self.source, &reads, buffer)?;
        }
        for (tile, nest) in &tiles {
            let from = place(self.source, tile.source, &reads, buffers.read.as_mut())?;
            let write = buffers.write.as_mut();
            let to = place(self.destination, tile.destination, &writes, write)?;
            // SAFETY: regions are the caller's promise; the buffers are ours and two.
            unsafe { copy_nest(&nest.far, &nest.local, (from, to)) }?;
        }
        if let Some(buffer) = &buffers.write {
            write(self.destination, &writes, buffer)?;
        }
        Ok(())
    }

    /// Moves a long run between memory and file without staging; `false` where both are files.
    ///
    /// # Safety
    /// As for [`copy_plan`], for the bytes of this run.
    unsafe fn move_run(&self, tile: &Tile, bytes: u64) -> Result<bool, TransferError> {
        let length = usize::try_from(bytes).map_err(|_| TransferError::OutsidePlan {
            region: tile.source.region,
        })?;
        match (self.source.backing(), self.destination.backing()) {
            (Backing::Memory(_), Backing::File) => {
                let pointer = self.source.pointer(tile.source, bytes)?;
                // SAFETY: `pointer` reaches `bytes` bytes of a live region that nobody writes.
                let slice = unsafe { std::slice::from_raw_parts(pointer, length) };
                let (file, base) = self.destination.file(tile.destination.region)?;
                file.write_all_at(base + tile.destination.offset, slice)?;
                Ok(true)
            }
            (Backing::File, Backing::Memory(_)) => {
                let pointer = self.destination.pointer(tile.destination, bytes)?;
                // SAFETY: `pointer` reaches `bytes` bytes of a live region that is ours alone.
                let slice = unsafe { std::slice::from_raw_parts_mut(pointer, length) };
                let (file, base) = self.source.file(tile.source.region)?;
                file.read_exact_at(base + tile.source.offset, slice)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }
}
