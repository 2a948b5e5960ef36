//! A device in use: its primary context, which is current only during a call, and whether it is lost.

use super::call::DriverCalls;
use super::cuda::{self, CudaDevice, CudaResult};
use super::error::DeviceError;
use super::table::DriverTable;
use super::version::DriverVersion;
use parking_lot::Mutex;
use std::ffi::c_void;
use std::fmt::{self, Arguments};
use std::sync::{Arc, OnceLock};

/// What a driver knows about a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceDescription {
    /// Its number, from 0, among the devices that this process sees.
    pub ordinal: u32,
    /// Its name.
    pub name: String,
    /// Its identity, of its instance under MIG.
    pub uuid: [u8; 16],
    /// Bytes of its memory.
    pub bytes: usize,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Copies that it can run beside kernels.
    pub copy_engines: u32,
    /// Whether host and device share one address space, which kvtile needs.
    pub is_unified: bool,
}

/// Memory of a device at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemoryInfo {
    /// Bytes that no process has allocated.
    pub free_bytes: usize,
    /// All bytes.
    pub total_bytes: usize,
}

/// An opaque handle of the driver: a context, stream, event, module or function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DriverHandle(pub(crate) *mut c_void);

// SAFETY: nothing is read through the pointer; the driver's functions take handles on any thread.
unsafe impl Send for DriverHandle {}
// SAFETY: as above.
unsafe impl Sync for DriverHandle {}

/// A device in use, shared by everything that was made on it; its primary context is released with the last.
///
/// No call leaves its context current: the caller's current context is the same after each call as before.
#[derive(Clone)]
pub struct Device {
    pub(crate) shared: Arc<DeviceShared>,
}

/// The state of a device in use.
pub(crate) struct DeviceShared {
    pub(crate) calls: Arc<DriverCalls>,
    pub(crate) description: DeviceDescription,
    device: CudaDevice,
    context: DriverHandle,
    /// The first sticky error.
    lost: OnceLock<LostDevice>,
    /// Events that no mark uses.
    pub(super) events: Mutex<Vec<DriverHandle>>,
}

/// How a device was lost.
struct LostDevice {
    call: &'static str,
    code: CudaResult,
}

impl Device {
    pub(super) fn retain(
        calls: Arc<DriverCalls>,
        device: CudaDevice,
        description: DeviceDescription,
    ) -> Result<Device, DeviceError> {
        let mut context = std::ptr::null_mut();
        // SAFETY: `context` is a place for one handle, and `device` is a handle of this driver.
        let result = unsafe { (calls.table.context_retain)(&raw mut context, device) };
        let facts = format_args!("device {}", description.ordinal);
        calls.check(result, "cuDevicePrimaryCtxRetain", facts)?;
        Ok(Device {
            shared: Arc::new(DeviceShared {
                calls,
                description,
                device,
                context: DriverHandle(context),
                lost: OnceLock::new(),
                events: Mutex::default(),
            }),
        })
    }

    /// Its number among the devices of the driver.
    #[must_use]
    pub fn ordinal(&self) -> u32 {
        self.shared.description.ordinal
    }

    /// Whether both are the same use of one device, which shares queues and events.
    #[must_use]
    pub fn is_same(&self, other: &Device) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// What the driver knows about it.
    #[must_use]
    pub fn description(&self) -> &DeviceDescription {
        &self.shared.description
    }

    /// The newest CUDA version that its driver knows.
    #[must_use]
    pub fn driver_version(&self) -> DriverVersion {
        self.shared.calls.version
    }

    /// The first error after which the device cannot be used in this process, if there was one.
    #[must_use]
    pub fn lost(&self) -> Option<DeviceError> {
        self.shared.check_lost().err()
    }

    /// Free and total memory.
    ///
    /// # Errors
    ///
    /// The driver's error, [`DeviceError::Lost`], [`DeviceError::Forked`].
    pub fn memory_info(&self) -> Result<DeviceMemoryInfo, DeviceError> {
        let (mut free_bytes, mut total_bytes) = (0, 0);
        self.shared
            .call("cuMemGetInfo_v2", format_args!("no arguments"), |table| {
                // SAFETY: both are places for one number, and a context is current.
                unsafe { (table.memory_info)(&raw mut free_bytes, &raw mut total_bytes) }
            })?;
        Ok(DeviceMemoryInfo {
            free_bytes,
            total_bytes,
        })
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let description = self.description();
        write!(
            formatter,
            "device {} ({})",
            description.ordinal, description.name
        )
    }
}

