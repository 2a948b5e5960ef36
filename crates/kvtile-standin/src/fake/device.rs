//! Initialisation, errors, devices and contexts.

use super::{enter, leave, put, start_if_absent};
use crate::world::World;
use kvtile_device::cuda::{self, CudaContext, CudaDevice, CudaUuid};
use std::ffi::{CStr, c_char};

/// Names of errors that the stand-in returns.
const NAMES: [(u32, &CStr); 25] = [
    (0, c"CUDA_SUCCESS"),
    (1, c"CUDA_ERROR_INVALID_VALUE"),
    (2, c"CUDA_ERROR_OUT_OF_MEMORY"),
    (3, c"CUDA_ERROR_NOT_INITIALIZED"),
    (4, c"CUDA_ERROR_DEINITIALIZED"),
    (100, c"CUDA_ERROR_NO_DEVICE"),
    (101, c"CUDA_ERROR_INVALID_DEVICE"),
    (201, c"CUDA_ERROR_INVALID_CONTEXT"),
    (214, c"CUDA_ERROR_ECC_UNCORRECTABLE"),
    (218, c"CUDA_ERROR_INVALID_PTX"),
    (221, c"CUDA_ERROR_JIT_COMPILER_NOT_FOUND"),
    (222, c"CUDA_ERROR_UNSUPPORTED_PTX_VERSION"),
    (304, c"CUDA_ERROR_OPERATING_SYSTEM"),
    (400, c"CUDA_ERROR_INVALID_HANDLE"),
    (500, c"CUDA_ERROR_NOT_FOUND"),
    (600, c"CUDA_ERROR_NOT_READY"),
    (700, c"CUDA_ERROR_ILLEGAL_ADDRESS"),
    (702, c"CUDA_ERROR_LAUNCH_TIMEOUT"),
    (712, c"CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED"),
    (713, c"CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED"),
    (715, c"CUDA_ERROR_ILLEGAL_INSTRUCTION"),
    (716, c"CUDA_ERROR_MISALIGNED_ADDRESS"),
    (719, c"CUDA_ERROR_LAUNCH_FAILED"),
    (801, c"CUDA_ERROR_NOT_SUPPORTED"),
    (999, c"CUDA_ERROR_UNKNOWN"),
];

/// The name of every device.
const NAME: &CStr = c"kvtile stand-in, no hardware";

#[unsafe(export_name = "cuInit")]
pub(super) unsafe extern "C" fn init(flags: u32) -> u32 {
    start_if_absent();
    enter("cuInit", |world| {
        if flags != 0 {
            return Err(cuda::INVALID_VALUE);
        }
        world.initialise()
    })
}

#[unsafe(export_name = "cuDriverGetVersion")]
pub(super) unsafe extern "C" fn driver_version(version: *mut i32) -> u32 {
    start_if_absent();
    enter("cuDriverGetVersion", |world| {
        // SAFETY: the caller passes a place for a number.
        unsafe { put(version, world.options.version) }
    })
}

#[unsafe(export_name = "cuGetErrorName")]
pub(super) unsafe extern "C" fn error_name(error: u32, name: *mut *const c_char) -> u32 {
    enter("cuGetErrorName", |_| {
        let known = NAMES.iter().find(|(code, _)| *code == error);
        let (_, text) = known.ok_or(cuda::INVALID_VALUE)?;
        // SAFETY: the caller passes a place for a pointer.
        unsafe { put(name, text.as_ptr()) }
    })
}

#[unsafe(export_name = "cuGetErrorString")]
pub(super) unsafe extern "C" fn error_text(error: u32, text: *mut *const c_char) -> u32 {
    enter("cuGetErrorString", |_| {
        let known = NAMES.iter().any(|(code, _)| *code == error);
        let description = known.then_some(c"an error of the stand-in");
        let description = description.ok_or(cuda::INVALID_VALUE)?;
        // SAFETY: the caller passes a place for a pointer.
        unsafe { put(text, description.as_ptr()) }
    })
}

/// The ordinal of a handle of a device, which is the same number.
fn ordinal_of(world: &World, device: CudaDevice) -> Result<u32, u32> {
    let ordinal = u32::try_from(device).map_err(|_| cuda::INVALID_DEVICE)?;
    let exists = ordinal < world.options.devices;
    exists.then_some(ordinal).ok_or(cuda::INVALID_DEVICE)
}

#[unsafe(export_name = "cuDeviceGet")]
pub(super) unsafe extern "C" fn device_get(device: *mut CudaDevice, ordinal: i32) -> u32 {
    enter("cuDeviceGet", |world| {
        let _exists = ordinal_of(world, ordinal)?;
        // SAFETY: the caller passes a place for a handle.
        unsafe { put(device, ordinal) }
    })
}

