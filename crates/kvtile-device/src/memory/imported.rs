//! Device memory of other owners: of an engine in this process, and of another process.

use super::{check_size, region_address};
use crate::driver::cuda::{self, CudaIpcHandle};
use crate::{Device, DeviceError, DeviceMemory};
use kvtile_memory::{MemoryRegion, StorageKind};
use std::any::Any;
use std::ffi::c_void;
use std::fmt;
use std::sync::Arc;

/// A handle by which another process of this machine imports device memory. It does not keep the memory allocated:
/// the exporting process must outlive the importing ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpcMemoryHandle {
    /// The bytes that the driver gave.
    pub bytes: [u8; 64],
    /// Size of the memory, in bytes.
    pub size: usize,
}

/// Device memory that another owner allocated.
pub struct ImportedMemory {
    device: Device,
    address: u64,
    size: usize,
    buffer: u64,
    is_writable: bool,
    owner: MemoryOwner,
}

/// What keeps imported memory allocated.
enum MemoryOwner {
    /// An owner in this process.
    Here(Arc<dyn Any + Send + Sync>),
    /// Another process, over a handle that is closed on drop.
    OtherProcess,
}

/// What the driver knows about an address.
#[derive(Debug, Default)]
struct PointerFacts {
    kind: u32,
    is_managed: u32,
    ordinal: i32,
    buffer: u64,
    start: u64,
    size: usize,
}

impl ImportedMemory {
    /// The `bytes` bytes of device memory at `address`, which stay allocated as long as `keep_alive` is held. The
    /// driver confirms that the address is memory of this device and that its allocation has these bytes. Managed
    /// memory, which the driver moves between host and device, is refused.
    ///
    /// # Errors
    ///
    /// [`DeviceError::NotDeviceMemory`] with what the driver knows about the address; [`DeviceError::Memory`] for a
    /// size that no region can have; the driver's error, [`DeviceError::Lost`], [`DeviceError::Forked`].
    ///
    /// # Safety
    ///
    /// As long as `keep_alive` is held, the bytes stay allocated, and no code accesses them in conflict with the
    /// leases under which other code copies through this region.
    pub unsafe fn borrow(
        device: &Device,
        address: u64,
        bytes: usize,
        keep_alive: Arc<dyn Any + Send + Sync>,
    ) -> Result<ImportedMemory, DeviceError> {
        check_size(bytes)?;
        let facts = PointerFacts::of(device, address)?;
        facts.check(device, address, bytes)?;
        Ok(ImportedMemory {
            device: device.clone(),
            address,
            size: bytes,
            buffer: facts.buffer,
            is_writable: true,
            owner: MemoryOwner::Here(keep_alive),
        })
    }

    /// Opens memory that another process exported with [`DeviceMemory::export`].
    ///
    /// # Errors
    ///
    /// [`DeviceError::NotDeviceMemory`] if the handle is of other memory than it claims; the driver's error,
    /// [`DeviceError::Lost`], [`DeviceError::Forked`].
    ///
    /// # Safety
    ///
    /// The exporting process keeps the memory allocated as long as the region lives, and neither process accesses it
    /// in conflict with the leases under which the other copies.
    pub unsafe fn open(
        device: &Device,
        handle: &IpcMemoryHandle,
    ) -> Result<ImportedMemory, DeviceError> {
        check_size(handle.size)?;
        let mut address = 0;
        let opaque = CudaIpcHandle {
            reserved: handle.bytes,
        };
        let facts = format_args!("{} bytes of another process", handle.size);
        let call = "cuIpcOpenMemHandle_v2";
        device.shared.call(call, facts, |table| {
            let flags = cuda::IPC_LAZY_PEER_ACCESS;
            // SAFETY: `address` is a place for one address; the driver checks the handle.
            unsafe { (table.ipc_open)(&raw mut address, opaque, flags) }
        })?;
        // From here on the drop closes it.
        let mut memory = ImportedMemory {
            device: device.clone(),
            address,
            size: handle.size,
            buffer: 0,
            is_writable: true,
            owner: MemoryOwner::OtherProcess,
        };
        let facts = PointerFacts::of(device, address)?;
        facts.check(device, address, handle.size)?;
        memory.buffer = facts.buffer;
        Ok(memory)
    }

