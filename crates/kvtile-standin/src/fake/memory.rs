//! Memory: of devices, pinned, registered, and of other processes.

use super::{enter, entries, leave, put};
use crate::world::{Complaint, MemoryPlace, World};
use kvtile_device::cuda::{self, CudaAddress, CudaIpcHandle};
use std::ffi::c_void;

/// The first bytes of a handle for other processes.
const IPC_MARK: [u8; 8] = *b"standin\0";

#[unsafe(export_name = "cuMemAlloc_v2")]
pub(super) unsafe extern "C" fn memory_allocate(address: *mut CudaAddress, bytes: usize) -> u32 {
    enter("cuMemAlloc_v2", |world| {
        let ordinal = world.current()?;
        if bytes == 0 || address.is_null() {
            return Err(cuda::INVALID_VALUE);
        }
        let used = world
            .memory
            .bytes(|place| place == MemoryPlace::Device(ordinal));
        if bytes > world.options.device_bytes.saturating_sub(used) {
            return Err(cuda::OUT_OF_MEMORY);
        }
        let allocated = world.memory.allocate_device(ordinal, bytes)?;
        // SAFETY: the caller passes a place for an address.
        unsafe { put(address, allocated) }
    })
}

#[unsafe(export_name = "cuMemFree_v2")]
pub(super) unsafe extern "C" fn memory_free(address: CudaAddress) -> u32 {
    leave("cuMemFree_v2", |world| {
        let place = place_at(world, address)?;
        if !matches!(place, MemoryPlace::Device(_)) {
            return Err(cuda::INVALID_VALUE);
        }
        world.release(address, "the free of device memory")
    })
}

/// Not in the table: kvtile allocates no managed memory, but engines pass some.
#[unsafe(export_name = "cuMemAllocManaged")]
pub(super) unsafe extern "C" fn managed_allocate(
    address: *mut CudaAddress,
    bytes: usize,
    _flags: u32,
) -> u32 {
    enter("cuMemAllocManaged", |world| {
        let ordinal = world.current()?;
        if bytes == 0 || address.is_null() {
            return Err(cuda::INVALID_VALUE);
        }
        let allocated = world.memory.allocate_managed(ordinal, bytes)?;
        // SAFETY: the caller passes a place for an address.
        unsafe { put(address, allocated) }
    })
}

/// The place of the memory that starts at a device address.
fn place_at(world: &World, start: u64) -> Result<MemoryPlace, u32> {
    let known = world.memory.at(start).filter(|known| known.start == start);
    known.map(|known| known.place).ok_or(cuda::INVALID_VALUE)
}

fn check_pinned_room(world: &World, bytes: usize) -> Result<(), u32> {
    let is_pinned = |place| matches!(place, MemoryPlace::Pinned | MemoryPlace::Registered);
    let used = world.memory.bytes(is_pinned);
    if bytes > world.options.pinned_bytes.saturating_sub(used) {
        return Err(cuda::OUT_OF_MEMORY);
    }
    Ok(())
}

#[unsafe(export_name = "cuMemHostAlloc")]
pub(super) unsafe extern "C" fn host_allocate(
    start: *mut *mut c_void,
    bytes: usize,
    flags: u32,
) -> u32 {
    enter("cuMemHostAlloc", |world| {
        let _ordinal = world.current()?;
        if bytes == 0 || start.is_null() || flags & !7 != 0 {
            return Err(cuda::INVALID_VALUE);
        }
        check_pinned_room(world, bytes)?;
        let allocated = world.memory.allocate_pinned(bytes)?;
        let allocated = usize::try_from(allocated).map_err(|_| cuda::INVALID_VALUE)?;
        // SAFETY: the caller passes a place for a pointer.
        unsafe { put(start, std::ptr::with_exposed_provenance_mut(allocated)) }
    })
}

#[unsafe(export_name = "cuMemFreeHost")]
pub(super) unsafe extern "C" fn host_free(start: *mut c_void) -> u32 {
    leave("cuMemFreeHost", |world| {
        let known = world.memory.of_host(start.addr(), MemoryPlace::Pinned);
        let address = known.ok_or(cuda::INVALID_VALUE)?.start;
        world.release(address, "the free of pinned memory")
    })
}

#[unsafe(export_name = "cuMemHostRegister_v2")]
pub(super) unsafe extern "C" fn host_register(start: *mut c_void, bytes: usize, flags: u32) -> u32 {
    enter("cuMemHostRegister_v2", |world| {
        let _ordinal = world.current()?;
        if bytes == 0 || start.is_null() || flags & !15 != 0 {
            return Err(cuda::INVALID_VALUE);
        }
        check_pinned_room(world, bytes)?;
        let is_writable = flags & cuda::HOST_REGISTER_READ_ONLY == 0;
        let has_alias = world.options.aliases;
        world
            .memory
            .register(start.expose_provenance(), bytes, is_writable, has_alias)
    })
}

#[unsafe(export_name = "cuMemHostUnregister")]
pub(super) unsafe extern "C" fn host_unregister(start: *mut c_void) -> u32 {
    leave("cuMemHostUnregister", |world| {
        let known = world.memory.of_host(start.addr(), MemoryPlace::Registered);
        let known = known.ok_or(cuda::NOT_REGISTERED)?;
        let address = known.start;
        if !known.is_mapped() {
            let memory = format!("memory of {} bytes at {start:p}", known.size);
            world.order.complaints.push(Complaint::Unmapped { memory });
        }
        world.release(address, "the end of a registration")
    })
}

