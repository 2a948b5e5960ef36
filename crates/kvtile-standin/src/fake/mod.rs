//! The functions of the driver. Each checks its arguments as a driver does, and acts on the world.
//!
//! They are exported under the names of the driver, so that the crate can be built as its library.

mod device;
mod library;
mod memory;
mod module;
mod stream;

use crate::options::StandinOptions;
use crate::ptx::PtxEngine;
use crate::world::{DEINITIALIZED, World};
use kvtile_device::{DriverTable, cuda};
use parking_lot::Mutex;
use std::sync::Arc;

/// The driver of this process.
static WORLD: Mutex<Option<World>> = Mutex::new(None);

/// The table of the functions.
pub(crate) fn table() -> DriverTable {
    DriverTable {
        init: device::init,
        driver_version: device::driver_version,
        error_name: device::error_name,
        error_text: device::error_text,
        device_get: device::device_get,
        device_count: device::device_count,
        device_name: device::device_name,
        device_attribute: device::device_attribute,
        device_uuid: device::device_uuid,
        device_bytes: device::device_bytes,
        context_retain: device::context_retain,
        context_release: device::context_release,
        context_set: device::context_set,
        context_get: device::context_get,
        memory_allocate: memory::memory_allocate,
        memory_free: memory::memory_free,
        host_allocate: memory::host_allocate,
        host_free: memory::host_free,
        host_register: memory::host_register,
        host_unregister: memory::host_unregister,
        host_address: memory::host_address,
        pointer_attributes: memory::pointer_attributes,
        memory_info: memory::memory_info,
        stream_create: stream::stream_create,
        stream_destroy: stream::stream_destroy,
        stream_synchronize: stream::stream_synchronize,
        stream_query: stream::stream_query,
        stream_wait: stream::stream_wait,
        stream_context: stream::stream_context,
        event_create: stream::event_create,
        event_destroy: stream::event_destroy,
        event_record: stream::event_record,
        event_query: stream::event_query,
        event_synchronize: stream::event_synchronize,
        copy: stream::copy,
        fill: stream::fill,
        module_load: module::module_load,
        module_unload: module::module_unload,
        module_function: module::module_function,
        function_attribute: module::function_attribute,
        launch: module::launch,
        occupancy: module::occupancy,
        ipc_export: memory::ipc_export,
        ipc_open: memory::ipc_open,
        ipc_close: memory::ipc_close,
        copy_batch_12: Some(stream::copy_batch_12),
        copy_batch: Some(stream::copy_batch),
    }
}

/// Replaces the driver of the process.
pub(crate) fn replace(world: Option<World>) {
    *WORLD.lock() = world;
}

/// Acts on the world as a test, not as a caller of the driver.
pub(crate) fn with_world<T>(act: impl FnOnce(&mut World) -> T) -> Option<T> {
    WORLD.lock().as_mut().map(act)
}

/// One call of the driver.
fn enter(function: &'static str, act: impl FnOnce(&mut World) -> Result<(), u32>) -> u32 {
    let mut world = WORLD.lock();
    let Some(world) = world.as_mut() else {
        return DEINITIALIZED;
    };
    let result = world.begin(function).and_then(|()| act(world));
    result.err().unwrap_or(cuda::SUCCESS)
}

/// A call that releases something. What it names is released even where the call fails, because a caller can do nothing
/// else with it: only what no call names is a leak.
fn leave(function: &'static str, act: impl FnOnce(&mut World) -> Result<(), u32>) -> u32 {
    let mut world = WORLD.lock();
    let Some(world) = world.as_mut() else {
        return DEINITIALIZED;
    };
    let begun = world.begin(function);
    let result = act(world);
    begun.and(result).err().unwrap_or(cuda::SUCCESS)
}

/// Starts the default driver, with an interpreter of kernels, if this process has none: a program that loads the crate as
/// a library has no other way.
fn start_if_absent() {
    let mut world = WORLD.lock();
    world.get_or_insert_with(|| {
        let options = StandinOptions {
            kernels: Some(Arc::new(PtxEngine::new())),
            ..StandinOptions::default()
        };
        World::new(0, options)
    });
}

/// Writes a result to the place of a caller.
///
/// # Safety
///
/// `place` is null or a place for a `T`.
unsafe fn put<T>(place: *mut T, value: T) -> Result<(), u32> {
    if place.is_null() {
        return Err(cuda::INVALID_VALUE);
    }
    // SAFETY: it is not null, so the caller guarantees that it is a place for a `T`.
    unsafe { place.write(value) };
    Ok(())
}

/// The first `count` entries of a list of a caller.
///
/// # Safety
///
/// `list` is null or has `count` entries.
unsafe fn entries<T: Copy>(list: *const T, count: usize) -> Result<Vec<T>, u32> {
    if list.is_null() {
        return Err(cuda::INVALID_VALUE);
    }
    // SAFETY: it is not null, so the caller guarantees that it has `count` entries.
    Ok(unsafe { std::slice::from_raw_parts(list, count) }.to_vec())
}
