//! A device with two queues and the kernels, behind safe calls: every range is checked before it reaches the driver.
//!
//! The crate's unsafe code is in this room alone. The rig knows buffers, copies and programs; it measures nothing.
//!
//! ```text
//! RigBuffer ──PreparedCopies::new──► ranges checked ──Rig::copy_each, copy_batch──► queue
//!     └─────Rig::program(plan)─────► lowered, checked ──Rig::launch──────────────► queue
//! Rig::read, Rig::write: host bytes, after all queues are idle
//! ```

mod buffer;
mod copies;
mod program;

use std::{
    cell::RefCell,
    sync::atomic::{AtomicU64, Ordering},
};

use kvtile_device::{Device, DeviceKernel, DeviceMark, DeviceQueue, KernelModule, SourceOrder};
use kvtile_kernels::{MOVE_PTX, MoveKernel};

pub(crate) use self::{
    buffer::{BufferPlace, RigBuffer},
    copies::{CopyRange, PreparedCopies},
    program::{PreparedProgram, RigRegion},
};
use crate::error::GpuCheckError;

/// One of the two queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RigQueueName {
    First,
    Second,
}

/// The device under test.
///
/// All buffers that a rig works on are its own, and it stays on one thread, so it knows every access that may be in
/// progress: it holds the buffers of enqueued work until the queue is idle, and orders conflicting work of its queues.
pub(crate) struct Rig {
    number: u64,
    device: Device,
    first: RigQueue,
    second: RigQueue,
    kernels: Vec<(MoveKernel, DeviceKernel)>,
}

/// A queue, and what its enqueued work uses.
struct RigQueue {
    queue: DeviceQueue,
    pending: RefCell<Vec<PendingUse>>,
    module: KernelModule,
}

#[derive(Clone)]
struct PendingUse {
    buffer: RigBuffer,
    is_write: bool,
}

impl PendingUse {
    fn conflicts(&self, buffer: &RigBuffer, is_write: bool) -> bool {
        self.buffer.is(buffer) && (self.is_write || is_write)
    }
}

impl Rig {
    /// Makes the queues and compiles the kernels.
    pub(crate) fn open(device: &Device) -> Result<Rig, GpuCheckError> {
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        let module = device.load_module(MOVE_PTX)?;
        let kernel = |kernel: MoveKernel| Ok((kernel, module.kernel(kernel.name())?));
        let kernels = MoveKernel::ALL.into_iter().map(kernel);
        let kernels = kernels.collect::<Result<_, GpuCheckError>>()?;
        let queue = || -> Result<RigQueue, GpuCheckError> {
            Ok(RigQueue {
                queue: device.queue()?,
                pending: RefCell::default(),
                module: module.clone(),
            })
        };
        Ok(Rig {
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
            device: device.clone(),
            first: queue()?,
            second: queue()?,
            kernels,
        })
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    /// The kernel behind a name of the lowering.
    pub(crate) fn kernel(&self, wanted: MoveKernel) -> Result<&DeviceKernel, GpuCheckError> {
        let found = self.kernels.iter().find(|(kernel, _)| *kernel == wanted);
        let (_, kernel) = found.ok_or(GpuCheckError::NoKernel {
            kernel: wanted.name(),
        })?;
        Ok(kernel)
    }

    fn queue(&self, name: RigQueueName) -> &RigQueue {
        match name {
            RigQueueName::First => &self.first,
            RigQueueName::Second => &self.second,
        }
    }

    fn other(&self, name: RigQueueName) -> &RigQueue {
        match name {
            RigQueueName::First => &self.second,
            RigQueueName::Second => &self.first,
        }
    }

    /// Waits until all work of a queue has ended.
    pub(crate) fn synchronize(&self, name: RigQueueName) -> Result<(), GpuCheckError> {
        self.queue(name).synchronize()
    }

    /// Waits until all work has ended.
    pub(crate) fn idle(&self) -> Result<(), GpuCheckError> {
        self.first.synchronize()?;
        self.second.synchronize()
    }

    /// Records a mark behind the work of a queue.
    pub(crate) fn record(&self, name: RigQueueName) -> Result<DeviceMark, GpuCheckError> {
        Ok(self.queue(name).queue.record()?)
    }

    /// Notes the buffers that work on a queue is about to access, and orders it behind conflicting work of the other
    /// queue.
    fn begin(&self, name: RigQueueName, uses: &[(&RigBuffer, bool)]) -> Result<(), GpuCheckError> {
        for (buffer, is_write) in uses {
            if !buffer.is_of(self.number) {
                return Err(GpuCheckError::ForeignBuffer);
            }
            let other = self.other(name);
            let conflicts = |used: &PendingUse| used.conflicts(buffer, *is_write);
            if other.pending.borrow().iter().any(conflicts) {
                other.synchronize()?;
            }
            let mut pending = self.queue(name).pending.borrow_mut();
            let same = |used: &PendingUse| used.buffer.is(buffer) && used.is_write == *is_write;
            if !pending.iter().any(same) {
                pending.push(PendingUse {
                    buffer: (*buffer).clone(),
                    is_write: *is_write,
                });
            }
        }
        // All uses are noted.
        Ok(())
    }

    /// Enqueues each copy with a call of its own.
    pub(crate) fn copy_each(
        &self,
        name: RigQueueName,
        copies: &PreparedCopies,
    ) -> Result<(), GpuCheckError> {
        self.begin(name, &[(copies.to(), true), (copies.from(), false)])?;
        let queue = &self.queue(name).queue;
        for (destination, source, bytes) in copies.batch().copies() {
            // SAFETY: the ranges lie in two different buffers of this rig, which allocated them for devices. `begin`
            // holds both until the queue is idle and has ordered conflicting work of the other queue; the host accesses
            // them only when both queues are idle.
            unsafe { queue.copy(destination, source, bytes) }?;
        }
        // All copies are enqueued.
        Ok(())
    }

    /// Enqueues all copies in one call, where the driver has one.
    pub(crate) fn copy_batch(
        &self,
        name: RigQueueName,
        copies: &mut PreparedCopies,
        order: SourceOrder,
    ) -> Result<(), GpuCheckError> {
        let from = copies.from();
        if order == SourceOrder::Any {
            // Such a batch may read its sources before the work that was enqueued in front of it.
            let writes = |used: &PendingUse| used.conflicts(from, false);
            if self.queue(name).pending.borrow().iter().any(writes) {
                self.synchronize(name)?;
            }
        }
        self.begin(name, &[(copies.to(), true), (from, false)])?;
        let queue = &self.queue(name).queue;
        // SAFETY: as in `copy_each`; the destinations are disjoint, and the sources are in another buffer, which no
        // enqueued work writes if the order is `Any`.
        let _route = unsafe { queue.copy_batch(copies.batch_mut(), order) }?;
        Ok(())
    }
}

impl RigQueue {
    fn synchronize(&self) -> Result<(), GpuCheckError> {
        self.queue.synchronize()?;
        self.pending.borrow_mut().clear();
        Ok(())
    }
}

impl Drop for RigQueue {
    fn drop(&mut self) {
        // A driver that neither ends the work nor loses the device may still use the buffers and the kernels: they stay.
        if self.synchronize().is_err() && self.queue.device().lost().is_none() {
            std::mem::forget(std::mem::take(self.pending.get_mut()));
            std::mem::forget(self.module.clone());
        }
    }
}
