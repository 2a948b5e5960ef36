//! Streams, events, copies and fills.

use super::{enter, entries, leave, put};
use crate::world::{CopyRequest, StandinEvent, World};
use kvtile_device::cuda::{
    self, CudaAddress, CudaContext, CudaCopyAttributes, CudaEvent, CudaStream,
};

#[unsafe(export_name = "cuStreamCreate")]
pub(super) unsafe extern "C" fn stream_create(stream: *mut CudaStream, flags: u32) -> u32 {
    enter("cuStreamCreate", |world| {
        let ordinal = world.current()?;
        if stream.is_null() || flags & !cuda::STREAM_NON_BLOCKING != 0 {
            return Err(cuda::INVALID_VALUE);
        }
        let handle = world.handle();
        let is_blocking = flags & cuda::STREAM_NON_BLOCKING == 0;
        world.add_stream(handle as u64, ordinal, is_blocking);
        // SAFETY: the caller passes a place for a handle.
        unsafe { put(stream, std::ptr::with_exposed_provenance_mut(handle)) }
    })
}

#[unsafe(export_name = "cuStreamDestroy_v2")]
pub(super) unsafe extern "C" fn stream_destroy(stream: CudaStream) -> u32 {
    leave("cuStreamDestroy_v2", |world| {
        let handle = stream.addr() as u64;
        if stream.addr() <= cuda::STREAM_PER_THREAD {
            return Err(cuda::INVALID_HANDLE);
        }
        // Its work goes on.
        let destroyed = world.streams.remove(&handle);
        destroyed.map(|_| ()).ok_or(cuda::INVALID_HANDLE)
    })
}

#[unsafe(export_name = "cuStreamSynchronize")]
pub(super) unsafe extern "C" fn stream_synchronize(stream: CudaStream) -> u32 {
    enter("cuStreamSynchronize", |world| {
        let handle = world.stream_of(stream.addr())?;
        world.run_until(|world| world.is_idle(handle))
    })
}

#[unsafe(export_name = "cuStreamQuery")]
pub(super) unsafe extern "C" fn stream_query(stream: CudaStream) -> u32 {
    enter("cuStreamQuery", |world| {
        let handle = world.stream_of(stream.addr())?;
        let is_idle = world.is_idle(handle)?;
        is_idle.then_some(()).ok_or(cuda::NOT_READY)
    })
}

#[unsafe(export_name = "cuStreamWaitEvent")]
pub(super) unsafe extern "C" fn stream_wait(
    stream: CudaStream,
    event: CudaEvent,
    flags: u32,
) -> u32 {
    enter("cuStreamWaitEvent", |world| {
        if flags != 0 {
            return Err(cuda::INVALID_VALUE);
        }
        let handle = world.stream_of(stream.addr())?;
        world.wait(handle, event.addr())
    })
}

#[unsafe(export_name = "cuStreamGetCtx")]
pub(super) unsafe extern "C" fn stream_context(
    stream: CudaStream,
    context: *mut CudaContext,
) -> u32 {
    enter("cuStreamGetCtx", |world| {
        let handle = world.stream_of(stream.addr())?;
        let ordinal = world.device_of_stream(handle);
        let of_stream = World::context_of(ordinal.ok_or(cuda::INVALID_HANDLE)?);
        // SAFETY: the caller passes a place for a handle.
        unsafe { put(context, std::ptr::without_provenance_mut(of_stream)) }
    })
}

#[unsafe(export_name = "cuEventCreate")]
pub(super) unsafe extern "C" fn event_create(event: *mut CudaEvent, flags: u32) -> u32 {
    enter("cuEventCreate", |world| {
        let _ordinal = world.current()?;
        if event.is_null() || flags & !7 != 0 {
            return Err(cuda::INVALID_VALUE);
        }
        let handle = world.handle();
        world.events.insert(handle, StandinEvent::default());
        // SAFETY: the caller passes a place for a handle.
        unsafe { put(event, std::ptr::with_exposed_provenance_mut(handle)) }
    })
}

#[unsafe(export_name = "cuEventDestroy_v2")]
pub(super) unsafe extern "C" fn event_destroy(event: CudaEvent) -> u32 {
    leave("cuEventDestroy_v2", |world| {
        let destroyed = world.events.remove(&event.addr());
        destroyed.map(|_| ()).ok_or(cuda::INVALID_HANDLE)
    })
}

#[unsafe(export_name = "cuEventRecord")]
pub(super) unsafe extern "C" fn event_record(event: CudaEvent, stream: CudaStream) -> u32 {
    enter("cuEventRecord", |world| {
        let handle = world.stream_of(stream.addr())?;
        world.record(event.addr(), handle)
    })
}

