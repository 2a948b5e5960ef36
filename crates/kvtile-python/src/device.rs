//! The devices of this process: one driver, and one use of each device, which all layouts on it share.

use std::sync::OnceLock;

use kvtile::device::{Device, DeviceError, DeviceOptions, Driver};
use parking_lot::Mutex;

/// The stream with this handle, of the caller: 0 and 1 are the legacy default stream of a device, 2 is that of the calling thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StreamHandle(pub(crate) usize);

impl StreamHandle {
    /// Whether every device has a stream with this handle.
    pub(crate) fn is_default(self) -> bool {
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