#[unsafe(export_name = "cuDeviceGetCount")]
pub(super) unsafe extern "C" fn device_count(count: *mut i32) -> u32 {
    enter("cuDeviceGetCount", |world| {
        let devices = i32::try_from(world.options.devices).unwrap_or(i32::MAX);
        // SAFETY: the caller passes a place for a number.
        unsafe { put(count, devices) }
    })
}

#[unsafe(export_name = "cuDeviceGetName")]
pub(super) unsafe extern "C" fn device_name(
    name: *mut c_char,
    room: i32,
    device: CudaDevice,
) -> u32 {
    enter("cuDeviceGetName", |world| {
        let _exists = ordinal_of(world, device)?;
        let text = NAME.to_bytes_with_nul();
        let room = usize::try_from(room).map_err(|_| cuda::INVALID_VALUE)?;
        if name.is_null() || room < text.len() {
            return Err(cuda::INVALID_VALUE);
        }
        // SAFETY: the caller passes a place for `room` bytes, which are enough.
        unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), name.cast(), text.len()) };
        Ok(())
    })
}

#[unsafe(export_name = "cuDeviceGetAttribute")]
pub(super) unsafe extern "C" fn device_attribute(
    number: *mut i32,
    attribute: u32,
    device: CudaDevice,
) -> u32 {
    enter("cuDeviceGetAttribute", |world| {
        let _exists = ordinal_of(world, device)?;
        let value = match attribute {
            cuda::ATTRIBUTE_MULTIPROCESSORS => 4,
            cuda::ATTRIBUTE_COPY_ENGINES => 2,
            cuda::ATTRIBUTE_UNIFIED_ADDRESSING => 1,
            cuda::ATTRIBUTE_CAPABILITY_MAJOR => 8,
            cuda::ATTRIBUTE_CAPABILITY_MINOR => 0,
            _ => return Err(cuda::INVALID_VALUE),
        };
        // SAFETY: the caller passes a place for a number.
        unsafe { put(number, value) }
    })
}

#[unsafe(export_name = "cuDeviceGetUuid_v2")]
pub(super) unsafe extern "C" fn device_uuid(uuid: *mut CudaUuid, device: CudaDevice) -> u32 {
    enter("cuDeviceGetUuid_v2", |world| {
        let ordinal = ordinal_of(world, device)?;
        let mut bytes = *b"kvtile stand-in\0";
        if let Some(last) = bytes.last_mut() {
            *last = u8::try_from(ordinal).unwrap_or(u8::MAX);
        }
        // SAFETY: the caller passes a place for an identity.
        unsafe { put(uuid, CudaUuid { bytes }) }
    })
}

#[unsafe(export_name = "cuDeviceTotalMem_v2")]
pub(super) unsafe extern "C" fn device_bytes(bytes: *mut usize, device: CudaDevice) -> u32 {
    enter("cuDeviceTotalMem_v2", |world| {
        let _exists = ordinal_of(world, device)?;
        // SAFETY: the caller passes a place for a number.
        unsafe { put(bytes, world.options.device_bytes) }
    })
}

#[unsafe(export_name = "cuDevicePrimaryCtxRetain")]
pub(super) unsafe extern "C" fn context_retain(
    context: *mut CudaContext,
    device: CudaDevice,
) -> u32 {
    enter("cuDevicePrimaryCtxRetain", |world| {
        let ordinal = ordinal_of(world, device)?;
        let handle = std::ptr::without_provenance_mut(World::context_of(ordinal));
        // SAFETY: the caller passes a place for a handle.
        unsafe { put(context, handle) }?;
        let count = world.contexts.get_mut(ordinal as usize);
        *count.ok_or(cuda::INVALID_DEVICE)? += 1;
        Ok(())
    })
}

#[unsafe(export_name = "cuDevicePrimaryCtxRelease_v2")]
pub(super) unsafe extern "C" fn context_release(device: CudaDevice) -> u32 {
    leave("cuDevicePrimaryCtxRelease_v2", |world| {
        let ordinal = ordinal_of(world, device)?;
        let count = world.contexts.get_mut(ordinal as usize);
        let count = count.filter(|count| **count > 0);
        *count.ok_or(cuda::INVALID_CONTEXT)? -= 1;
        Ok(())
    })
}

#[unsafe(export_name = "cuCtxSetCurrent")]
pub(super) unsafe extern "C" fn context_set(context: CudaContext) -> u32 {
    enter("cuCtxSetCurrent", |world| world.set_current(context.addr()))
}

#[unsafe(export_name = "cuCtxGetCurrent")]
pub(super) unsafe extern "C" fn context_get(context: *mut CudaContext) -> u32 {
    enter("cuCtxGetCurrent", |world| {
        let current = std::ptr::without_provenance_mut(world.current_context());
        // SAFETY: the caller passes a place for a handle.
        unsafe { put(context, current) }
    })
}
