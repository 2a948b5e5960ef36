//! Files as source or destination: the permutation happens in staging buffers.
//!
//! ```text
//! nest  ->  tiles, each dense in the file      sorted and merged: windows of the file
//! read the source's windows  ->  run the tiles' nests  ->  write the destination's windows
//! ```
//!
//! A destination window is exactly the bytes that tiles fill, so nothing else in the file is ever
//! rewritten. Long runs between memory and file skip the staging.

use kvtile_layout::{CopyPlan, Location, Loop, Nest, PlanClass};
use kvtile_memory::AlignedBuffer;

use super::{
    bound::{Backing, BoundLayout},
    copy::{LocalNest, Place, copy_nest, split},
};
use crate::error::TransferError;

/// Bytes that one round moves at most: enough to merge small pieces into large ones, and small
/// enough to stay in a shared cache.
const ROUND_BYTES: u64 = 4 << 20;

/// Runs from this length on go between memory and file without staging.
const DIRECT_RUN_BYTES: u64 = 256 << 10;

/// Source windows closer than this are read as one.
const READ_GAP_BYTES: u64 = 32 << 10;

/// Alignment of windows, for direct I/O.
const WINDOW_ALIGNMENT: u64 = 4096;

/// Executes all of `plan`, where at least one side is in files.
///
/// # Safety
/// As for [`super::copy::copy_plan`].
pub(super) unsafe fn copy_plan(
    plan: &CopyPlan,
    source: &BoundLayout,
    destination: &BoundLayout,
) -> Result<(), TransferError> {
    let mut round = Round::new(source, destination);
    for class in plan.classes() {
        let tilings: Vec<Tiling> = class
            .nests
            .iter()
            .map(|nest| Tiling::new(nest, &round))
            .collect();
        // SAFETY: passed on to the caller.
        unsafe { copy_class(plan, class, &tilings, &mut round) }?;
    }
    Ok(())
}

/// # Safety
/// As for [`copy_plan`].
unsafe fn copy_class(
    plan: &CopyPlan,
    class: &PlanClass,
    tilings: &[Tiling],
    round: &mut Round<'_>,
) -> Result<(), TransferError> {
    for pair in &class.pairs {
        for (index, (nest, tiling)) in class.nests.iter().zip(tilings).enumerate() {
            let start = plan.start(nest, pair);
            for (source, destination, extent) in tiling.tiles(start) {
                let tile = Tile {
                    tiling: index,
                    extent,
                    source,
                    destination,
                };
                if round.bytes + tiling.bytes(extent) > ROUND_BYTES {
                    // SAFETY: passed on to the caller.
                    unsafe { round.execute(tilings) }?;
                }
                round.bytes += tiling.bytes(extent);
                round.tiles.push(tile);
            }
        }
    }
    // SAFETY: passed on to the caller.
    unsafe { round.execute(tilings) }
}

/// How a nest falls into tiles: outer loops, one loop that tiles may split, and inner loops that
/// are dense in the file.
struct Tiling {
    outer: Vec<Loop>,
    split: Loop,
    chunk: u64,
    inner: Vec<Loop>,
    run_bytes: u64,
    /// Whether the split loop is the run itself, cut into pieces of `run_bytes` bytes.
    inside_run: bool,
    /// Bytes of one iteration of the split loop.
    step_bytes: u64,
}

impl Tiling {
    fn new(nest: &Nest, round: &Round<'_>) -> Tiling {
        let mut loops = nest.loops.clone();
        let mut inner: Vec<Loop> = Vec::new();
        let mut bytes = nest.run_bytes;
        if bytes > ROUND_BYTES {
            return Tiling::of_long_run(nest);
        }
        let mut split = None;
        while let Some(next) = round.next_dense(&loops, bytes) {
            let candidate = loops.remove(next);
            let chunk = (ROUND_BYTES / bytes).max(1);
            if chunk < candidate.extent {
                split = Some((candidate, chunk));
                break;
            }
            bytes *= candidate.extent;
            inner.insert(0, candidate);
        }
        let (split, chunk) = split.unwrap_or((single(), 1));
        Tiling {
            outer: loops,
            split,
            chunk,
            inner,
            run_bytes: nest.run_bytes,
            inside_run: false,
            step_bytes: bytes,
        }
    }

    /// A run longer than a round is a loop over its bytes.
    fn of_long_run(nest: &Nest) -> Tiling {
        let step = kvtile_layout::Step::bytes(1);
        Tiling {
            outer: nest.loops.clone(),
            split: Loop {
                extent: nest.run_bytes,
                source: step,
                destination: step,
                axes: nest.run_axes,
            },
            chunk: ROUND_BYTES,
            inner: Vec::new(),
            run_bytes: 1,
            inside_run: true,
            step_bytes: 1,
        }
    }

