//! Opens the driver and lists its devices.

use super::call::DriverCalls;
use super::context::{Device, DeviceDescription};
use super::cuda::{self, CudaDevice, CudaUuid};
use super::error::DeviceError;
use super::load::{self, DeviceOptions};
use super::table::DriverTable;
use super::version::DriverVersion;
use std::ffi::{CStr, c_char, c_void};
use std::sync::Arc;

/// Bytes for the name of a device, with the zero at its end.
const NAME_BYTES: usize = 256;

/// A driver that is loaded and initialised in this process.
///
/// A child that is forked from the process cannot use it: each call returns [`DeviceError::Forked`].
#[derive(Debug, Clone)]
pub struct Driver {
    calls: Arc<DriverCalls>,
}

impl Driver {
    /// Loads the driver's library and initialises it.
    ///
    /// # Errors
    ///
    /// [`DeviceError::NoDriver`] names each library that was tried; [`DeviceError::TooOld`],
    /// [`DeviceError::MissingSymbol`], [`DeviceError::NoDevice`], or the driver's error.
    pub fn open(options: &DeviceOptions) -> Result<Driver, DeviceError> {
        let table = load::load(options)?;
        // SAFETY: the table was filled from the driver's library.
        unsafe { Driver::from_table(table) }
    }

    /// Initialises the driver behind `table`.
    ///
    /// # Errors
    ///
    /// As [`Driver::open`].
    ///
    /// # Safety
    ///
    /// The functions of the table behave as the CUDA driver API documents.
    pub unsafe fn from_table(table: DriverTable) -> Result<Driver, DeviceError> {
        let mut number = 0;
        // SAFETY: `number` is a place for one number; the function needs no initialised driver.
        let result = unsafe { (table.driver_version)(&raw mut number) };
        let version = DriverVersion::of_number(number);
        let calls = DriverCalls::new(table, version);
        calls.check(result, "cuDriverGetVersion", format_args!("no arguments"))?;
        if version < DriverVersion::OLDEST {
            return Err(DeviceError::TooOld {
                needs: DriverVersion::OLDEST,
                has: version,
            });
        }
        // SAFETY: the flags must be 0.
        match unsafe { (table.init)(0) } {
            cuda::NO_DEVICE => return Err(DeviceError::NoDevice { version }),
            result => calls.check(result, "cuInit", format_args!("driver {version}"))?,
        }
        Ok(Driver {
            calls: Arc::new(calls),
        })
    }

    /// The newest CUDA version that the driver knows.
    #[must_use]
    pub fn version(&self) -> DriverVersion {
        self.calls.version
    }

    /// How many devices the driver has.
    ///
    /// # Errors
    ///
    /// The driver's error; [`DeviceError::Forked`].
    pub fn device_count(&self) -> Result<u32, DeviceError> {
        self.calls.check_process()?;
        let mut count = 0;
        // SAFETY: `count` is a place for one number, and the driver is initialised.
        let result = unsafe { (self.calls.table.device_count)(&raw mut count) };
        let facts = format_args!("no arguments");
        self.calls.check(result, "cuDeviceGetCount", facts)?;
        Ok(u32::try_from(count).unwrap_or(0))
    }

    /// Describes a device without using it: no context is made, no memory of it is taken.
    ///
    /// # Errors
    ///
    /// [`DeviceError::UnknownDevice`], the driver's error, [`DeviceError::Forked`].
    pub fn describe(&self, ordinal: u32) -> Result<DeviceDescription, DeviceError> {
        let device = self.handle(ordinal)?;
        let number = |attribute| self.attribute(ordinal, device, attribute);
        Ok(DeviceDescription {
            ordinal,
            name: self.name(ordinal, device)?,
            uuid: self.uuid(ordinal, device)?,
            bytes: self.bytes(ordinal, device)?,
            capability: (
                number(cuda::ATTRIBUTE_CAPABILITY_MAJOR)?,
                number(cuda::ATTRIBUTE_CAPABILITY_MINOR)?,
            ),
            multiprocessors: number(cuda::ATTRIBUTE_MULTIPROCESSORS)?,
            copy_engines: number(cuda::ATTRIBUTE_COPY_ENGINES)?,
            is_unified: number(cuda::ATTRIBUTE_UNIFIED_ADDRESSING)? != 0,
        })
    }

