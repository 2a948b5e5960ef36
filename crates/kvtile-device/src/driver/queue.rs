//! Queues: work that a device does in order, beside the work of other queues.

use super::context::{Device, DriverHandle};
use super::cuda::{self, CudaAddress, CudaCopyAttributes};
use super::error::DeviceError;
use super::mark::DeviceMark;
use super::module::{DeviceKernel, LaunchShape};
use std::ffi::c_void;
use std::fmt;
use std::sync::Arc;

/// Work that a device does in the order in which it was enqueued.
///
/// Clones are the same queue. A queue that [`Device::queue`] made has no order with any other stream of the process,
/// the default stream included; its stream is destroyed with the last clone, and its work goes on.
#[derive(Clone)]
pub struct DeviceQueue {
    stream: Arc<QueueStream>,
}

/// A stream and, if this process made it here, its end.
struct QueueStream {
    device: Device,
    stream: DriverHandle,
    is_owned: bool,
}

/// When the copies of a batch may read their sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceOrder {
    /// In the order of the queue: after all work before the batch.
    Queue,
    /// At any time from the call on. Only for sources that nothing changes, in the queue or outside of it.
    Any,
}

/// How a batch was given to the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchRoute {
    /// One call for all copies.
    OneCall,
    /// One call for each copy: the driver is older than 12.8, or the queue is the legacy default stream, for which
    /// drivers refuse batches.
    OneByOne,
}

/// Copies of contiguous bytes, in the three lists that the driver takes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CopyBatch {
    destinations: Vec<CudaAddress>,
    sources: Vec<CudaAddress>,
    sizes: Vec<usize>,
}

impl CopyBatch {
    /// No copies, with room for `count`.
    #[must_use]
    pub fn with_capacity(count: usize) -> CopyBatch {
        CopyBatch {
            destinations: Vec::with_capacity(count),
            sources: Vec::with_capacity(count),
            sizes: Vec::with_capacity(count),
        }
    }

    /// Adds a copy of `bytes` bytes. A copy of no bytes is left out: drivers refuse it.
    pub fn push(&mut self, destination: CudaAddress, source: CudaAddress, bytes: usize) {
        if bytes > 0 {
            self.destinations.push(destination);
            self.sources.push(source);
            self.sizes.push(bytes);
        }
    }

    /// How many copies there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sizes.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sizes.is_empty()
    }

    /// Bytes of all copies.
    #[must_use]
    pub fn bytes(&self) -> u128 {
        self.sizes.iter().map(|size| *size as u128).sum()
    }

    /// Removes all copies and keeps the room.
    pub fn clear(&mut self) {
        self.destinations.clear();
        self.sources.clear();
        self.sizes.clear();
    }

    /// Destination, source and size of each copy.
    pub fn copies(&self) -> impl Iterator<Item = (CudaAddress, CudaAddress, usize)> + '_ {
        let addresses = self.destinations.iter().zip(&self.sources);
        addresses
            .zip(&self.sizes)
            .map(|((destination, source), size)| (*destination, *source, *size))
    }
}

impl Device {
    /// A new queue.
    ///
    /// # Errors
    ///
    /// The driver's error, [`DeviceError::Lost`], [`DeviceError::Forked`].
    pub fn queue(&self) -> Result<DeviceQueue, DeviceError> {
        let mut stream = std::ptr::null_mut();
        let facts = format_args!("a stream without order with others");
        self.shared.call("cuStreamCreate", facts, |table| {
            // SAFETY: `stream` is a place for one handle, and a context is current.
            unsafe { (table.stream_create)(&raw mut stream, cuda::STREAM_NON_BLOCKING) }
        })?;
        Ok(DeviceQueue::new(self, stream, true))
    }

    /// The queue of a stream that an engine made; 0 and 1 are the legacy default stream.
    ///
    /// # Errors
    ///
    /// [`DeviceError::ForeignStream`] if it belongs to another context than the primary context of this device,
    /// [`DeviceError::InvalidArgument`] for the stream of each thread (2), which means another stream on the threads
    /// of kvtile; the driver's error, [`DeviceError::Lost`], [`DeviceError::Forked`].
    ///
    /// # Safety
    ///
    /// `stream` is 0, 1, or a stream that lives as long as the queue and its clones.
    pub unsafe fn adopt_queue(&self, stream: usize) -> Result<DeviceQueue, DeviceError> {
        if stream == cuda::STREAM_PER_THREAD {
            return Err(DeviceError::InvalidArgument {
                call: "cuStreamGetCtx",
                facts: "the default stream of each thread: pass a stream of your own".to_owned(),
            });
        }
        // SAFETY: passed on to the caller.
        unsafe { self.queue_of(stream) }
    }

