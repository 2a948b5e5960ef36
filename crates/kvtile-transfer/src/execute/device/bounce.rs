//! Files, and memory that is not pinned, through slots of pinned staging memory.
//!
//! ```text
//! up     runs ──CPU or read──► slot ──batch──► device             the mark of a slot lets it be used again
//! down   device ──batch──► slot, wait, slot ──CPU or write──► runs
//! ```
//!
//! For memory it is meant for single blocks (digests, comparisons, patterns) and for callers that have no pinned memory:
//! each byte is copied twice. Runs that follow each other in a file are one read or write.

use kvtile_device::{CopyBatch, DeviceQueue, SourceOrder};
use kvtile_layout::{CopyPlan, Location, broken};

use super::{
    super::bound::{BoundLayout, RegionBacking},
    copies::BATCH_COPIES_MAX,
    engine::CopyDirection,
    sides::DeviceSides,
    staging::{PinnedSlot, SLOT_BYTES_MAX},
    waits::DeviceWait,
};
use crate::error::{CopyError, TransferError};

/// Copies `plan` between pageable memory and a device: on return, copies to the device are enqueued, and copies from it
/// have arrived.
///
/// # Safety
/// As for [`DeviceSides::enqueue`].
pub(super) unsafe fn copy_plan(
    plan: &CopyPlan,
    sides: &DeviceSides<'_>,
    queue: &DeviceQueue,
) -> Result<(), TransferError> {
    let mut bounced = BouncedRuns {
        sides,
        queue,
        slot: None,
        used: 0,
        left: plan.bytes(),
        batch: CopyBatch::default(),
        host: Vec::new(),
        pieces: Vec::new(),
    };
    let mut end = Ok(());
    plan.for_each_run(|source, destination, bytes| {
        if end.is_ok() {
            // SAFETY: passed on to the caller.
            end = unsafe { bounced.add(source, destination, bytes) };
        }
    });
    end?;
    // SAFETY: passed on to the caller.
    unsafe { bounced.flush() }
}

/// A piece of memory of this process with its place in the slot.
struct HostPiece {
    address: *mut u8,
    staged_at: usize,
    bytes: usize,
}

/// The runs that share a slot.
struct BouncedRuns<'a> {
    sides: &'a DeviceSides<'a>,
    queue: &'a DeviceQueue,
    slot: Option<PinnedSlot<'a>>,
    /// Bytes of the slot that runs have taken.
    used: usize,
    /// Bytes of the plan that have no place in a slot yet.
    left: u64,
    batch: CopyBatch,
    /// For copies from the device to memory.
    host: Vec<HostPiece>,
    /// The pieces of files.
    pieces: Vec<FilePart>,
}

/// Bytes of a file with their place in the slot.
struct FilePart {
    region: u64,
    offset: u64,
    staged_at: usize,
    bytes: usize,
}

/// Whether a side is in files.
fn is_file(layout: &BoundLayout) -> bool {
    matches!(layout.backing(), RegionBacking::File)
}

impl<'a> BouncedRuns<'a> {
    /// # Safety
    /// As for [`DeviceSides::enqueue`].
    unsafe fn add(
        &mut self,
        mut source: Location,
        mut destination: Location,
        bytes: u64,
    ) -> Result<(), TransferError> {
        let mut left = bytes;
        while left > 0 {
            let room = self.room()?;
            let piece = usize::try_from(left).map_or(room, |left| left.min(room));
            // SAFETY: passed on to the caller.
            unsafe { self.add_piece((source, destination), piece) }?;
            let step = piece as u64;
            source.offset += step;
            destination.offset += step;
            left -= step;
            self.left = self.left.saturating_sub(step);
            if self.room()? == 0 || self.batch.len() >= BATCH_COPIES_MAX {
                // SAFETY: passed on to the caller.
                unsafe { self.flush() }?;
            }
        }
        Ok(())
    }

