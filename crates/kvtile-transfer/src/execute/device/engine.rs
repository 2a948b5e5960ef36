//! What copies from and to one device.

use std::sync::{Arc, Weak};

use kvtile_device::{Device, DeviceQueue};
use parking_lot::Mutex;

use super::{
    kernels::{MoveKernels, WayMemory},
    reaper::Reaper,
    staging::{PinnedStaging, SLOT_BYTES_MAX},
    waits::DeviceWait,
};
use crate::error::TransferError;

/// The direction of copies. Each has a queue of its own, so that they overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CopyDirection {
    /// From memory of this process to a device.
    Up,
    /// From a device to memory of this process.
    Down,
    /// Between places on devices.
    Across,
}

/// The queue of a direction, and the thread that waits for its marks.
#[derive(Debug, Default)]
pub(super) struct DeviceWay {
    /// Made when it is needed first.
    queue: Mutex<Option<DeviceQueue>>,
    /// Memory of the device that work of the queue uses in its order. It is locked while that work is enqueued.
    pub(super) memory: Mutex<WayMemory>,
    pub(super) reaper: Reaper,
}

/// The queues, reapers and staging memory for one device. All layouts over memory of the device share it, and it ends
/// with the last one.
#[derive(Debug)]
pub(crate) struct DeviceEngine {
    device: Device,
    up: DeviceWay,
    down: DeviceWay,
    across: DeviceWay,
    pub(super) staging: PinnedStaging,
    /// Slots of their own, as files are slow.
    pub(super) file_staging: PinnedStaging,
    /// The kernels, once they are known: `None` inside where the device takes none.
    kernels: Mutex<Option<Option<Arc<MoveKernels>>>>,
}

/// The engines of the process.
static ENGINES: Mutex<Vec<Weak<DeviceEngine>>> = Mutex::new(Vec::new());

impl DeviceEngine {
    /// The engine of `device`. This calls no function of the driver.
    pub(crate) fn of(device: &Device) -> Arc<DeviceEngine> {
        let mut engines = ENGINES.lock();
        engines.retain(|engine| engine.strong_count() > 0);
        let mut alive = engines.iter().filter_map(Weak::upgrade);
        if let Some(engine) = alive.find(|engine| engine.device.is_same(device)) {
            return engine;
        }
        let engine = Arc::new(DeviceEngine {
            device: device.clone(),
            up: DeviceWay::default(),
            down: DeviceWay::default(),
            across: DeviceWay::default(),
            staging: PinnedStaging::new(device),
            file_staging: PinnedStaging::new(device),
            kernels: Mutex::new(None),
        });
        engines.push(Arc::downgrade(&engine));
        engine
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    pub(super) fn way(&self, direction: CopyDirection) -> &DeviceWay {
        match direction {
            CopyDirection::Up => &self.up,
            CopyDirection::Down => &self.down,
            CopyDirection::Across => &self.across,
        }
    }

    /// The queue of `direction`.
    pub(super) fn queue(&self, direction: CopyDirection) -> Result<DeviceQueue, TransferError> {
        let mut queue = self.way(direction).queue.lock();
        if let Some(queue) = &*queue {
            return Ok(queue.clone());
        }
        Ok(queue.insert(self.device.queue()?).clone())
    }

    /// The kernels, compiled when they are needed first; `None` where the driver or the device takes none of them.
    pub(super) fn kernels(&self) -> Result<Option<Arc<MoveKernels>>, TransferError> {
        let mut known = self.kernels.lock();
        if let Some(kernels) = &*known {
            return Ok(kernels.clone());
        }
        let kernels = MoveKernels::load(&self.device)?.map(Arc::new);
        Ok(known.insert(kernels).clone())
    }

    /// Passes `bytes` bytes of the device at `address` to `take`, piece by piece.
    ///
    /// # Safety
    /// For the whole call the bytes stay allocated, and nothing writes them.
    pub(crate) unsafe fn read(
        &self,
        address: u64,
        bytes: u64,
        take: &mut dyn FnMut(&[u8]),
    ) -> Result<(), TransferError> {
        let queue = self.queue(CopyDirection::Down)?;
        for start in (0..bytes).step_by(SLOT_BYTES_MAX) {
            let left = usize::try_from(bytes - start).unwrap_or(usize::MAX);
            let piece = left.min(SLOT_BYTES_MAX);
            let mut slot = self.staging.take(piece)?;
            slot.lend(&queue);
            // SAFETY: the slot has these bytes and stays until its queue has passed the copy; the caller guarantees the
            // source.
            unsafe { queue.copy(slot.address(), address + start, piece) }?;
            slot.wait(DeviceWait::SlotRead)?;
            take(slot.bytes(piece));
        }
        Ok(())
    }
}

/// Waits as `wait` until all work of `queue` has ended, or its device is lost, after which nothing touches memory any more. An error of the
/// driver alone is no proof of that, so the wait goes on.
pub(super) fn quiesce(wait: DeviceWait, queue: &DeviceQueue) {
    use kvtile_device::DeviceError::{Forked, Lost};
    use std::{thread, time::Duration};
    loop {
        match wait.until_idle(queue) {
            // The work of a forked child's parent is the parent's.
            Ok(()) | Err(Lost { .. } | Forked { .. }) => return,
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// Waits for the queue of a transfer on drop, unless it was disarmed.
#[derive(Debug)]
pub(super) struct QuiesceOnDrop<'q>(pub(super) Option<&'q DeviceQueue>);

impl Drop for QuiesceOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(queue) = self.0 {
            quiesce(DeviceWait::CarryFailed, queue);
        }
    }
}