    /// A mark behind all that is in `stream` now: the handle of a stream of the caller, 0 or 1 for the legacy default
    /// stream, 2 for the default stream of the calling thread.
    ///
    /// # Errors
    ///
    /// [`DeviceError::ForeignStream`] if it belongs to another context than the primary context of this device; the
    /// driver's error, [`DeviceError::Lost`], [`DeviceError::Forked`].
    ///
    /// # Safety
    ///
    /// `stream` is 0, 1, 2, or a stream that lives during the call.
    pub unsafe fn mark_behind(&self, stream: usize) -> Result<DeviceMark, DeviceError> {
        // SAFETY: guaranteed by the caller; the queue ends with the call, and stays on this thread.
        unsafe { self.queue_of(stream) }?.record()
    }

    /// Lets all work that is enqueued on `stream` from now on wait until `mark` is passed, as [`DeviceQueue::wait`].
    /// `stream` is as for [`Device::mark_behind`].
    ///
    /// # Errors
    ///
    /// As [`Device::mark_behind`].
    ///
    /// # Safety
    ///
    /// As [`Device::mark_behind`].
    pub unsafe fn let_wait(&self, stream: usize, mark: &DeviceMark) -> Result<(), DeviceError> {
        // SAFETY: guaranteed by the caller; the queue ends with the call, and stays on this thread.
        unsafe { self.queue_of(stream) }?.wait(mark)
    }

    /// The queue of a stream of this device's primary context.
    ///
    /// # Safety
    ///
    /// `stream` is 0, 1, or a stream that lives as long as the queue and its clones; or 2, and the queue stays on this
    /// thread.
    unsafe fn queue_of(&self, stream: usize) -> Result<DeviceQueue, DeviceError> {
        let handle: *mut c_void = std::ptr::with_exposed_provenance_mut(stream);
        if stream > cuda::STREAM_PER_THREAD {
            let mut context = std::ptr::null_mut();
            let facts = format_args!("stream {stream:#x}");
            self.shared.call("cuStreamGetCtx", facts, |table| {
                // SAFETY: the caller guarantees that the stream lives; `context` is a place for one handle.
                unsafe { (table.stream_context)(handle, &raw mut context) }
            })?;
            if DriverHandle(context) != self.shared.context() {
                return Err(DeviceError::ForeignStream {
                    stream,
                    ordinal: self.ordinal(),
                });
            }
        }
        Ok(DeviceQueue::new(self, handle, false))
    }
}

impl DeviceQueue {
    fn new(device: &Device, stream: *mut c_void, is_owned: bool) -> DeviceQueue {
        DeviceQueue {
            stream: Arc::new(QueueStream {
                device: device.clone(),
                stream: DriverHandle(stream),
                is_owned,
            }),
        }
    }