    /// The side that is not on a device.
    fn host_side(&self) -> &'a BoundLayout {
        match self.sides.direction {
            CopyDirection::Up => self.sides.source,
            _ => self.sides.destination,
        }
    }

    /// Adds a piece of a file, or extends the last one.
    fn add_file_part(&mut self, at: Location, bytes: usize) {
        if let Some(last) = self.pieces.last_mut()
            && last.region == at.region
            && last.offset + last.bytes as u64 == at.offset
            && last.staged_at + last.bytes == self.used
        {
            last.bytes += bytes;
            return;
        }
        self.pieces.push(FilePart {
            region: at.region,
            offset: at.offset,
            staged_at: self.used,
            bytes,
        });
    }

    /// Bytes that the slot has left; takes a slot if there is none.
    fn room(&mut self) -> Result<usize, TransferError> {
        if self.slot.is_none() {
            let left = usize::try_from(self.left).unwrap_or(usize::MAX);
            let engine = self.sides.engine;
            let staging = match is_file(self.host_side()) {
                true => &engine.file_staging,
                false => &engine.staging,
            };
            let slot = staging.take(left.min(SLOT_BYTES_MAX))?;
            self.slot = Some(slot);
            self.used = 0;
        }
        let size = self.slot.as_ref().map_or(0, PinnedSlot::size);
        Ok(size - self.used)
    }

    /// # Safety
    /// As for [`DeviceSides::enqueue`].
    unsafe fn add_piece(
        &mut self,
        (source, destination): (Location, Location),
        piece: usize,
    ) -> Result<(), TransferError> {
        let Some(slot) = &self.slot else {
            return Err(missing());
        };
        let address = slot.address() + self.used as u64;
        let bytes = piece as u64;
        let with_file = is_file(self.host_side());
        if self.sides.direction == CopyDirection::Up {
            let to = self.sides.destination.address(destination, bytes)?;
            if with_file {
                self.add_file_part(source, piece);
                self.batch.push(to, address, piece);
                self.used += piece;
                return Ok(());
            }
            let from = self.sides.source.pointer(source, bytes)?;
            let staged = slot.place(self.used, piece, true);
            // SAFETY: `from` reaches the bytes of the source, which nothing writes; the slot has room, no work uses it, and it is
            // memory of its own.
            unsafe { staged.copy_from_nonoverlapping(from, piece) };
            self.batch.push(to, address, piece);
        } else {
            let from = self.sides.source.address(source, bytes)?;
            self.batch.push(address, from, piece);
            if with_file {
                self.add_file_part(destination, piece);
            } else {
                self.host.push(HostPiece {
                    address: self.sides.destination.pointer(destination, bytes)?,
                    staged_at: self.used,
                    bytes: piece,
                });
            }
        }
        self.used += piece;
        Ok(())
    }

    /// Enqueues what the slot has, and for copies from the device waits for it.
    ///
    /// # Safety
    /// As for [`DeviceSides::enqueue`].
    unsafe fn flush(&mut self) -> Result<(), TransferError> {
        let Some(mut slot) = self.slot.take() else {
            // No run was added since the last slot.
            return Ok(());
        };
        let order = match self.sides.direction {
            // The slot was written by the CPU.
            CopyDirection::Up => SourceOrder::Any,
            _ => SourceOrder::Queue,
        };
        let is_up = self.sides.direction == CopyDirection::Up;
        if is_up {
            for part in self.pieces.drain(..) {
                let (file, base) = self.sides.source.file(part.region)?;
                let place = slot.piece_mut(part.staged_at, part.bytes);
                file.read_exact_at(base + part.offset, place)?;
            }
        }
        slot.lend(self.queue);
        // SAFETY: the pieces were checked against their regions and the slot, which is lent to the queue; the caller
        // guarantees the rest.
        unsafe { self.queue.copy_batch(&mut self.batch, order) }?;
        self.batch.clear();
        if is_up {
            return slot.mark();
        }
        slot.wait(DeviceWait::SlotBounced)?;
        for part in self.pieces.drain(..) {
            let (file, base) = self.sides.destination.file(part.region)?;
            let end = part.staged_at + part.bytes;
            let Some(bytes) = slot.bytes(end).get(part.staged_at..) else {
                broken(format_args!(
                    "a piece from {} to {end} of a slot",
                    part.staged_at
                ))
            };
            file.write_all_at(base + part.offset, bytes)?;
        }
        for piece in self.host.drain(..) {
            let staged = slot.place(piece.staged_at, piece.bytes, false);
            // SAFETY: `address` reaches the bytes of the destination, which the caller keeps from all other access; the
            // slot has these bytes, and no work uses it.
            unsafe { piece.address.copy_from_nonoverlapping(staged, piece.bytes) };
        }
        Ok(())
    }
}

fn missing() -> TransferError {
    TransferError::Copy(CopyError::Missing {
        what: "the staging slot of piece",
        index: 0,
    })
}