    /// Bytes of a tile of `extent` iterations.
    fn bytes(&self, extent: u64) -> u64 {
        extent * self.step_bytes
    }

    /// The loops and the run of a tile of `extent` iterations.
    fn nest(&self, extent: u64) -> Result<(Vec<Loop>, LocalNest), TransferError> {
        if self.inside_run {
            return split(&[], extent);
        }
        let mut loops = vec![Loop {
            extent,
            ..self.split
        }];
        loops.retain(|l| l.extent > 1);
        loops.extend(&self.inner);
        split(&loops, self.run_bytes)
    }

    /// Whether a tile is nothing but one run.
    fn is_run(&self, extent: u64) -> bool {
        self.inside_run || (self.inner.is_empty() && extent == 1)
    }

    /// Start on both sides, and extent, of every tile.
    fn tiles(
        &self,
        start: (Location, Location),
    ) -> impl Iterator<Item = (Location, Location, u64)> {
        let outer: u64 = self.outer.iter().map(|l| l.extent).product();
        (0..outer).flat_map(move |mut index| {
            let (mut source, mut destination) = start;
            for l in self.outer.iter().rev() {
                let i = index % l.extent;
                index /= l.extent;
                source = further(source, l.source, i);
                destination = further(destination, l.destination, i);
            }
            (0..self.split.extent.div_ceil(self.chunk)).map(move |part| {
                let first = part * self.chunk;
                (
                    further(source, self.split.source, first),
                    further(destination, self.split.destination, first),
                    self.chunk.min(self.split.extent - first),
                )
            })
        })
    }
}

/// A loop that runs once.
fn single() -> Loop {
    Loop {
        extent: 1,
        source: kvtile_layout::Step::default(),
        destination: kvtile_layout::Step::default(),
        axes: kvtile_layout::AxisSet::default(),
    }
}

fn further(from: Location, step: kvtile_layout::Step, count: u64) -> Location {
    Location {
        region: from.region + count * step.regions,
        offset: from.offset + count * step.bytes,
    }
}

/// A part of a nest that is dense in the file.
struct Tile {
    tiling: usize,
    extent: u64,
    source: Location,
    destination: Location,
}

/// A contiguous piece of a file and where it lies in the staging buffer.
#[derive(Clone, Copy)]
struct Window {
    region: u64,
    from: u64,
    to: u64,
    staged_at: usize,
}

/// The tiles that are moved together, and the staging buffers they share.
struct Round<'a> {
    source: &'a BoundLayout,
    destination: &'a BoundLayout,
    tiles: Vec<Tile>,
    bytes: u64,
    read_buffer: Option<AlignedBuffer>,
    write_buffer: Option<AlignedBuffer>,
}

