//! Rounds and runs in progress: which are read, permuted and written, and in which order.

use std::collections::VecDeque;

use kvtile_layout::Location;
use kvtile_memory::{FileMemory, TransferDivision};

use super::{
    super::bound::{BoundLayout, RegionBacking},
    limits::FileLimits,
    piece::{FilePiece, piece},
    queue::{CAPACITY, FileCompletion, FileOperation, IoDirection, MemorySpan, OperationMemory},
    round::{FileRound, RoundWindows},
    staging::{FileWorker, TakenSlot},
    tiling::{FileTile, TileNest},
    window::FileWindow,
};
use crate::error::{CopyError, TransferError};

use std::os::fd::AsRawFd;

/// Executes tiles. Dropping it waits for operations in flight and releases its staging memory.
pub(super) struct FilePipeline<'a, 'w> {
    source: &'a BoundLayout,
    destination: &'a BoundLayout,
    limits: &'a FileLimits,
    worker: &'w mut FileWorker,
    /// The round that collects tiles.
    next: FileRound<'a>,
    /// The rounds in progress, by staging slot.
    rounds: Vec<Option<StagedRound<'a>>>,
    /// A run that the next one may extend, and its regions.
    run: Option<(FilePiece<'a>, [u64; 2])>,
    /// Pieces that are not in flight yet, in order.
    pending: VecDeque<FilePiece<'a>>,
    /// Pieces in flight, by token.
    flying: Vec<Option<FilePiece<'a>>>,
    flying_bytes: usize,
}

/// A round with its staging memory.
struct StagedRound<'a> {
    windows: RoundWindows<'a>,
    staged: TakenSlot,
    /// Number of unfinished pieces.
    left: usize,
    is_written: bool,
}

impl<'a, 'w> FilePipeline<'a, 'w> {
    /// # Safety
    /// As for [`super::copy_plan`], for every tile that is pushed, until this is dropped.
    pub(super) unsafe fn new(
        source: &'a BoundLayout,
        destination: &'a BoundLayout,
        limits: &'a FileLimits,
        worker: &'w mut FileWorker,
    ) -> FilePipeline<'a, 'w> {
        FilePipeline {
            source,
            destination,
            limits,
            worker,
            next: FileRound::default(),
            rounds: Vec::new(),
            run: None,
            pending: VecDeque::new(),
            flying: Vec::new(),
            flying_bytes: 0,
        }
    }

    /// Accepts a tile. [`FilePipeline::finish`] returns after all tiles are copied.
    pub(super) fn push(&mut self, tile: FileTile, nest: &'a TileNest) -> Result<(), TransferError> {
        if nest.is_run && nest.bytes >= self.limits.direct_run_bytes {
            let regions = [tile.source.region, tile.destination.region];
            if let Some(run) = self.run_without_staging(&tile, nest.bytes)? {
                return self.push_run(run, regions);
            }
        }
        if !self.next.has_room(nest, self.source, self.limits) {
            self.start_round()?;
        }
        self.next.push(tile, nest);
        Ok(())
    }

    /// Completes all pushed tiles.
    pub(super) fn finish(&mut self) -> Result<(), TransferError> {
        self.start_run()?;
        self.start_round()?;
        while self.step()? {}
        match self.rounds.iter().position(Option::is_some) {
            None => Ok(()),
            Some(slot) => Err(missing("the end of round", slot)),
        }
    }

