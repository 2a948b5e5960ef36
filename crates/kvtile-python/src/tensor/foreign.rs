//! Foreign memory and structures, through their addresses: the only unsafe code of this crate.
//!
//! It reads the structures of DLPack and of the buffer protocol, and makes regions from their
//! addresses. It trusts these structures, as every user of the protocols does. Its callers check
//! that the numbers are consistent.

use std::{
    ffi::{c_int, c_void},
    ptr::NonNull,
    sync::Arc,
};

use kvtile::{
    device::{Device, DeviceError, DeviceMark, ImportedMemory},
    layout::{OwnedMemoryRegion, StorageKind},
    memory::BorrowedMemory,
    transfer::TransferError,
};
use pyo3::{
    ffi,
    prelude::*,
    types::{PyCapsule, PyCapsuleMethods},
};

use super::{AddressRange, ForeignTensor, dlpack::broken};

/// The maximum number of dimensions of a tensor.
const DIMENSIONS_MAX: i32 = 16;

/// The bit of `flags` that marks a read-only tensor.
const READ_ONLY: u64 = 1;

/// `DLTensor` of dlpack.h.
#[derive(Clone, Copy)]
#[repr(C)]
struct RawTensor {
    data: *mut c_void,
    device_type: i32,
    device_id: i32,
    ndim: i32,
    code: u8,
    bits: u8,
    lanes: u16,
    shape: *const i64,
    strides: *const i64,
    byte_offset: u64,
}

/// The beginning of `DLManagedTensorVersioned` of dlpack.h; its last field is the tensor.
#[derive(Clone, Copy)]
#[repr(C)]
struct RawVersioned {
    major: u32,
    minor: u32,
    manager_ctx: *mut c_void,
    deleter: *mut c_void,
    flags: u64,
    tensor: RawTensor,
}

/// A DLPack tensor without pointers.
#[derive(Debug)]
pub(super) struct DlTensor {
    /// Address of the first element.
    pub(super) address: usize,
    /// Type and number of the device.
    pub(super) device: (i32, i32),
    /// The type code of its values.
    pub(super) code: u8,
    /// Bits per value.
    pub(super) bits: u8,
    /// Values per element.
    pub(super) lanes: u16,
    /// Entries of each dimension.
    pub(super) sizes: Vec<i64>,
    /// Strides in elements; `None` for tensors without gaps.
    pub(super) strides: Option<Vec<i64>>,
}

/// The contents of a capsule.
#[derive(Debug)]
pub(super) struct ExportedTensor {
    pub(super) tensor: DlTensor,
    pub(super) read_only: bool,
}

/// Reads a capsule of either version without consuming it.
pub(super) fn read_capsule(capsule: &Bound<'_, PyCapsule>) -> PyResult<ExportedTensor> {
    if capsule.is_valid_checked(Some(c"dltensor")) {
        let pointer = capsule
            .pointer_checked(Some(c"dltensor"))?
            .cast::<RawTensor>();
        // SAFETY: a capsule of this name holds a `DLManagedTensor`, which begins with its
        // `DLTensor` and lives as long as the capsule, which is held here; no other thread writes
        // it during the read, because this thread has the interpreter.
        let raw = unsafe { pointer.read() };
        let tensor = tensor_of(&raw)?;
        let read_only = false;
        return Ok(ExportedTensor { tensor, read_only });
    }
    let pointer = capsule.pointer_checked(Some(c"dltensor_versioned"))?;
    // SAFETY: as above; every version begins with two numbers of 32 bits, the version.
    let major = unsafe { pointer.cast::<u32>().read() };
    if major != 1 {
        return Err(broken(&format!(
            "is of version {major}; kvtile reads version 1"
        )));
    }
    // SAFETY: as above; with this major version the structure begins with these fields.
    let raw = unsafe { pointer.cast::<RawVersioned>().read() };
    Ok(ExportedTensor {
        tensor: tensor_of(&raw.tensor)?,
        read_only: raw.flags & READ_ONLY != 0,
    })
}