    /// Marks the region read-only.
    #[must_use]
    pub fn read_only(mut self) -> ImportedMemory {
        self.is_writable = false;
        self
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

    /// The driver's number of the allocation, unique in the process. Regions with equal numbers are parts of one allocation.
    /// Whether another mapping of the same memory has another number, no driver states.
    #[must_use]
    pub fn buffer_id(&self) -> u64 {
        self.buffer
    }

    /// What keeps the memory allocated, if it is in this process.
    #[must_use]
    pub fn keep_alive(&self) -> Option<&Arc<dyn Any + Send + Sync>> {
        match &self.owner {
            MemoryOwner::Here(keep_alive) => Some(keep_alive),
            MemoryOwner::OtherProcess => None,
        }
    }
}

impl DeviceMemory {
    /// A handle by which another process of this machine imports this memory.
    ///
    /// # Errors
    ///
    /// The driver's error (801 where the device or its sharing mode has no such handles), [`DeviceError::Lost`],
    /// [`DeviceError::Forked`].
    pub fn export(&self) -> Result<IpcMemoryHandle, DeviceError> {
        let mut handle = CudaIpcHandle { reserved: [0; 64] };
        let address = self.device_address();
        let facts = format_args!("{} bytes at {address:#x}", self.size());
        let shared = &self.device().shared;
        shared.call("cuIpcGetMemHandle", facts, |table| {
            // SAFETY: `handle` is a place for one handle; the memory is allocated as long as `self` lives.
            unsafe { (table.ipc_export)(&raw mut handle, address) }
        })?;
        Ok(IpcMemoryHandle {
            bytes: handle.reserved,
            size: self.size(),
        })
    }
}

impl PointerFacts {
    fn of(device: &Device, address: u64) -> Result<PointerFacts, DeviceError> {
        let mut facts = PointerFacts::default();
        let mut attributes = [
            cuda::POINTER_MEMORY_TYPE,
            cuda::POINTER_IS_MANAGED,
            cuda::POINTER_DEVICE_ORDINAL,
            cuda::POINTER_BUFFER_ID,
            cuda::POINTER_RANGE_START,
            cuda::POINTER_RANGE_SIZE,
        ];
        let mut places: [*mut c_void; 6] = [
            (&raw mut facts.kind).cast(),
            (&raw mut facts.is_managed).cast(),
            (&raw mut facts.ordinal).cast(),
            (&raw mut facts.buffer).cast(),
            (&raw mut facts.start).cast(),
            (&raw mut facts.size).cast(),
        ];
        let what = format_args!("address {address:#x}");
        let call = "cuPointerGetAttributes";
        device.shared.call(call, what, |table| {
            let (attributes, places) = (attributes.as_mut_ptr(), places.as_mut_ptr());
            // SAFETY: six attributes with a place each, of the type that `cuda.h` documents for it (a boolean is at most
            // as wide as its place, which is zero before). For an address that the driver does not know, it writes zeroes.
            unsafe { (table.pointer_attributes)(6, attributes, places, address) }
        })?;
        Ok(facts)
    }

    fn check(&self, device: &Device, address: u64, bytes: usize) -> Result<(), DeviceError> {
        let end = |start: u64, size: usize| start.checked_add(size as u64);
        let ordinal = device.ordinal();
        let is_inside = self.start <= address
            && end(address, bytes)
                .zip(end(self.start, self.size))
                .is_some_and(|(end, limit)| end <= limit);
        let is_here = self.kind == cuda::MEMORY_TYPE_DEVICE
            && self.is_managed == 0
            && u32::try_from(self.ordinal).is_ok_and(|here| here == ordinal);
        if is_here && is_inside {
            return Ok(());
        }
        let found = match self.kind {
            _ if self.is_managed != 0 => {
                "it is managed memory, which moves between host and device".to_owned()
            }
            cuda::MEMORY_TYPE_DEVICE => format!(
                "it is in an allocation of {} bytes at {:#x} of device {}",
                self.size, self.start, self.ordinal
            ),
            cuda::MEMORY_TYPE_HOST => "it is pinned memory of the host".to_owned(),
            _ => "the driver does not know it".to_owned(),
        };
        Err(DeviceError::NotDeviceMemory {
            address,
            bytes,
            ordinal,
            found,
        })
    }
}

impl Drop for ImportedMemory {
    fn drop(&mut self) {
        if matches!(self.owner, MemoryOwner::OtherProcess) {
            let address = self.address;
            // SAFETY: `open` got the address from the driver, and it is closed once; work that uses it holds the region.
            self.device
                .shared
                .release(|table| unsafe { (table.ipc_close)(address) });
        }
    }
}

impl fmt::Debug for ImportedMemory {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ImportedMemory")
            .field("device", &self.device)
            .field("address", &format_args!("{:#x}", self.address))
            .field("size", &self.size)
            .field("buffer", &self.buffer)
            .finish_non_exhaustive()
    }
}

// SAFETY: the driver confirmed that the bytes lie in one allocation of this device, and the caller of `borrow` or `open`
// guaranteed that it stays allocated as long as the region lives. Nothing changes before.
unsafe impl MemoryRegion for ImportedMemory {
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

    fn is_writable(&self) -> bool {
        self.is_writable
    }
}
