//! The devices of this process: one driver, and one use of each device, which all layouts on it share.

use std::sync::{Arc, OnceLock};

use kvtile::device::{Device, DeviceError, DeviceMark, DeviceOptions, Driver};
use parking_lot::Mutex;

use crate::{error::CallFailure, layout::PyLayoutShared, tensor};

/// The stream with this handle, of the caller: 0 and 1 are the legacy default stream of a device, 2 is that of the calling thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StreamHandle(pub(crate) usize);

impl StreamHandle {
    /// Whether every device has a stream with this handle.
    fn is_default(self) -> bool {
        self.0 <= 2
    }
}

/// The driver, once it was opened.
static DRIVER: OnceLock<Driver> = OnceLock::new();

/// The devices in use. They stay in use until the process ends, as in other libraries of the process.
static DEVICES: Mutex<Vec<Device>> = Mutex::new(Vec::new());

/// The driver, opened at its first use. Nothing opens it before a tensor or a stream of a device comes.
pub(crate) fn driver() -> Result<Driver, DeviceError> {
    if let Some(driver) = DRIVER.get() {
        return Ok(driver.clone());
    }
    let driver = Driver::open(&DeviceOptions::default())?;
    Ok(DRIVER.get_or_init(|| driver).clone())
}

/// A device in use.
pub(crate) fn device(ordinal: u32) -> Result<Device, DeviceError> {
    let driver = driver()?;
    let mut devices = DEVICES.lock();
    if let Some(device) = devices.iter().find(|device| device.ordinal() == ordinal) {
        return Ok(device.clone());
    }
    let device = driver.device(ordinal)?;
    devices.push(device.clone());
    Ok(device)
}

/// Marks behind all that is in a stream now: on the device that has it, or for a default stream on each device of the layouts.
/// None without a stream.
pub(crate) fn marks_behind(
    stream: Option<StreamHandle>,
    layouts: &[Arc<PyLayoutShared>],
) -> Result<Vec<DeviceMark>, CallFailure> {
    let Some(stream) = stream else {
        return Ok(Vec::new());
    };
    let mut marks = Vec::new();
    for device in devices_of(layouts)? {
        match tensor::mark_behind(&device, stream.0) {
            Ok(mark) => marks.push(mark),
            Err(DeviceError::ForeignStream { .. }) if marks.is_empty() => {}
            Err(error) => return Err(error.into()),
        }
        if !stream.is_default() && !marks.is_empty() {
            return Ok(marks);
        }
    }
    match marks.is_empty() {
        true => Err(foreign(stream, layouts)),
        false => Ok(marks),
    }
}

/// Lets what is enqueued in a stream from now on wait for marks.
pub(crate) fn let_wait(
    stream: StreamHandle,
    layouts: &[Arc<PyLayoutShared>],
    marks: &[DeviceMark],
) -> Result<(), CallFailure> {
    let mut has_waited = false;
    for device in devices_of(layouts)? {
        let waited: Result<(), DeviceError> = marks
            .iter()
            .try_for_each(|mark| tensor::let_wait(&device, stream.0, mark));
        match waited {
            Ok(()) => has_waited = true,
            Err(DeviceError::ForeignStream { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    match has_waited {
        true => Ok(()),
        false => Err(foreign(stream, layouts)),
    }
}

/// The devices of the layouts, at least one.
fn devices_of(layouts: &[Arc<PyLayoutShared>]) -> Result<Vec<Device>, CallFailure> {
    let mut devices: Vec<Device> = Vec::new();
    for device in layouts.iter().filter_map(|layout| layout.device()) {
        if !devices.iter().any(|known| known.is_same(device)) {
            devices.push(device.clone());
        }
    }
    if devices.is_empty() {
        return Err(CallFailure::Request(
            "a stream is given, and no layout of the call is in memory of a device; leave it out"
                .to_owned(),
        ));
    }
    Ok(devices)
}

fn foreign(stream: StreamHandle, layouts: &[Arc<PyLayoutShared>]) -> CallFailure {
    let devices = layouts.iter().filter_map(|layout| layout.device());
    let ordinals: Vec<String> = devices.map(|device| device.ordinal().to_string()).collect();
    CallFailure::Request(format!(
        "the stream {:#x} is not one of device {}, where the layout is",
        stream.0,
        ordinals.join(" or ")
    ))
}