    /// The run of a tile as one piece, if it is between memory and a file and staging would not
    /// help.
    fn run_without_staging(
        &self,
        tile: &FileTile,
        bytes: u64,
    ) -> Result<Option<FilePiece<'a>>, TransferError> {
        let length = usize::try_from(bytes).map_err(|_| {
            TransferError::Copy(CopyError::OutsidePlan {
                region: tile.source.region,
            })
        })?;
        let (memory, file, direction) = match (self.source.backing(), self.destination.backing()) {
            (RegionBacking::Memory(_), RegionBacking::File) => (
                self.source.pointer(tile.source, bytes)?,
                file_at(self.destination, tile.destination)?,
                IoDirection::Write,
            ),
            (RegionBacking::File, RegionBacking::Memory(_)) => (
                self.destination.pointer(tile.destination, bytes)?,
                file_at(self.source, tile.source)?,
                IoDirection::Read,
            ),
            _ => return Ok(None),
        };
        let (file, offset) = file;
        if file.direct_fd().is_some() {
            let middle = match file.divide(offset, memory, length)? {
                TransferDivision::Direct { middle, .. } => middle,
                TransferDivision::Buffered => 0,
            };
            // In staging memory, its edges are merged with adjacent pieces, and all of it is
            // aligned.
            if middle == 0 || (middle < length && bytes < self.limits.round_bytes) {
                return Ok(None);
            }
        }
        Ok(Some(piece(file, direction, offset, (memory, length))))
    }

    /// Appends a run to the open one, or closes that and opens a new one.
    fn push_run(&mut self, run: FilePiece<'a>, regions: [u64; 2]) -> Result<(), TransferError> {
        if let Some((last, of)) = &mut self.run
            && *of == regions
            && last.bytes < self.limits.joined_run_bytes
            && last.offset + last.bytes as u64 == run.offset
            && last.address.wrapping_add(last.bytes) == run.address
        {
            last.bytes += run.bytes;
            return Ok(());
        }
        self.start_run()?;
        self.run = Some((run, regions));
        Ok(())
    }

    fn start_run(&mut self) -> Result<(), TransferError> {
        let Some((run, _)) = self.run.take() else {
            // No run is open.
            return Ok(());
        };
        run.cut(self.limits.piece_bytes, |piece| {
            self.pending.push_back(piece);
        })?;
        self.start_pieces()?;
        while self.pending.len() > 2 * CAPACITY && self.step()? {}
        Ok(())
    }

    /// Starts the collected round, when staging memory is free for it.
    fn start_round(&mut self) -> Result<(), TransferError> {
        if self.next.is_empty() {
            return Ok(());
        }
        let round = std::mem::take(&mut self.next);
        let windows = round.windows(self.source, self.destination, self.limits);
        let (bytes, max) = (windows.staged_bytes(), self.limits.staging_bytes);
        let staged = loop {
            if let Some(staged) = self.worker.staging.take(bytes, max)? {
                break staged;
            }
            // A slot in use belongs to a round with unfinished pieces, or one that just ended.
            if !self.step()? {
                let staged = self.worker.staging.take(bytes, max)?;
                break staged.ok_or_else(|| missing("staging of round", self.rounds.len()))?;
            }
        };
        let reads = windows.reads.clone();
        if self.rounds.len() <= staged.slot {
            self.rounds.resize_with(staged.slot + 1, || None);
        }
        let slot = staged.slot;
        let place = self.rounds.get_mut(slot);
        *place.ok_or_else(|| missing("the place of round", slot))? = Some(StagedRound {
            windows,
            staged,
            left: 0,
            is_written: false,
        });
        if reads.is_empty() {
            self.permute(slot)?;
        } else {
            self.queue_windows(slot, &reads, IoDirection::Read)?;
        }
        self.start_pieces()
    }

    /// Queues the reads or writes of the round in `slot`.
    fn queue_windows(
        &mut self,
        slot: usize,
        windows: &[FileWindow],
        direction: IoDirection,
    ) -> Result<(), TransferError> {
        let round = round_in(&mut self.rounds, slot)?;
        let layout = match direction {
            IoDirection::Read => self.source,
            IoDirection::Write => self.destination,
        };
        for window in windows {
            let (file, base) = layout.file(window.region)?;
            let address = round.staged.start.wrapping_add(window.staged_at);
            let whole = FilePiece {
                round: Some(slot),
                ..piece(file, direction, base + window.from, (address, window.len()))
            };
            whole.cut(self.limits.piece_bytes, |piece| {
                round.left += 1;
                self.pending.push_back(piece);
            })?;
        }
        Ok(())
    }

    /// All reads of the round in `slot` have completed: permutes it and queues its writes.
    fn permute(&mut self, slot: usize) -> Result<(), TransferError> {
        let round = round_in(&mut self.rounds, slot)?;
        round.is_written = true;
        let (source, destination) = (self.source, self.destination);
        // SAFETY: the slot has the requested bytes, belongs to this round alone, and its reads are
        // complete; the caller of `new` guarantees the rest.
        unsafe {
            round
                .windows
                .permute(source, destination, round.staged.start)
        }?;
        let writes = std::mem::take(&mut round.windows.writes);
        if writes.is_empty() {
            return self.end_round(slot);
        }
        self.queue_windows(slot, &writes, IoDirection::Write)
    }

    fn end_round(&mut self, slot: usize) -> Result<(), TransferError> {
        let round = self.rounds.get_mut(slot).and_then(Option::take);
        round.ok_or_else(|| missing("round", slot))?;
        self.worker.staging.give_back(slot);
        Ok(())
    }

    /// Executes pieces that need no wait, and submits others up to the limits.
    fn start_pieces(&mut self) -> Result<(), TransferError> {
        while let Some(piece) = self.pending.front().copied() {
            if !piece.is_for_queue {
                self.pending.pop_front();
                // SAFETY: as in `submit`; the piece is not in flight.
                match unsafe { piece.start() }? {
                    None => self.arrived(piece)?,
                    Some(rest) => self.put_back(rest)?,
                }
                continue;
            }
            let bytes = self.flying_bytes.saturating_add(piece.bytes);
            let is_lone = self.flying_bytes == 0 && self.pending.len() == 1;
            let is_full = self.flying_bytes > 0
                && (bytes > self.limits.in_flight_bytes || !self.worker.queue().has_room());
            // A single piece is left to `step`, which needs no queue for it.
            if is_lone || is_full {
                break;
            }
            self.pending.pop_front();
            self.submit(piece);
        }
        if let Some(queue) = self.worker.queue_if_made() {
            queue.flush();
        }
        Ok(())
    }

    /// The bytes that were not in the page cache are split into pieces and read first.
    fn put_back(&mut self, rest: FilePiece<'a>) -> Result<(), TransferError> {
        let mut pieces = Vec::new();
        rest.chop(self.limits.piece_bytes.max(1), &mut |piece| {
            pieces.push(piece);
        });
        if let Some(slot) = rest.round {
            let round = round_in(&mut self.rounds, slot)?;
            // The original piece is counted already.
            round.left += pieces.len().saturating_sub(1);
        }
        for piece in pieces.into_iter().rev() {
            self.pending.push_front(piece);
        }
        Ok(())
    }

    /// Submits a piece. The queue has room.
    fn submit(&mut self, piece: FilePiece<'a>) {
        let free = self.flying.iter().position(Option::is_none);
        let token = free.unwrap_or(self.flying.len());
        match self.flying.get_mut(token) {
            Some(place) => *place = Some(piece),
            None => self.flying.push(Some(piece)),
        }
        self.flying_bytes = self.flying_bytes.saturating_add(piece.bytes);
        // SAFETY: the descriptor belongs to a file of a bound layout, which lives as long as
        // `self`. The bytes are those of a region, which the caller of `new` guarantees until
        // `self` is dropped, or of a slot of staging memory. A slot is released, and its memory
        // freed, only when its round has no piece in flight. Dropping `self` drains the queue
        // first.
        unsafe {
            self.worker.queue().submit(FileOperation {
                direction: piece.direction,
                fd: piece.fd.as_raw_fd(),
                offset: piece.offset,
                memory: OperationMemory::One(MemorySpan {
                    address: piece.address,
                    bytes: piece.bytes,
                }),
                token: token as u64,
            });
        }
    }

    /// Waits for one piece and continues its round; `false` if there is none.
    fn step(&mut self) -> Result<bool, TransferError> {
        self.start_pieces()?;
        if self.flying_bytes == 0 {
            let Some(piece) = self.pending.pop_front() else {
                return Ok(false);
            };
            // SAFETY: as in `submit`; the piece is not in flight.
            unsafe { piece.finish(0) }?;
            self.arrived(piece)?;
            return Ok(true);
        }
        let completion = self.worker.queue().next();
        // Bytes are in flight, so the queue owes a completion.
        let flying = self.flying_bytes as u64;
        let completion = completion.ok_or(TransferError::Copy(CopyError::Missing {
            what: "the completion of bytes in flight:",
            index: flying,
        }))?;
        let FileCompletion { token, result } = completion;
        let place = usize::try_from(token).ok();
        let place = place.and_then(|token| self.flying.get_mut(token));
        let piece = place.and_then(Option::take);
        let piece = piece.ok_or(TransferError::Copy(CopyError::Missing {
            what: "the piece of completion",
            index: token,
        }))?;
        self.flying_bytes = self.flying_bytes.saturating_sub(piece.bytes);
        let done = result.unwrap_or(0);
        if done < piece.bytes {
            // A short, interrupted or refused transfer. The blocking call knows which errors are
            // retryable.
            // SAFETY: as in `submit`; its completion was just taken.
            unsafe { piece.finish(done) }?;
        }
        self.arrived(piece)?;
        Ok(true)
    }

    /// Handles the completion of a piece.
    fn arrived(&mut self, piece: FilePiece<'a>) -> Result<(), TransferError> {
        let Some(slot) = piece.round else {
            // A run without staging has no round.
            return Ok(());
        };
        let round = round_in(&mut self.rounds, slot)?;
        let left = round.left.checked_sub(1);
        round.left = left.ok_or_else(|| missing("a piece to wait for in round", slot))?;
        match (round.left, round.is_written) {
            (0, false) => self.permute(slot),
            (0, true) => self.end_round(slot),
            _ => Ok(()),
        }
    }
}

impl Drop for FilePipeline<'_, '_> {
    fn drop(&mut self) {
        if let Some(queue) = self.worker.queue_if_made() {
            queue.drain();
        }
        self.worker.staging.give_back_all();
    }
}

/// The round in `slot`. A missing round is an error: to skip it would lose its bytes and report
/// success. It does not panic, since reads and writes may be in flight; dropping the pipeline waits
/// for them.
fn round_in<'r, 'a>(
    rounds: &'r mut [Option<StagedRound<'a>>],
    slot: usize,
) -> Result<&'r mut StagedRound<'a>, TransferError> {
    let round = rounds.get_mut(slot).and_then(Option::as_mut);
    round.ok_or_else(|| missing("round", slot))
}

fn missing(what: &'static str, index: usize) -> TransferError {
    TransferError::Copy(CopyError::Missing {
        what,
        index: index as u64,
    })
}

/// The file at `location`, and the offset in it.
fn file_at(layout: &BoundLayout, location: Location) -> Result<(&FileMemory, u64), TransferError> {
    let (file, base) = layout.file(location.region)?;
    Ok((file, base + location.offset))
}
