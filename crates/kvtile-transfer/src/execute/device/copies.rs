//! The runs of a plan as batches of copies.

use kvtile_device::{CopyBatch, Device, DeviceQueue, SourceOrder};
use kvtile_layout::{CopyPlan, Location};

use super::{super::bound::BoundLayout, sides::DeviceSides};
use crate::error::{CopyError, TransferError};

/// Most copies of a batch: enough that the call costs little for each, and few enough that its lists stay small.
pub(super) const BATCH_COPIES_MAX: usize = 8192;

/// Enqueues the copies of `plan`, run by run.
///
/// # Safety
/// As for [`Lane::carry`](super::super::lane::Lane::carry), until a mark behind the copies is passed or the queue is
/// idle, also after an error. For [`SourceOrder::Any`], no work of a device writes the source.
pub(super) unsafe fn enqueue(
    plan: &CopyPlan,
    sides: &DeviceSides<'_>,
    queue: &DeviceQueue,
    order: SourceOrder,
) -> Result<(), TransferError> {
    let count = usize::try_from(plan.runs()).unwrap_or(usize::MAX);
    let mut copies = RunCopies {
        sides: (sides.source, sides.destination),
        device: sides.engine.device(),
        queue,
        order,
        batch: CopyBatch::with_capacity(count.min(BATCH_COPIES_MAX)),
        from: Vec::new(),
        to: Vec::new(),
    };
    let mut end = Ok(());
    plan.for_each_run(|source, destination, bytes| {
        if end.is_ok() {
            // SAFETY: passed on to the caller.
            end = unsafe { copies.add((source, destination), bytes) };
        }
    });
    end?;
    // SAFETY: passed on to the caller.
    unsafe { copies.flush() }
}

/// The copies of runs, until they are enqueued.
struct RunCopies<'a> {
    sides: (&'a BoundLayout, &'a BoundLayout),
    device: &'a Device,
    queue: &'a DeviceQueue,
    order: SourceOrder,
    batch: CopyBatch,
    /// Addresses and bytes of the parts of a run.
    from: Vec<(u64, u64)>,
    to: Vec<(u64, u64)>,
}

impl RunCopies<'_> {
    /// # Safety
    /// As for [`enqueue`].
    unsafe fn add(
        &mut self,
        (source, destination): (Location, Location),
        bytes: u64,
    ) -> Result<(), TransferError> {
        self.from.clear();
        self.to.clear();
        let (from, to) = self.sides;
        from.device_parts(self.device, source, bytes, &mut self.from)?;
        to.device_parts(self.device, destination, bytes, &mut self.to)?;
        // Both lists cover the run.
        let (mut from, mut to) = (self.from.iter().copied(), self.to.iter().copied());
        let (mut source, mut destination) = (from.next(), to.next());
        while let (Some((start, have)), Some((target, room))) = (source, destination) {
            let piece = have.min(room);
            let size = usize::try_from(piece)
                .map_err(|_| TransferError::Copy(CopyError::OutsidePlan { region: 0 }))?;
            self.batch.push(target, start, size);
            let rest = |address: u64, left: u64| (left > 0).then_some((address + piece, left));
            source = rest(start, have - piece).or_else(|| from.next());
            destination = rest(target, room - piece).or_else(|| to.next());
        }
        if self.batch.len() >= BATCH_COPIES_MAX {
            // SAFETY: passed on to the caller.
            unsafe { self.flush() }?;
        }
        Ok(())
    }

    /// # Safety
    /// As for [`enqueue`].
    unsafe fn flush(&mut self) -> Result<(), TransferError> {
        if !self.batch.is_empty() {
            // SAFETY: the parts were checked against their regions, each lies in one allocation or registered piece, and
            // the plan writes each byte once; the caller guarantees the rest.
            unsafe { self.queue.copy_batch(&mut self.batch, self.order) }?;
            self.batch.clear();
        }
        Ok(())
    }
}