    /// Takes a device into use: retains its primary context, the one that other libraries of the process use too.
    ///
    /// # Errors
    ///
    /// As [`Driver::describe`]; the driver's error for the context.
    pub fn device(&self, ordinal: u32) -> Result<Device, DeviceError> {
        let description = self.describe(ordinal)?;
        Device::retain(Arc::clone(&self.calls), self.handle(ordinal)?, description)
    }

    /// The ordinal of the device that has the memory at `address`; `None` for other addresses. No context is made.
    ///
    /// # Errors
    ///
    /// The driver's error; [`DeviceError::Forked`].
    pub fn device_of(&self, address: u64) -> Result<Option<u32>, DeviceError> {
        self.calls.check_process()?;
        let (mut kind, mut ordinal) = (0_u32, -1_i32);
        let mut attributes = [cuda::POINTER_MEMORY_TYPE, cuda::POINTER_DEVICE_ORDINAL];
        let mut places: [*mut c_void; 2] = [(&raw mut kind).cast(), (&raw mut ordinal).cast()];
        let (listed, into) = (attributes.as_mut_ptr(), places.as_mut_ptr());
        // SAFETY: two attributes with a place each, of the type that `cuda.h` documents for it. For an address that the
        // driver does not know, it writes zeroes.
        let result = unsafe { (self.calls.table.pointer_attributes)(2, listed, into, address) };
        let facts = format_args!("address {address:#x}");
        self.calls.check(result, "cuPointerGetAttributes", facts)?;
        let is_device = kind == cuda::MEMORY_TYPE_DEVICE;
        Ok(u32::try_from(ordinal).ok().filter(|_| is_device))
    }

    fn handle(&self, ordinal: u32) -> Result<CudaDevice, DeviceError> {
        let count = self.device_count()?;
        let number = i32::try_from(ordinal).ok().filter(|_| ordinal < count);
        let number = number.ok_or(DeviceError::UnknownDevice { ordinal, count })?;
        let mut device = 0;
        // SAFETY: `device` is a place for one handle, and the driver is initialised.
        let result = unsafe { (self.calls.table.device_get)(&raw mut device, number) };
        let facts = format_args!("device {ordinal}");
        self.calls.check(result, "cuDeviceGet", facts)?;
        Ok(device)
    }

    fn name(&self, ordinal: u32, device: CudaDevice) -> Result<String, DeviceError> {
        let mut name = [0_u8; NAME_BYTES];
        let room = i32::try_from(NAME_BYTES).unwrap_or(0);
        let start = name.as_mut_ptr().cast::<c_char>();
        // SAFETY: `start` points at `room` bytes, and `device` is a handle of this driver.
        let result = unsafe { (self.calls.table.device_name)(start, room, device) };
        let facts = format_args!("device {ordinal}");
        self.calls.check(result, "cuDeviceGetName", facts)?;
        let name = CStr::from_bytes_until_nul(&name).map(CStr::to_string_lossy);
        Ok(name.map_or_else(|_| String::new(), std::borrow::Cow::into_owned))
    }

    fn uuid(&self, ordinal: u32, device: CudaDevice) -> Result<[u8; 16], DeviceError> {
        let mut uuid = CudaUuid::default();
        // SAFETY: `uuid` is a place for one identity, and `device` is a handle of this driver.
        let result = unsafe { (self.calls.table.device_uuid)(&raw mut uuid, device) };
        let facts = format_args!("device {ordinal}");
        self.calls.check(result, "cuDeviceGetUuid_v2", facts)?;
        Ok(uuid.bytes)
    }

    fn bytes(&self, ordinal: u32, device: CudaDevice) -> Result<usize, DeviceError> {
        let mut bytes = 0;
        // SAFETY: `bytes` is a place for one number, and `device` is a handle of this driver.
        let result = unsafe { (self.calls.table.device_bytes)(&raw mut bytes, device) };
        let facts = format_args!("device {ordinal}");
        self.calls.check(result, "cuDeviceTotalMem_v2", facts)?;
        Ok(bytes)
    }

    fn attribute(
        &self,
        ordinal: u32,
        device: CudaDevice,
        attribute: u32,
    ) -> Result<u32, DeviceError> {
        let mut number = 0;
        // SAFETY: `number` is a place for one number, and `device` is a handle of this driver.
        let result =
            unsafe { (self.calls.table.device_attribute)(&raw mut number, attribute, device) };
        let facts = format_args!("attribute {attribute} of device {ordinal}");
        self.calls.check(result, "cuDeviceGetAttribute", facts)?;
        Ok(u32::try_from(number).unwrap_or(0))
    }
}