#[unsafe(export_name = "cuMemHostGetDevicePointer_v2")]
pub(super) unsafe extern "C" fn host_address(
    address: *mut CudaAddress,
    start: *mut c_void,
    flags: u32,
) -> u32 {
    enter("cuMemHostGetDevicePointer_v2", |world| {
        let _ordinal = world.current()?;
        let found = world.memory.device_address(start.addr());
        let found = found.filter(|_| flags == 0).ok_or(cuda::INVALID_VALUE)?;
        // SAFETY: the caller passes a place for an address.
        unsafe { put(address, found) }
    })
}

#[unsafe(export_name = "cuPointerGetAttributes")]
pub(super) unsafe extern "C" fn pointer_attributes(
    count: u32,
    attributes: *mut u32,
    places: *mut *mut c_void,
    address: CudaAddress,
) -> u32 {
    enter("cuPointerGetAttributes", |world| {
        // SAFETY: the caller passes two lists of `count` entries.
        let attributes = unsafe { entries(attributes, count as usize) }?;
        // SAFETY: as above.
        let places = unsafe { entries(places, count as usize) }?;
        let known = world.memory.at(address);
        for (attribute, place) in attributes.into_iter().zip(places) {
            let ordinal = known.map(|known| match known.place {
                MemoryPlace::Device(ordinal) | MemoryPlace::Opened(ordinal) => ordinal,
                MemoryPlace::Pinned | MemoryPlace::Registered => u32::MAX,
            });
            let result = match attribute {
                cuda::POINTER_MEMORY_TYPE => {
                    let kind = ordinal.map_or(0, |ordinal| match ordinal {
                        u32::MAX => cuda::MEMORY_TYPE_HOST,
                        _ => cuda::MEMORY_TYPE_DEVICE,
                    });
                    // SAFETY: the place is for a number of this size, as the manual demands for the attribute.
                    unsafe { put(place.cast(), kind) }
                }
                // SAFETY: the caller passes a place for the value of each attribute.
                cuda::POINTER_IS_MANAGED => unsafe {
                    let is_managed =
                        known.is_some_and(|known| world.memory.is_managed(known.start));
                    put(place.cast(), u32::from(is_managed))
                },
                cuda::POINTER_DEVICE_ORDINAL => {
                    let ordinal = ordinal.map_or(-2, |ordinal| i32::try_from(ordinal).unwrap_or(0));
                    // SAFETY: as above.
                    unsafe { put(place.cast(), ordinal) }
                }
                cuda::POINTER_BUFFER_ID => {
                    let buffer = known.map_or(0, |known| known.buffer);
                    // SAFETY: as above.
                    unsafe { put(place.cast(), buffer) }
                }
                cuda::POINTER_RANGE_START => {
                    let start = known.map_or(0, |known| known.start);
                    // SAFETY: as above.
                    unsafe { put(place.cast(), start) }
                }
                cuda::POINTER_RANGE_SIZE => {
                    let size = known.map_or(0, |known| known.size);
                    // SAFETY: as above.
                    unsafe { put(place.cast(), size) }
                }
                _ => Err(cuda::INVALID_VALUE),
            };
            result?;
        }
        Ok(())
    })
}

#[unsafe(export_name = "cuMemGetInfo_v2")]
pub(super) unsafe extern "C" fn memory_info(free: *mut usize, total: *mut usize) -> u32 {
    enter("cuMemGetInfo_v2", |world| {
        let ordinal = world.current()?;
        let used = world
            .memory
            .bytes(|place| place == MemoryPlace::Device(ordinal));
        let all = world.options.device_bytes;
        // SAFETY: the caller passes a place for a number.
        unsafe { put(free, all.saturating_sub(used)) }?;
        // SAFETY: as above.
        unsafe { put(total, all) }
    })
}

#[unsafe(export_name = "cuIpcGetMemHandle")]
pub(super) unsafe extern "C" fn ipc_export(
    handle: *mut CudaIpcHandle,
    address: CudaAddress,
) -> u32 {
    enter("cuIpcGetMemHandle", |world| {
        if !matches!(place_at(world, address)?, MemoryPlace::Device(_)) {
            return Err(cuda::INVALID_VALUE);
        }
        let mut reserved = [0; 64];
        let text = IPC_MARK.into_iter().chain(address.to_le_bytes());
        for (to, from) in reserved.iter_mut().zip(text) {
            *to = from;
        }
        // SAFETY: the caller passes a place for a handle.
        unsafe { put(handle, CudaIpcHandle { reserved }) }
    })
}

#[unsafe(export_name = "cuIpcOpenMemHandle_v2")]
pub(super) unsafe extern "C" fn ipc_open(
    address: *mut CudaAddress,
    handle: CudaIpcHandle,
    flags: u32,
) -> u32 {
    enter("cuIpcOpenMemHandle_v2", |world| {
        let _ordinal = world.current()?;
        if flags != cuda::IPC_LAZY_PEER_ACCESS || address.is_null() {
            return Err(cuda::INVALID_VALUE);
        }
        let marked = handle.reserved.strip_prefix(&IPC_MARK);
        let original = marked.and_then(|rest| rest.first_chunk()).copied();
        let original = original.map(u64::from_le_bytes);
        let opened = world.memory.open(original.ok_or(cuda::INVALID_VALUE)?)?;
        // SAFETY: the caller passes a place for an address.
        unsafe { put(address, opened) }
    })
}

#[unsafe(export_name = "cuIpcCloseMemHandle")]
pub(super) unsafe extern "C" fn ipc_close(address: CudaAddress) -> u32 {
    leave("cuIpcCloseMemHandle", |world| {
        if !matches!(place_at(world, address)?, MemoryPlace::Opened(_)) {
            return Err(cuda::INVALID_VALUE);
        }
        world.release(address, "the close of imported memory")
    })
}
