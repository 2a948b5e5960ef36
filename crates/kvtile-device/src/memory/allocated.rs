//! Memory of a device.

use super::{check_size, region_address};
use crate::{Device, DeviceError};
use kvtile_memory::{MemoryRegion, StorageKind};
use std::any::Any;

/// Memory of a device that kvtile allocated, freed on drop. Its bytes are what its last owner left.
#[derive(Debug)]
pub struct DeviceMemory {
    device: Device,
    address: u64,
    size: usize,
}

impl DeviceMemory {
    /// Allocates `bytes` on `device`.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Memory`] for a size that no region can have, [`DeviceError::OutOfMemory`]; the driver's error,
    /// [`DeviceError::Lost`], [`DeviceError::Forked`].
    pub fn allocate(device: &Device, bytes: usize) -> Result<DeviceMemory, DeviceError> {
        check_size(bytes)?;
        let mut address = 0;
        let facts = format_args!("{bytes} bytes on {device:?}");
        device.shared.call("cuMemAlloc_v2", facts, |table| {
            // SAFETY: `address` is a place for one address, and a context is current.
            unsafe { (table.memory_allocate)(&raw mut address, bytes) }
        })?;
        Ok(DeviceMemory {
            device: device.clone(),
            address,
            size: bytes,
        })
    }

    /// Its device.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The address by which devices reach the first byte.
    #[must_use]
    pub fn device_address(&self) -> u64 {
        self.address
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        let address = self.address;
        // SAFETY: `allocate` got the address from the driver, and it is freed once; work that uses it holds the region.
        self.device
            .shared
            .release(|table| unsafe { (table.memory_free)(address) });
    }
}

// SAFETY: the driver allocated `size` bytes of this device at the address, and they are freed only by the drop. Nothing
// changes before. The driver's addresses do not wrap.
unsafe impl MemoryRegion for DeviceMemory {
    fn addr(&self) -> usize {
        region_address(self.address)
    }

    fn size(&self) -> usize {
        self.size
    }

    fn storage_kind(&self) -> StorageKind {
        StorageKind::Device(self.device.ordinal())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