fn tensor_of(raw: &RawTensor) -> PyResult<DlTensor> {
    if !(0..=DIMENSIONS_MAX).contains(&raw.ndim) {
        return Err(broken(&format!("has {} dimensions", raw.ndim)));
    }
    let length = usize::try_from(raw.ndim).unwrap_or_default();
    let numbers = |pointer: *const i64| -> Option<Vec<i64>> {
        if pointer.is_null() {
            return (length == 0).then(Vec::new);
        }
        // SAFETY: DLPack specifies that shape and strides, if present, have `ndim` numbers each,
        // which was checked to be small, and that they live as long as the capsule.
        let numbers = unsafe { std::slice::from_raw_parts(pointer, length) };
        Some(numbers.to_vec())
    };
    let offset = usize::try_from(raw.byte_offset).ok();
    let address = offset.and_then(|offset| raw.data.expose_provenance().checked_add(offset));
    let (Some(sizes), Some(address)) = (numbers(raw.shape), address) else {
        return Err(broken("has no shape or no address"));
    };
    Ok(DlTensor {
        address,
        device: (raw.device_type, raw.device_id),
        code: raw.code,
        bits: raw.bits,
        lanes: raw.lanes,
        sizes,
        strides: numbers(raw.strides),
    })
}

/// `Py_buffer` of the C API, the same from Python 3.10 on.
#[repr(C)]
struct RawBuffer {
    buf: *mut c_void,
    obj: *mut c_void,
    len: isize,
    itemsize: isize,
    readonly: c_int,
    ndim: c_int,
    format: *mut c_void,
    shape: *mut isize,
    strides: *mut isize,
    suboffsets: *mut isize,
    internal: *mut c_void,
}

/// Accepts any strides and read-only memory: `PyBUF_FULL_RO`.
const BUFFER_FULL_RO: c_int = 0x11C;

// Part of the limited API from 3.11 on; 3.10 has the same signatures.
unsafe extern "C" {
    fn PyObject_GetBuffer(object: *mut ffi::PyObject, view: *mut RawBuffer, flags: c_int) -> c_int;
    fn PyBuffer_Release(view: *mut RawBuffer);
}

/// The address of the first element of a memoryview, valid as long as the view lives.
pub(super) fn buffer_address(view: &Bound<'_, PyAny>) -> PyResult<usize> {
    let mut raw = RawBuffer {
        buf: std::ptr::null_mut(),
        obj: std::ptr::null_mut(),
        len: 0,
        itemsize: 0,
        readonly: 0,
        ndim: 0,
        format: std::ptr::null_mut(),
        shape: std::ptr::null_mut(),
        strides: std::ptr::null_mut(),
        suboffsets: std::ptr::null_mut(),
        internal: std::ptr::null_mut(),
    };
    // SAFETY: the object is alive, this thread has the interpreter, and `raw` is a `Py_buffer` of the
    // size and form that Python 3.10 and later have.
    let refused = unsafe { PyObject_GetBuffer(view.as_ptr(), &raw mut raw, BUFFER_FULL_RO) };
    if refused != 0 {
        return Err(PyErr::fetch(view.py()));
    }
    let address = raw.buf.expose_provenance();
    // SAFETY: `raw` was filled by `PyObject_GetBuffer` and is released once.
    unsafe { PyBuffer_Release(&raw mut raw) };
    Ok(address)
}

