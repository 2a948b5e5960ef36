//! Host memory that the driver allocates and pins.

use super::check_size;
use crate::driver::cuda;
use crate::{Device, DeviceError};
use kvtile_memory::{MemoryRegion, StorageKind};
use std::any::Any;
use std::ffi::c_void;

/// Host memory that the driver pinned, zeroed, freed on drop; for staging. Large pools start faster as
/// [`super::RegisteredMemory`], whose pages several threads touch first.
#[derive(Debug)]
pub struct PinnedMemory {
    device: Device,
    /// Exposed, because a region gives its users a number.
    address: usize,
    device_address: u64,
    size: usize,
}

impl PinnedMemory {
    /// Allocates `bytes` that all devices of the process reach.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Memory`] for a size that no region can have, [`DeviceError::OutOfMemory`]; the driver's error,
    /// [`DeviceError::Lost`], [`DeviceError::Forked`].
    pub fn allocate(device: &Device, bytes: usize) -> Result<PinnedMemory, DeviceError> {
        check_size(bytes)?;
        let mut start: *mut c_void = std::ptr::null_mut();
        let facts = format_args!("{bytes} pinned bytes for {device:?}");
        device.shared.call("cuMemHostAlloc", facts, |table| {
            // SAFETY: `start` is a place for one pointer, and a context is current.
            unsafe { (table.host_allocate)(&raw mut start, bytes, cuda::HOST_ALLOC_FLAGS) }
        })?;
        // From here on the drop frees it.
        let mut memory = PinnedMemory {
            device: device.clone(),
            address: start.expose_provenance(),
            device_address: 0,
            size: bytes,
        };
        // SAFETY: the driver allocated `bytes` bytes at `start`, and no other code has them yet.
        unsafe { start.cast::<u8>().write_bytes(0, bytes) };
        memory.device_address = device_address_of(device, start)?;
        Ok(memory)
    }

    /// Its device.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The address by which devices reach the first byte.
    #[must_use]
    pub fn device_address(&self) -> u64 {
        self.device_address
    }
}

/// The address by which devices reach pinned memory.
pub(super) fn device_address_of(device: &Device, start: *mut c_void) -> Result<u64, DeviceError> {
    let mut address = 0;
    let facts = format_args!("pinned memory at {start:p}");
    let call = "cuMemHostGetDevicePointer_v2";
    device.shared.call(call, facts, |table| {
        // SAFETY: `address` is a place for one address; the driver checks that `start` is pinned. The flags must be 0.
        unsafe { (table.host_address)(&raw mut address, start, 0) }
    })?;
    Ok(address)
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        let start: *mut c_void = std::ptr::with_exposed_provenance_mut(self.address);
        // SAFETY: `allocate` got the address from the driver, and it is freed once; work that uses it holds the region.
        self.device
            .shared
            .release(|table| unsafe { (table.host_free)(start) });
    }
}

// SAFETY: the driver allocated `size` bytes, at most `isize::MAX`, readable and writable by the process at the address,
// whose provenance is exposed; `allocate` initialised them. They are freed only by the drop, and nothing changes before.
unsafe impl MemoryRegion for PinnedMemory {
    fn addr(&self) -> usize {
        self.address
    }

    fn size(&self) -> usize {
        self.size
    }

    fn storage_kind(&self) -> StorageKind {
        StorageKind::Pinned
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
