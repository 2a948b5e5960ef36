//! Small runs through packed memory of the device: kernels permute there, and the copy engine moves few large pieces.
//!
//! ```text
//! from the device   regions ──kernel──► packed, in the order of the destination ──copies──► host
//! to the device     host ──copies──► packed, in the order of the source ──kernel──► regions
//! ```
//!
//! Packed memory belongs to a queue, whose order keeps one part from overwriting what the one before it still needs.

use kvtile_device::{CopyBatch, DeviceQueue, SourceOrder};
use kvtile_kernels::{MoveProgram, MoveSide, PackedSide, PlanPart};
use kvtile_layout::CopyPlan;

use super::{
    copies::BATCH_COPIES_MAX, engine::CopyDirection, kernels, sides::DeviceSides, waits::DeviceWait,
};
use crate::error::{CopyError, TransferError};

/// Most bytes of packed memory of a queue.
const PACKED_BYTES_MAX: u64 = 32 << 20;

/// Enqueues kernels and copies for `plan`; false, and then nothing is enqueued, where it cannot be packed: the host's side
/// has bytes between that the plan does not move, a block is larger than the packed memory, or the device has no kernels.
///
/// # Safety
/// As for [`DeviceSides::enqueue`]. For [`SourceOrder::Any`], no work of a device writes the source.
pub(super) unsafe fn enqueue(
    plan: &CopyPlan,
    sides: &DeviceSides<'_>,
    queue: &DeviceQueue,
    order: SourceOrder,
) -> Result<bool, TransferError> {
    let host = match sides.direction {
        CopyDirection::Up => PackedSide::of_source,
        CopyDirection::Down => PackedSide::of_destination,
        CopyDirection::Across => return Ok(false), // Kernels copy on a device.
    };
    let parts = PlanPart::of_at_most(plan, PACKED_BYTES_MAX);
    let packed: Option<Vec<(PlanPart<'_>, PackedSide)>> = parts.and_then(|parts| {
        let packed = parts.into_iter().map(|part| {
            let packed = host(&part)?;
            Some((part, packed))
        });
        packed.collect()
    });
    let (Some(packed), Some(kernels)) = (packed, sides.engine.kernels()?) else {
        return Ok(false); // The copy engine copies run by run.
    };
    let bytes = packed.iter().map(|(_, packed)| packed.bytes()).max();
    let bytes = usize::try_from(bytes.unwrap_or(0)).unwrap_or(usize::MAX);
    let blocks = sides.engine.device().description().multiprocessors;
    let mut memory = sides.way().memory.lock();
    let address = memory.packed.of_size(bytes, queue)?;
    let Some(programs) = programs(&packed, sides, address)? else {
        return Ok(false); // The tables are too long.
    };
    for ((_, packed), program) in packed.iter().zip(&programs) {
        let tables = (&mut memory.tables, blocks);
        if sides.direction == CopyDirection::Down {
            // SAFETY: passed on to the caller; the memory of the way is locked.
            unsafe { kernels.launch(program, sides, queue, tables) }?;
            let behind = DeviceWait::PackedBehindKernel.source_order();
            // SAFETY: passed on to the caller; the packed memory is written in the order of the queue.
            unsafe { copy(packed, sides, queue, (address, behind)) }?;
        } else {
            // SAFETY: as above, and the source is in memory of the host.
            unsafe { copy(packed, sides, queue, (address, order)) }?;
            // SAFETY: as above.
            unsafe { kernels.launch(program, sides, queue, tables) }?;
        }
    }
    Ok(true)
}

/// The programs of all parts, with the packed memory at `address`.
fn programs(
    packed: &[(PlanPart<'_>, PackedSide)],
    sides: &DeviceSides<'_>,
    address: u64,
) -> Result<Option<Vec<MoveProgram>>, TransferError> {
    let device = sides.engine.device();
    let on_device = match sides.direction {
        CopyDirection::Up => sides.destination,
        _ => sides.source,
    };
    let regions = on_device.move_regions(device)?.unwrap_or_default();
    let programs = packed.iter().map(|(part, packed)| {
        let regions = MoveSide::Regions(&regions);
        let packed = MoveSide::Packed(packed, address);
        match sides.direction {
            CopyDirection::Up => kernels::program(part, packed, regions),
            _ => kernels::program(part, regions, packed),
        }
    });
    programs.collect()
}

/// Enqueues the copies between the packed memory at `address` and the host.
///
/// # Safety
/// As for [`enqueue`].
unsafe fn copy(
    packed: &PackedSide,
    sides: &DeviceSides<'_>,
    queue: &DeviceQueue,
    (address, order): (u64, SourceOrder),
) -> Result<(), TransferError> {
    let device = sides.engine.device();
    let is_up = sides.direction == CopyDirection::Up;
    let host = if is_up {
        sides.source
    } else {
        sides.destination
    };
    let mut batch = CopyBatch::default();
    let mut parts = Vec::new();
    for piece in packed.pieces() {
        parts.clear();
        host.device_parts(device, piece.start, piece.bytes, &mut parts)?;
        let mut at = address + piece.at;
        for &(place, bytes) in &parts {
            let size = usize::try_from(bytes).map_err(|_| {
                TransferError::Copy(CopyError::OutsidePlan {
                    region: piece.start.region,
                })
            })?;
            match is_up {
                true => batch.push(at, place, size),
                false => batch.push(place, at, size),
            }
            at += bytes;
        }
        if batch.len() >= BATCH_COPIES_MAX {
            // SAFETY: the pieces were checked against their regions and lie in the packed memory, each byte once; the
            // caller guarantees the rest.
            unsafe { queue.copy_batch(&mut batch, order) }?;
            batch.clear();
        }
    }
    if !batch.is_empty() {
        // SAFETY: as above.
        unsafe { queue.copy_batch(&mut batch, order) }?;
    }
    Ok(())
}