impl DeviceShared {
    /// Calls the driver with this device's context current, and restores the caller's.
    pub(crate) fn call(
        &self,
        name: &'static str,
        facts: Arguments<'_>,
        call: impl FnOnce(&DriverTable) -> CudaResult,
    ) -> Result<(), DeviceError> {
        let result = self.enter()?.run(call);
        self.check(result, name, facts)
    }

    /// As [`DeviceShared::call`], for functions that answer whether something has ended.
    pub(crate) fn query(
        &self,
        name: &'static str,
        facts: Arguments<'_>,
        call: impl FnOnce(&DriverTable) -> CudaResult,
    ) -> Result<bool, DeviceError> {
        match self.enter()?.run(call) {
            cuda::NOT_READY => Ok(false),
            result => self.check(result, name, facts).map(|()| true),
        }
    }

    /// Calls a function that releases something. Nothing is called in a forked child, whose parent owns the thing;
    /// on a lost device the driver refuses the call, and the thing is freed with the process.
    pub(crate) fn release(&self, call: impl FnOnce(&DriverTable) -> CudaResult) {
        if !self.calls.is_here() {
            return;
        }
        let result = match self.make_current() {
            Ok(current) => current.run(call),
            // The function may do without a current context.
            Err(_) => call(&self.calls.table),
        };
        self.note(result, "a release");
    }

    /// The result as an error of this device; a sticky one loses it.
    pub(crate) fn check(
        &self,
        result: CudaResult,
        call: &'static str,
        facts: Arguments<'_>,
    ) -> Result<(), DeviceError> {
        if self.note(result, call) {
            return self.check_lost();
        }
        self.calls.check(result, call, facts)
    }

    /// The context of the device as a number, to compare with.
    pub(super) fn context(&self) -> DriverHandle {
        self.context
    }

    fn enter(&self) -> Result<CurrentContext<'_>, DeviceError> {
        self.calls.check_process()?;
        self.check_lost()?;
        self.make_current()
    }

    fn make_current(&self) -> Result<CurrentContext<'_>, DeviceError> {
        let table = &self.calls.table;
        let mut previous = std::ptr::null_mut();
        // SAFETY: `previous` is a place for one handle.
        let result = unsafe { (table.context_get)(&raw mut previous) };
        self.check(result, "cuCtxGetCurrent", format_args!("no arguments"))?;
        let previous = DriverHandle(previous);
        if previous == self.context {
            return Ok(CurrentContext {
                table,
                previous: None,
            });
        }
        // SAFETY: the context is retained as long as `self` lives.
        let result = unsafe { (table.context_set)(self.context.0) };
        let facts = format_args!("device {}", self.description.ordinal);
        self.check(result, "cuCtxSetCurrent", facts)?;
        Ok(CurrentContext {
            table,
            previous: Some(previous),
        })
    }

    /// Notes a sticky error; true if `result` is one.
    fn note(&self, result: CudaResult, call: &'static str) -> bool {
        let is_sticky = cuda::STICKY.contains(&result);
        if is_sticky {
            // A device is lost once: the first error is the one to report.
            let _first = self.lost.get_or_init(|| LostDevice { call, code: result });
        }
        is_sticky
    }

    fn check_lost(&self) -> Result<(), DeviceError> {
        match self.lost.get() {
            None => Ok(()),
            Some(lost) => Err(DeviceError::Lost {
                ordinal: self.description.ordinal,
                call: lost.call,
                name: self.calls.name(lost.code),
                code: lost.code,
            }),
        }
    }
}

impl Drop for DeviceShared {
    fn drop(&mut self) {
        for event in std::mem::take(self.events.get_mut()) {
            // SAFETY: no mark uses the events of the pool, and each is destroyed once.
            self.release(|table| unsafe { (table.event_destroy)(event.0) });
        }
        let device = self.device;
        if self.calls.is_here() {
            // SAFETY: this ends the reference that `retain` took. What was made in the context holds `self`, so it has
            // been released before.
            let _released = unsafe { (self.calls.table.context_release)(device) };
        }
    }
}

/// The device's context is current in this thread; the drop restores the caller's.
struct CurrentContext<'a> {
    table: &'a DriverTable,
    /// The context to restore, if it was another.
    previous: Option<DriverHandle>,
}

impl CurrentContext<'_> {
    fn run(self, call: impl FnOnce(&DriverTable) -> CudaResult) -> CudaResult {
        call(self.table)
    }
}

impl Drop for CurrentContext<'_> {
    fn drop(&mut self) {
        if let Some(previous) = self.previous {
            // SAFETY: the context was current in this thread before, or is null. An owner that destroyed it in the
            // meantime on another thread gets an error here, and the thread stays with this device's context.
            let _restored = unsafe { (self.table.context_set)(previous.0) };
        }
    }
}