    /// Its device.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.stream.device
    }

    /// The stream, for a caller that enqueues work of its own. It is valid as long as the queue lives.
    #[must_use]
    pub fn as_raw(&self) -> usize {
        self.handle().0.expose_provenance()
    }

    /// Whether it is the legacy default stream, which has an order with most other streams.
    #[must_use]
    pub fn is_legacy(&self) -> bool {
        self.as_raw() <= cuda::STREAM_LEGACY
    }

    fn handle(&self) -> DriverHandle {
        self.stream.stream
    }

    /// A mark behind all work that was enqueued so far.
    ///
    /// # Errors
    ///
    /// The driver's error, [`DeviceError::Lost`], [`DeviceError::Forked`].
    pub fn record(&self) -> Result<DeviceMark, DeviceError> {
        let mark = DeviceMark::take(self.device())?;
        let (event, stream) = (mark.handle(), self.handle());
        let facts = format_args!("{self:?}");
        self.device().shared.call("cuEventRecord", facts, |table| {
            // SAFETY: both handles live, and belong to the context that is current.
            unsafe { (table.event_record)(event.0, stream.0) }
        })?;
        Ok(mark)
    }

    /// Lets all work that is enqueued from now on wait until `mark` is passed. The host does not wait. The mark may be
    /// of another device.
    ///
    /// # Errors
    ///
    /// The driver's error, [`DeviceError::Lost`], [`DeviceError::Forked`].
    pub fn wait(&self, mark: &DeviceMark) -> Result<(), DeviceError> {
        let (event, stream) = (mark.handle(), self.handle());
        let facts = format_args!("{self:?} and {mark:?}");
        let shared = &self.device().shared;
        shared.call("cuStreamWaitEvent", facts, |table| {
            // SAFETY: both handles live; the flags must be 0.
            unsafe { (table.stream_wait)(stream.0, event.0, 0) }
        })
    }

    /// Waits until all work has ended. Its effects are then visible to this process.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Lost`] if the device failed, the driver's error, [`DeviceError::Forked`].
    pub fn synchronize(&self) -> Result<(), DeviceError> {
        let stream = self.handle();
        let shared = &self.device().shared;
        shared.call("cuStreamSynchronize", format_args!("{self:?}"), |table| {
            // SAFETY: the stream lives.
            unsafe { (table.stream_synchronize)(stream.0) }
        })
    }

    /// Whether all work has ended.
    ///
    /// # Errors
    ///
    /// As [`DeviceQueue::synchronize`].
    pub fn is_idle(&self) -> Result<bool, DeviceError> {
        let stream = self.handle();
        let shared = &self.device().shared;
        shared.query("cuStreamQuery", format_args!("{self:?}"), |table| {
            // SAFETY: the stream lives.
            unsafe { (table.stream_query)(stream.0) }
        })
    }

    /// Enqueues a copy of `bytes` bytes, at least one. The addresses are those by which devices reach the memory.
    ///
    /// # Errors
    ///
    /// The driver's error, [`DeviceError::Lost`], [`DeviceError::Forked`].
    ///
    /// # Safety
    ///
    /// Until a mark behind the copy is passed, both ranges stay allocated, pinned where they are host memory, and
    /// inside one allocation or registered piece each, no other access conflicts with the copy, and they do not
    /// overlap. This holds after an error too, until the queue is idle or the device is lost.
    pub unsafe fn copy(
        &self,
        destination: CudaAddress,
        source: CudaAddress,
        bytes: usize,
    ) -> Result<(), DeviceError> {
        let stream = self.handle();
        let facts = format_args!("{bytes} bytes from {source:#x} to {destination:#x} on {self:?}");
        self.device().shared.call("cuMemcpyAsync", facts, |table| {
            // SAFETY: the caller guarantees the ranges; the stream lives.
            unsafe { (table.copy)(destination, source, bytes, stream.0) }
        })
    }

    /// Enqueues all copies of `batch`, which the device may do in any order among each other.
    ///
    /// # Errors
    ///
    /// As [`DeviceQueue::copy`]. After an error any number of the copies may have been enqueued.
    ///
    /// # Safety
    ///
    /// As [`DeviceQueue::copy`], for each copy; no destination overlaps another destination or source of the batch.
    /// For [`SourceOrder::Any`], nothing that was enqueued before changes a source.
    pub unsafe fn copy_batch(
        &self,
        batch: &mut CopyBatch,
        order: SourceOrder,
    ) -> Result<BatchRoute, DeviceError> {
        let table = &self.device().shared.calls.table;
        let is_plain = self.is_legacy() || batch.len() < 2;
        let one_call = match (table.copy_batch, table.copy_batch_12) {
            (None, None) => false,
            _ => !is_plain,
        };
        if !one_call {
            for (destination, source, bytes) in batch.copies() {
                // SAFETY: our caller guarantees the same for each copy.
                unsafe { self.copy(destination, source, bytes) }?;
            }
            return Ok(BatchRoute::OneByOne);
        }
        // SAFETY: our caller guarantees the same.
        unsafe { self.copy_in_one_call(batch, order) }?;
        Ok(BatchRoute::OneCall)
    }

    /// The table must have a function for batches.
    ///
    /// # Safety
    ///
    /// As [`DeviceQueue::copy_batch`].
    unsafe fn copy_in_one_call(
        &self,
        batch: &mut CopyBatch,
        order: SourceOrder,
    ) -> Result<(), DeviceError> {
        let stream = self.handle();
        let mut attributes = CudaCopyAttributes {
            source_order: match order {
                SourceOrder::Queue => cuda::SOURCE_ORDER_STREAM,
                SourceOrder::Any => cuda::SOURCE_ORDER_ANY,
            },
            ..CudaCopyAttributes::default()
        };
        // One set of attributes, from the first copy on.
        let (mut first, mut failed) = (0_usize, usize::MAX);
        let (count, bytes) = (batch.len(), batch.bytes());
        let destinations = batch.destinations.as_mut_ptr();
        let sources = batch.sources.as_mut_ptr();
        let sizes = batch.sizes.as_mut_ptr();
        let (attributes, first) = (&raw mut attributes, &raw mut first);
        let facts = format_args!("{count} copies of {bytes} bytes together on {self:?}");
        let shared = &self.device().shared;
        if let Some(copy) = shared.calls.table.copy_batch {
            return shared.call("cuMemcpyBatchAsync_v2", facts, |_| {
                // SAFETY: the three lists have `count` entries, `attributes` and `first` one each, and all outlive the
                // call; the caller guarantees the ranges.
                unsafe {
                    copy(
                        destinations,
                        sources,
                        sizes,
                        count,
                        attributes,
                        first,
                        1,
                        stream.0,
                    )
                }
            });
        }
        let failed = &raw mut failed;
        shared.call("cuMemcpyBatchAsync", facts, |table| {
            table.copy_batch_12.map_or(cuda::NOT_FOUND, |copy| {
                // SAFETY: as above; `failed` is a place for one index.
                unsafe {
                    copy(
                        destinations,
                        sources,
                        sizes,
                        count,
                        attributes,
                        first,
                        1,
                        failed,
                        stream.0,
                    )
                }
            })
        })
    }

    /// Enqueues the fill of `bytes` bytes with `value`.
    ///
    /// # Errors
    ///
    /// The driver's error, [`DeviceError::Lost`], [`DeviceError::Forked`].
    ///
    /// # Safety
    ///
    /// As [`DeviceQueue::copy`], for the destination.
    pub unsafe fn fill(
        &self,
        destination: CudaAddress,
        value: u8,
        bytes: usize,
    ) -> Result<(), DeviceError> {
        let stream = self.handle();
        let facts = format_args!("{bytes} bytes at {destination:#x} on {self:?}");
        self.device()
            .shared
            .call("cuMemsetD8Async", facts, |table| {
                // SAFETY: the caller guarantees the range; the stream lives.
                unsafe { (table.fill)(destination, value, bytes, stream.0) }
            })
    }

    /// Enqueues a kernel. `parameters` are the bytes of all its parameters, each at its alignment.
    ///
    /// # Errors
    ///
    /// [`DeviceError::InvalidArgument`] if the kernel is of another device; the driver's error,
    /// [`DeviceError::Lost`], [`DeviceError::Forked`].
    ///
    /// # Safety
    ///
    /// The parameters are those of the kernel, what it reads and writes with them is as in [`DeviceQueue::copy`], and
    /// the kernel lives until a mark behind the launch is passed.
    pub unsafe fn launch(
        &self,
        kernel: &DeviceKernel,
        shape: LaunchShape,
        parameters: &[u8],
    ) -> Result<(), DeviceError> {
        if !Arc::ptr_eq(&kernel.device().shared, &self.device().shared) {
            return Err(DeviceError::InvalidArgument {
                call: "cuLaunchKernel",
                facts: format!("a kernel of {:?} on {self:?}", kernel.device()),
            });
        }
        let (function, stream) = (kernel.handle(), self.handle());
        let mut size = parameters.len();
        let word = std::ptr::without_provenance_mut::<c_void>;
        let mut extra = [
            word(cuda::LAUNCH_PARAM_BUFFER),
            parameters.as_ptr().cast_mut().cast::<c_void>(),
            word(cuda::LAUNCH_PARAM_BUFFER_SIZE),
            (&raw mut size).cast::<c_void>(),
            word(cuda::LAUNCH_PARAM_END),
        ];
        let (grid, block) = (shape.grid, shape.block);
        let facts =
            format_args!("{kernel:?} as {shape:?} with {size} bytes of parameters on {self:?}");
        self.device().shared.call("cuLaunchKernel", facts, |table| {
            // SAFETY: `extra` names the buffer of `size` bytes, which the driver reads during the call; the caller
            // guarantees that they are the kernel's parameters, and what it accesses. All handles live.
            unsafe {
                (table.launch)(
                    function.0,
                    grid[0],
                    grid[1],
                    grid[2],
                    block[0],
                    block[1],
                    block[2],
                    shape.shared_bytes,
                    stream.0,
                    std::ptr::null_mut(),
                    extra.as_mut_ptr(),
                )
            }
        })
    }
}

impl Drop for QueueStream {
    fn drop(&mut self) {
        if self.is_owned {
            let stream = self.stream;
            // SAFETY: this process made the stream, and this is its last user.
            self.device
                .shared
                .release(|table| unsafe { (table.stream_destroy)(stream.0) });
        }
    }
}

impl fmt::Debug for DeviceQueue {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "stream {:p} of {:?}",
            self.handle().0,
            self.device()
        )
    }
}
