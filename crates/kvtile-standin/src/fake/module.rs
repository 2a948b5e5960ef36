//! Modules, kernels and launches.

use super::{enter, entries, leave, put};
use crate::world::{PendingLaunch, StandinFunction, World};
use kvtile_device::cuda::{self, CudaFunction, CudaModule, CudaStream};
use std::ffi::{CStr, c_char, c_void};
use std::sync::Arc;

/// Threads that a multiprocessor of the stand-in holds.
const THREADS: u32 = 2048;

/// Bytes of shared memory of a multiprocessor of the stand-in.
const SHARED_BYTES: usize = 164 << 10;

#[unsafe(export_name = "cuModuleLoadDataEx")]
pub(super) unsafe extern "C" fn module_load(
    module: *mut CudaModule,
    image: *const c_void,
    count: u32,
    options: *mut u32,
    values: *mut *mut c_void,
) -> u32 {
    enter("cuModuleLoadDataEx", |world| {
        let _ordinal = world.current()?;
        if module.is_null() || image.is_null() {
            return Err(cuda::INVALID_VALUE);
        }
        // SAFETY: the caller passes text that ends with zero; the stand-in takes no other images.
        let text = unsafe { CStr::from_ptr(image.cast()) };
        let text = text.to_str().map_err(|_| cuda::INVALID_PTX)?;
        match world.load(text) {
            // SAFETY: the caller passes a place for a handle.
            Ok(handle) => unsafe { put(module, std::ptr::with_exposed_provenance_mut(handle)) },
            Err(refused) => {
                // SAFETY: the caller passes two lists of `count` entries.
                unsafe { write_log(&refused.log, count, options, values) }?;
                Err(refused.code)
            }
        }
    })
}

/// Writes the log of the compiler where the caller has a buffer for it.
///
/// # Safety
///
/// Both lists are null or have `count` entries, which are as the manual demands.
unsafe fn write_log(
    log: &str,
    count: u32,
    options: *mut u32,
    values: *mut *mut c_void,
) -> Result<(), u32> {
    if count == 0 {
        return Ok(());
    }
    // SAFETY: the caller guarantees the count.
    let options = unsafe { entries(options, count as usize) }?;
    // SAFETY: as above.
    let values = unsafe { entries(values, count as usize) }?;
    let value = |wanted: u32| {
        let mut pairs = options.iter().zip(&values);
        pairs.find_map(|(option, value)| (*option == wanted).then_some(*value))
    };
    let buffer = value(cuda::JIT_ERROR_LOG);
    let room = value(cuda::JIT_ERROR_LOG_BYTES).map(|value| value.addr());
    if let (Some(buffer), Some(room)) = (buffer, room) {
        let bytes = log.len().min(room.saturating_sub(1));
        // SAFETY: the buffer has `room` bytes, more than `bytes`.
        unsafe { std::ptr::copy_nonoverlapping(log.as_ptr(), buffer.cast(), bytes) };
    }
    Ok(())
}

#[unsafe(export_name = "cuModuleUnload")]
pub(super) unsafe extern "C" fn module_unload(module: CudaModule) -> u32 {
    leave("cuModuleUnload", |world| world.unload(module.addr()))
}

#[unsafe(export_name = "cuModuleGetFunction")]
pub(super) unsafe extern "C" fn module_function(
    function: *mut CudaFunction,
    module: CudaModule,
    name: *const c_char,
) -> u32 {
    enter("cuModuleGetFunction", |world| {
        if name.is_null() {
            return Err(cuda::INVALID_VALUE);
        }
        // SAFETY: the caller passes a text that ends with zero.
        let name = unsafe { CStr::from_ptr(name) };
        let name = name.to_str().map_err(|_| cuda::NOT_FOUND)?;
        let handle = world.function(module.addr(), name)?;
        // SAFETY: the caller passes a place for a handle.
        unsafe { put(function, std::ptr::with_exposed_provenance_mut(handle)) }
    })
}

fn known(world: &World, function: CudaFunction) -> Result<StandinFunction, u32> {
    let known = world.functions.get(&function.addr());
    known.cloned().ok_or(cuda::INVALID_HANDLE)
}

#[unsafe(export_name = "cuFuncGetAttribute")]
pub(super) unsafe extern "C" fn function_attribute(
    number: *mut i32,
    attribute: u32,
    function: CudaFunction,
) -> u32 {
    enter("cuFuncGetAttribute", |world| {
        let entry = known(world, function)?.entry;
        let value = match attribute {
            cuda::FUNCTION_THREADS_MAX => entry.threads_max,
            cuda::FUNCTION_SHARED_BYTES => entry.shared_bytes,
            // No registers are allocated, and none spilled.
            cuda::FUNCTION_REGISTERS | cuda::FUNCTION_LOCAL_BYTES => 0,
            _ => return Err(cuda::INVALID_VALUE),
        };
        // SAFETY: the caller passes a place for a number.
        unsafe { put(number, i32::try_from(value).unwrap_or(i32::MAX)) }
    })
}