#[unsafe(export_name = "cuEventQuery")]
pub(super) unsafe extern "C" fn event_query(event: CudaEvent) -> u32 {
    enter("cuEventQuery", |world| {
        let is_passed = world.has_passed(event.addr())?;
        is_passed.then_some(()).ok_or(cuda::NOT_READY)
    })
}

#[unsafe(export_name = "cuEventSynchronize")]
pub(super) unsafe extern "C" fn event_synchronize(event: CudaEvent) -> u32 {
    enter("cuEventSynchronize", |world| {
        world.run_until(|world| world.has_passed(event.addr()))
    })
}

#[unsafe(export_name = "cuMemcpyAsync")]
pub(super) unsafe extern "C" fn copy(
    to: CudaAddress,
    from: CudaAddress,
    bytes: usize,
    stream: CudaStream,
) -> u32 {
    enter("cuMemcpyAsync", |world| {
        let handle = world.stream_of(stream.addr())?;
        world.copy(handle, CopyRequest { to, from, bytes })
    })
}

#[unsafe(export_name = "cuMemsetD8Async")]
pub(super) unsafe extern "C" fn fill(
    to: CudaAddress,
    value: u8,
    bytes: usize,
    stream: CudaStream,
) -> u32 {
    enter("cuMemsetD8Async", |world| {
        let handle = world.stream_of(stream.addr())?;
        world.fill(handle, to, value, bytes)
    })
}

/// The lists of a batch, as its caller passes them.
#[derive(Clone, Copy)]
struct BatchLists {
    to: *mut CudaAddress,
    from: *mut CudaAddress,
    bytes: *mut usize,
    count: usize,
    attributes: *mut CudaCopyAttributes,
    firsts: *mut usize,
    sets: usize,
}

/// One batch of both forms.
///
/// # Safety
///
/// The lists have as many entries as the counts state.
unsafe fn batch(world: &mut World, lists: BatchLists, stream: CudaStream) -> Result<(), u32> {
    let handle = world.stream_of(stream.addr())?;
    // SAFETY: our caller guarantees the counts.
    let to = unsafe { entries(lists.to, lists.count) }?;
    // SAFETY: as above.
    let from = unsafe { entries(lists.from, lists.count) }?;
    // SAFETY: as above.
    let bytes = unsafe { entries(lists.bytes, lists.count) }?;
    // SAFETY: as above.
    let attributes = unsafe { entries(lists.attributes, lists.sets) }?;
    // SAFETY: as above.
    let firsts = unsafe { entries(lists.firsts, lists.sets) }?;
    // The stand-in takes one set of attributes for all copies.
    let (&[attributes], &[0]) = (attributes.as_slice(), firsts.as_slice()) else {
        return Err(cuda::INVALID_VALUE);
    };
    let ends = to.into_iter().zip(from).zip(bytes);
    let copies: Vec<CopyRequest> = ends
        .map(|((to, from), bytes)| CopyRequest { to, from, bytes })
        .collect();
    world.copy_batch(handle, &copies, attributes.source_order)
}

#[unsafe(export_name = "cuMemcpyBatchAsync")]
pub(super) unsafe extern "C" fn copy_batch_12(
    to: *mut CudaAddress,
    from: *mut CudaAddress,
    bytes: *mut usize,
    count: usize,
    attributes: *mut CudaCopyAttributes,
    firsts: *mut usize,
    sets: usize,
    failed: *mut usize,
    stream: CudaStream,
) -> u32 {
    enter("cuMemcpyBatchAsync", |world| {
        let lists = BatchLists {
            to,
            from,
            bytes,
            count,
            attributes,
            firsts,
            sets,
        };
        // SAFETY: the caller passes a place for an index.
        unsafe { put(failed, usize::MAX) }?;
        // SAFETY: the caller passes lists of these sizes.
        unsafe { batch(world, lists, stream) }
    })
}

#[unsafe(export_name = "cuMemcpyBatchAsync_v2")]
pub(super) unsafe extern "C" fn copy_batch(
    to: *mut CudaAddress,
    from: *mut CudaAddress,
    bytes: *mut usize,
    count: usize,
    attributes: *mut CudaCopyAttributes,
    firsts: *mut usize,
    sets: usize,
    stream: CudaStream,
) -> u32 {
    enter("cuMemcpyBatchAsync_v2", |world| {
        let lists = BatchLists {
            to,
            from,
            bytes,
            count,
            attributes,
            firsts,
            sets,
        };
        // SAFETY: the caller passes lists of these sizes.
        unsafe { batch(world, lists, stream) }
    })
}