impl<'a> Round<'a> {
    fn new(source: &'a BoundLayout, destination: &'a BoundLayout) -> Round<'a> {
        Round {
            source,
            destination,
            tiles: Vec::new(),
            bytes: 0,
            read_buffer: None,
            write_buffer: None,
        }
    }

    /// The loop that continues `bytes` dense bytes in every file of the transfer.
    fn next_dense(&self, loops: &[Loop], bytes: u64) -> Option<usize> {
        let step = kvtile_layout::Step::bytes(bytes);
        let is_file = |layout: &BoundLayout| matches!(layout.backing(), Backing::File);
        let read_all = !is_file(self.destination);
        loops.iter().position(|l| {
            let source = !is_file(self.source) || l.source == step;
            // Between two files the source may be read in any order from its window, as long as
            // the window stays small.
            let near = l.source.is_local() && l.source.bytes * l.extent <= ROUND_BYTES;
            let destination = !is_file(self.destination) || l.destination == step;
            destination && (source || (!read_all && near))
        })
    }

    /// # Safety
    /// As for [`copy_plan`], for the tiles of this round.
    unsafe fn execute(&mut self, tilings: &[Tiling]) -> Result<(), TransferError> {
        let tiles = std::mem::take(&mut self.tiles);
        self.bytes = 0;
        let mut staged = Vec::with_capacity(tiles.len());
        for tile in tiles {
            let Some(tiling) = tilings.get(tile.tiling) else {
                continue;
            };
            let (far, local) = tiling.nest(tile.extent)?;
            let long = tiling.bytes(tile.extent) >= DIRECT_RUN_BYTES;
            if long && tiling.is_run(tile.extent) {
                // SAFETY: passed on to the caller.
                let done = unsafe { self.move_run(&tile, tiling.bytes(tile.extent)) }?;
                if done {
                    continue;
                }
            }
            staged.push((tile, far, local));
        }
        if staged.is_empty() {
            return Ok(());
        }
        let reads = windows(self.source, &staged, READ_GAP_BYTES, |tile, local| {
            (tile.source, local.source_span())
        });
        let writes = windows(self.destination, &staged, 0, |tile, local| {
            (tile.destination, local.destination_span())
        });
        prepare(&mut self.read_buffer, &reads)?;
        prepare(&mut self.write_buffer, &writes)?;
        if let Some(buffer) = &mut self.read_buffer {
            read(self.source, &reads, buffer)?;
        }
        for (tile, far, local) in &staged {
            let from = place(self.source, tile.source, &reads, self.read_buffer.as_mut())?;
            let to = place(
                self.destination,
                tile.destination,
                &writes,
                self.write_buffer.as_mut(),
            )?;
            // SAFETY: regions are the caller's promise; the buffers are ours and two.
            unsafe { copy_nest(far, local, (from, to)) }?;
        }
        if let Some(buffer) = &self.write_buffer {
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

/// The windows of a side in files that cover the tiles, merged across gaps of up to `gap` bytes
/// and placed in a buffer at their file offset modulo [`WINDOW_ALIGNMENT`].
fn windows(
    layout: &BoundLayout,
    tiles: &[(Tile, Vec<Loop>, LocalNest)],
    gap: u64,
    span: impl Fn(&Tile, &LocalNest) -> (Location, u64),
) -> Vec<Window> {
    if matches!(layout.backing(), Backing::Memory(_)) {
        return Vec::new();
    }
    let mut spans: Vec<(u64, u64, u64)> = tiles
        .iter()
        .map(|(tile, _, local)| {
            let (start, bytes) = span(tile, local);
            (start.region, start.offset, start.offset + bytes)
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
        let phase = (base + window.from) % WINDOW_ALIGNMENT;
        cursor = cursor.next_multiple_of(WINDOW_ALIGNMENT) + phase;
        window.staged_at = usize::try_from(cursor).unwrap_or(usize::MAX);
        cursor += window.to - window.from;
    }
    windows
}

/// Makes `buffer` large enough for `windows`.
fn prepare(buffer: &mut Option<AlignedBuffer>, windows: &[Window]) -> Result<(), TransferError> {
    let Some(needed) = windows.iter().map(end).max() else {
        return Ok(());
    };
    if buffer.as_ref().is_none_or(|b| b.len() < needed) {
        let alignment = usize::try_from(WINDOW_ALIGNMENT).unwrap_or(1);
        *buffer = Some(AlignedBuffer::new(needed, alignment)?);
    }
    Ok(())
}

fn end(window: &Window) -> usize {
    usize::try_from(window.to - window.from)
        .ok()
        .and_then(|bytes| window.staged_at.checked_add(bytes))
        .unwrap_or(usize::MAX)
}

fn read(
    layout: &BoundLayout,
    windows: &[Window],
    buffer: &mut AlignedBuffer,
) -> Result<(), TransferError> {
    for window in windows {
        let (file, base) = layout.file(window.region)?;
        if let Some(part) = buffer.get_mut(window.staged_at..end(window)) {
            file.read_exact_at(base + window.from, part)?;
        }
    }
    Ok(())
}

fn write(
    layout: &BoundLayout,
    windows: &[Window],
    buffer: &AlignedBuffer,
) -> Result<(), TransferError> {
    for window in windows {
        let (file, base) = layout.file(window.region)?;
        if let Some(part) = buffer.get(window.staged_at..end(window)) {
            file.write_all_at(base + window.from, part)?;
        }
    }
    Ok(())
}

/// Where a side of a tile lies: in the regions themselves, or in the window that has it.
fn place<'b>(
    layout: &'b BoundLayout,
    location: Location,
    windows: &[Window],
    buffer: Option<&'b mut AlignedBuffer>,
) -> Result<Place<'b>, TransferError> {
    let (Backing::File, Some(buffer)) = (layout.backing(), buffer) else {
        return Ok(Place::Regions(layout, location));
    };
    let after =
        windows.partition_point(|w| (w.region, w.from) <= (location.region, location.offset));
    let window = after.checked_sub(1).and_then(|index| windows.get(index));
    let outside = TransferError::OutsidePlan {
        region: location.region,
    };
    let window = window.ok_or(outside.clone())?;
    let part = buffer
        .get_mut(window.staged_at..end(window))
        .ok_or(outside)?;
    Ok(Place::Buffer {
        bytes: part.len(),
        buffer: part.as_mut_ptr(),
        from: window.from,
        at: location.offset,
    })
}