#[unsafe(export_name = "cuOccupancyMaxActiveBlocksPerMultiprocessor")]
pub(super) unsafe extern "C" fn occupancy(
    blocks: *mut i32,
    function: CudaFunction,
    threads: i32,
    shared_bytes: usize,
) -> u32 {
    enter("cuOccupancyMaxActiveBlocksPerMultiprocessor", |world| {
        let entry = known(world, function)?.entry;
        let threads = u32::try_from(threads).unwrap_or(0);
        let by_threads = THREADS.checked_div(threads).ok_or(cuda::INVALID_VALUE)?;
        let shared = shared_bytes.saturating_add(entry.shared_bytes as usize);
        let by_shared = SHARED_BYTES.checked_div(shared).unwrap_or(usize::MAX);
        let count = by_shared.min(by_threads as usize);
        // SAFETY: the caller passes a place for a number.
        unsafe { put(blocks, i32::try_from(count).unwrap_or(i32::MAX)) }
    })
}

#[unsafe(export_name = "cuLaunchKernel")]
pub(super) unsafe extern "C" fn launch(
    function: CudaFunction,
    grid_x: u32,
    grid_y: u32,
    grid_z: u32,
    block_x: u32,
    block_y: u32,
    block_z: u32,
    shared_bytes: u32,
    stream: CudaStream,
    parameters: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> u32 {
    enter("cuLaunchKernel", |world| {
        let handle = world.stream_of(stream.addr())?;
        let function = known(world, function)?;
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        let threads: u64 = block.iter().map(|side| u64::from(*side)).product();
        let is_empty = grid.contains(&0) || threads == 0;
        if is_empty || threads > u64::from(function.entry.threads_max) {
            return Err(cuda::INVALID_VALUE);
        }
        let parameters = match (parameters.is_null(), extra.is_null()) {
            // SAFETY: the caller passes a pointer for each parameter of the kernel.
            (false, true) => unsafe { one_by_one(&function, parameters) }?,
            // SAFETY: the caller passes the list of the manual.
            (true, false) => unsafe { packed(extra) }?,
            (true, true) if function.entry.parameters.is_empty() => Vec::new(),
            _ => return Err(cuda::INVALID_VALUE),
        };
        let needed = function
            .entry
            .parameters
            .iter()
            .map(|range| range.end)
            .max();
        if parameters.len() != needed.unwrap_or(0) {
            return Err(cuda::INVALID_VALUE);
        }
        world.enqueue_launch(
            handle,
            PendingLaunch {
                ptx: Arc::clone(&function.ptx),
                kernel: function.entry.name.as_str().into(),
                grid,
                block,
                shared_bytes,
                parameters,
            },
        );
        Ok(())
    })
}

/// The parameters behind one pointer each.
///
/// # Safety
///
/// `pointers` has a pointer for each parameter, to the bytes of it.
unsafe fn one_by_one(
    function: &StandinFunction,
    pointers: *mut *mut c_void,
) -> Result<Vec<u8>, u32> {
    let ranges = &function.entry.parameters;
    // SAFETY: the caller guarantees the count.
    let pointers = unsafe { entries(pointers, ranges.len()) }?;
    let bytes = ranges.iter().map(|range| range.end).max().unwrap_or(0);
    let mut packed = vec![0; bytes];
    for (range, pointer) in ranges.iter().zip(pointers) {
        // SAFETY: the caller guarantees the bytes of each parameter.
        let value = unsafe { entries(pointer.cast::<u8>(), range.len()) }?;
        if let Some(place) = packed.get_mut(range.clone()) {
            place.copy_from_slice(&value);
        }
    }
    Ok(packed)
}

/// The packed parameters of a list of `extra`.
///
/// # Safety
///
/// `extra` is a list of names and values that ends with `CU_LAUNCH_PARAM_END`.
unsafe fn packed(extra: *mut *mut c_void) -> Result<Vec<u8>, u32> {
    // SAFETY: the caller guarantees the list; a buffer and its size are four entries before the end.
    let list = unsafe { entries(extra, 5) }?;
    let &[first, buffer, second, size, end] = list.as_slice() else {
        return Err(cuda::INVALID_VALUE);
    };
    let names = (first.addr(), second.addr(), end.addr());
    let expected = (
        cuda::LAUNCH_PARAM_BUFFER,
        cuda::LAUNCH_PARAM_BUFFER_SIZE,
        cuda::LAUNCH_PARAM_END,
    );
    if names != expected || size.is_null() {
        return Err(cuda::INVALID_VALUE);
    }
    // SAFETY: the value of the second name is a pointer to the size.
    let bytes = unsafe { size.cast::<usize>().read() };
    // SAFETY: the buffer has so many bytes.
    unsafe { entries(buffer.cast::<u8>(), bytes) }
}