/// Copies the elements of one dimension of `tensor` in order; `None` if they would exceed the
/// address space. `tensor` keeps its memory alive during the call.
pub(super) fn read_elements(
    tensor: &ForeignTensor,
    size: usize,
    stride: isize,
    width: usize,
) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    if size == 0 || tensor.address == 0 {
        return Some(bytes);
    }
    if tensor.is_on_device() {
        return None;
    }
    let step = stride.checked_mul(isize::try_from(width).ok()?)?;
    let last = isize::try_from(size - 1).ok()?.checked_mul(step)?;
    tensor
        .address
        .checked_add_signed(last)?
        .checked_add(width)?;
    bytes.try_reserve_exact(size.checked_mul(width)?).ok()?;
    let (at, runs, run) = match step.unsigned_abs() == width && step > 0 {
        true => (tensor.address, 1, size * width),
        false => (tensor.address, size, width),
    };
    for index in 0..runs {
        let offset = isize::try_from(index).ok()?.checked_mul(step)?;
        let pointer = std::ptr::with_exposed_provenance::<u8>(at.checked_add_signed(offset)?);
        // SAFETY: the tensor declares that it has `size` elements of `width` bytes, `step` bytes
        // apart from its address on, and its owners keep them there as long as it is borrowed here.
        // Each run is one of them, or all of them if they are contiguous, and its address was
        // computed without overflow. This thread has the interpreter, so no Python code writes them
        // during the read.
        let element = unsafe { std::slice::from_raw_parts(pointer, run) };
        bytes.extend_from_slice(element);
    }
    Some(bytes)
}

/// The memory of an extent as a region that keeps its owners alive.
pub(super) fn borrow(
    extent: AddressRange,
    owners: Vec<Py<PyAny>>,
    read_only: bool,
) -> Result<OwnedMemoryRegion, TransferError> {
    let pointer = std::ptr::with_exposed_provenance_mut(extent.address);
    let pointer = NonNull::new(pointer).unwrap_or(NonNull::dangling());
    let bytes = if extent.address == 0 { 0 } else { extent.bytes };
    let kept = Arc::new(owners);
    // SAFETY: the owners declare, through DLPack, the array interface or the buffer protocol, that
    // these bytes are memory of this process which stays in place as long as the objects kept here
    // live; if they declare it read-only, the region is read-only. Regions are copied under leases;
    // users must not let other Python threads write the tensors during a copy, as with everything
    // that works on tensors without holding the interpreter.
    let memory = unsafe { BorrowedMemory::new(pointer, bytes, kept, StorageKind::System) }?;
    let memory = if read_only {
        memory.read_only()
    } else {
        memory
    };
    Ok(Arc::new(memory))
}

/// The memory of a device at an extent as a region that keeps its owners alive. The driver confirms the extent.
pub(super) fn import(
    device: &Device,
    extent: AddressRange,
    owners: Vec<Py<PyAny>>,
    read_only: bool,
) -> Result<OwnedMemoryRegion, DeviceError> {
    let kept = Arc::new(owners);
    let address = extent.address as u64;
    // SAFETY: the driver confirms that the bytes are memory of this device. The owners declare, through DLPack or the
    // array interface of CUDA, that it stays allocated as long as the objects kept here live. Copies run under leases; users
    // order other work on the tensors with copies by streams, as with everything that works on devices.
    let memory = unsafe { ImportedMemory::borrow(device, address, extent.bytes, kept) }?;
    let memory = if read_only {
        memory.read_only()
    } else {
        memory
    };
    Ok(Arc::new(memory))
}

/// A mark behind all that is in a stream of the caller, on the calling thread.
pub(crate) fn mark_behind(device: &Device, stream: usize) -> Result<DeviceMark, DeviceError> {
    // SAFETY: the user passes a default stream, or the handle of a stream that lives during the call, as the documentation of
    // every function with a stream demands; the driver refuses what it can recognise as another handle.
    unsafe { device.mark_behind(stream) }
}

/// Lets what is enqueued in a stream of the caller from now on wait for `mark`, on the calling thread.
pub(crate) fn let_wait(
    device: &Device,
    stream: usize,
    mark: &DeviceMark,
) -> Result<(), DeviceError> {
    // SAFETY: as for `mark_behind`.
    unsafe { device.let_wait(stream, mark) }
}
