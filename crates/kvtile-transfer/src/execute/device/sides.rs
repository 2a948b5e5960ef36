//! Both ends of a transfer with a device.

use std::sync::Arc;

use kvtile_device::{DeviceMark, DeviceQueue, SourceOrder};
use kvtile_layout::CopyPlan;

use super::{
    super::{
        bound::{BoundLayout, RegionBacking},
        lane::LaneSides,
    },
    bounce, copies,
    engine::{CopyDirection, DeviceEngine, DeviceWay},
    kernels,
    route::{self, DeviceRoute},
    staged,
    waits::DeviceWait,
};
use crate::error::{BindError, TransferError};

/// A source and a destination of which at least one is memory of a device.
#[derive(Debug)]
pub(super) struct DeviceSides<'a> {
    pub(super) source: &'a BoundLayout,
    pub(super) destination: &'a BoundLayout,
    pub(super) engine: &'a Arc<DeviceEngine>,
    pub(super) direction: CopyDirection,
    /// Whether devices reach both sides: no side is in a file or in memory that is not pinned.
    is_pinned: bool,
}

impl<'a> DeviceSides<'a> {
    pub(super) fn of(
        (source, destination): LaneSides<'a>,
    ) -> Result<DeviceSides<'a>, TransferError> {
        let (engine, direction, host) = match (source.backing(), destination.backing()) {
            (RegionBacking::Device(engine, _), RegionBacking::Device(..)) => {
                (engine, CopyDirection::Across, None)
            }
            (RegionBacking::Device(engine, _), RegionBacking::Memory(_)) => {
                (engine, CopyDirection::Down, Some(destination))
            }
            (RegionBacking::Memory(_), RegionBacking::Device(engine, _)) => {
                (engine, CopyDirection::Up, Some(source))
            }
            (RegionBacking::Device(engine, _), RegionBacking::File) => {
                return Ok(DeviceSides::with_file(
                    (source, destination),
                    engine,
                    CopyDirection::Down,
                ));
            }
            (RegionBacking::File, RegionBacking::Device(engine, _)) => {
                return Ok(DeviceSides::with_file(
                    (source, destination),
                    engine,
                    CopyDirection::Up,
                ));
            }
            _ => {
                let kind = destination.kind();
                return Err(TransferError::Bind(BindError::NotReachable { kind }));
            }
        };
        let reached = host.map(|host| host.reached(engine.device())).transpose()?;
        Ok(DeviceSides {
            source,
            destination,
            engine,
            direction,
            is_pinned: reached.is_none_or(super::ReachedMemory::is_pinned),
        })
    }

    fn with_file(
        (source, destination): LaneSides<'a>,
        engine: &'a Arc<DeviceEngine>,
        direction: CopyDirection,
    ) -> DeviceSides<'a> {
        DeviceSides {
            source,
            destination,
            engine,
            direction,
            is_pinned: false,
        }
    }

    pub(super) fn way(&self) -> &DeviceWay {
        self.engine.way(self.direction)
    }

    pub(super) fn queue(&self) -> Result<DeviceQueue, TransferError> {
        self.engine.queue(self.direction)
    }

    /// Whether the last step is a copy by the CPU or a write to a file, so that no mark is behind the transfer.
    pub(super) fn ends_on_host(&self) -> bool {
        !self.is_pinned && self.direction == CopyDirection::Down
    }

    /// Enqueues the copies of `plan`. Where the transfer [ends on the host](Self::ends_on_host), all bytes have arrived.
    ///
    /// # Safety
    /// As for [`Lane::carry`](super::super::lane::Lane::carry), until a mark behind the copies is passed or the queue is
    /// idle, also after an error.
    pub(super) unsafe fn enqueue(
        &self,
        plan: &CopyPlan,
        queue: &DeviceQueue,
        after: &[DeviceMark],
        route: Option<DeviceRoute>,
    ) -> Result<(), TransferError> {
        if !self.is_pinned {
            // SAFETY: passed on to the caller.
            return unsafe { bounce::copy_plan(plan, self, queue) };
        }
        let order = match self.direction {
            // The source is leased: no work that was enqueued before writes it, unless the transfer waits for that work.
            CopyDirection::Up if after.is_empty() => SourceOrder::Any,
            _ => DeviceWait::SourceBehindWork.source_order(),
        };
        for route in route::choose(plan, self, route) {
            let is_copied = match route {
                DeviceRoute::CopyEngine => break,
                // SAFETY: passed on to the caller, in both of these.
                DeviceRoute::Kernel => unsafe { kernels::enqueue(plan, self, queue) }?,
                // SAFETY: as above.
                DeviceRoute::Staged => unsafe { staged::enqueue(plan, self, queue, order) }?,
            };
            if is_copied {
                return Ok(());
            }
        }
        // SAFETY: passed on to the caller; no route has enqueued anything.
        unsafe { copies::enqueue(plan, self, queue, order) }
    }

    /// Whether both sides are on one device.
    pub(super) fn is_one_device(&self) -> bool {
        self.source.kind() == self.destination.kind()
    }
}
