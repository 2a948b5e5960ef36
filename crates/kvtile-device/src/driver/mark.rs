//! Marks: points in the work of a queue that hosts and other queues wait for.

use super::context::{Device, DeviceShared, DriverHandle};
use super::cuda;
use super::error::DeviceError;
use std::fmt;
use std::sync::Arc;

/// A point in the work of a queue: passed when all work before it has ended.
///
/// Clones are the same point. The event behind it has no timing, and a host that waits for it sleeps. It returns to
/// the pool of its device with the last clone; a queue that waits for the point goes on waiting for it.
#[derive(Clone)]
pub struct DeviceMark {
    event: Arc<PooledEvent>,
}

/// An event, taken from the pool of its device.
struct PooledEvent {
    device: Device,
    event: DriverHandle,
}

impl DeviceMark {
    /// Takes an event for a new mark, which `DeviceQueue::record` records.
    pub(super) fn take(device: &Device) -> Result<DeviceMark, DeviceError> {
        let pooled = device.shared.events.lock().pop();
        let event = match pooled {
            Some(event) => event,
            None => create(&device.shared)?,
        };
        Ok(DeviceMark {
            event: Arc::new(PooledEvent {
                device: device.clone(),
                event,
            }),
        })
    }

    /// Whether all work before the point has ended. Its effects are then visible to this process.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Lost`] if the device failed, so that the work may have ended half-way; the driver's error;
    /// [`DeviceError::Forked`].
    pub fn is_passed(&self) -> Result<bool, DeviceError> {
        let event = self.handle();
        let facts = format_args!("a mark of {:?}", self.device());
        self.device().shared.query("cuEventQuery", facts, |table| {
            // SAFETY: the event lives as long as `self`.
            unsafe { (table.event_query)(event.0) }
        })
    }

    /// Waits until all work before the point has ended.
    ///
    /// # Errors
    ///
    /// As [`DeviceMark::is_passed`].
    pub fn wait(&self) -> Result<(), DeviceError> {
        let event = self.handle();
        let facts = format_args!("a mark of {:?}", self.device());
        self.device()
            .shared
            .call("cuEventSynchronize", facts, |table| {
                // SAFETY: the event lives as long as `self`.
                unsafe { (table.event_synchronize)(event.0) }
            })
    }

    /// The device of the queue that recorded it.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.event.device
    }

    /// The event, for a caller that lets its own stream wait for it. It is valid as long as the mark lives.
    #[must_use]
    pub fn as_raw(&self) -> usize {
        self.handle().0.expose_provenance()
    }

    pub(super) fn handle(&self) -> DriverHandle {
        self.event.event
    }
}

fn create(device: &DeviceShared) -> Result<DriverHandle, DeviceError> {
    let mut event = std::ptr::null_mut();
    let facts = format_args!("an event without timing");
    device.call("cuEventCreate", facts, |table| {
        // SAFETY: `event` is a place for one handle, and a context is current.
        unsafe { (table.event_create)(&raw mut event, cuda::EVENT_FLAGS) }
    })?;
    Ok(DriverHandle(event))
}

impl Drop for PooledEvent {
    fn drop(&mut self) {
        // Waits that refer to the recorded point hold it until they end, also when the event is recorded again.
        self.device.shared.events.lock().push(self.event);
    }
}

impl fmt::Debug for DeviceMark {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "mark {:p} of {:?}",
            self.handle().0,
            self.device()
        )
    }
}
