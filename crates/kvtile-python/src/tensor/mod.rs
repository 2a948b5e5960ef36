//! Foreign tensors: their address, shape, element and owner.
//!
//! A tensor describes itself through one of four protocols: the array interface (numpy), DLPack
//! (torch, jax, cupy), the array interface of CUDA (numba), or the buffer protocol (bytearray, mmap,
//! array). This module reads the description and keeps the tensor alive; it never copies it. It does
//! not know what a layout is.

mod array;
mod buffer;
mod cuda_array;
mod device;
mod dlpack;
mod foreign;
mod memory;
mod numbers;
mod storage;

pub(crate) use foreign::{let_wait, mark_behind};
pub(crate) use memory::{TensorBacking, back};
pub(crate) use numbers::{IntegerElements, is_tensor, numbers};

use kvtile::layout::Unit;
use pyo3::{exceptions::PyException, prelude::*};

use crate::{ending, error::python::TensorError};

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct AddressRange {
    address: usize,
    bytes: usize,
}

impl AddressRange {
    fn end(self) -> usize {
        self.address.saturating_add(self.bytes)
    }

    fn contains(self, other: AddressRange) -> bool {
        self.address <= other.address && other.end() <= self.end()
    }
}

/// A tensor, as its protocol describes it.
#[derive(Debug)]
pub(crate) struct ForeignTensor {
    /// Address of the first element.
    address: usize,
    /// Entries of each dimension.
    pub(crate) sizes: Vec<usize>,
    /// The stride of each dimension in elements.
    pub(crate) strides: Vec<isize>,
    /// The unit of an element.
    pub(crate) unit: Unit,
    /// The memory that has its elements.
    place: TensorPlace,
    read_only: bool,
    /// The whole storage that the tensor is a view of, if its framework exposes it.
    storage: Option<AddressRange>,
    /// The objects that keep the memory valid.
    owners: Vec<Py<PyAny>>,
}

/// The memory of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TensorPlace {
    /// Memory of this process.
    Host,
    /// Memory of a device.
    Device {
        /// The device that the tensor names, if it names one.
        ordinal: Option<u32>,
        /// The stream that has the work on the tensor until now, if the tensor names one.
        stream: Option<usize>,
    },
}

impl ForeignTensor {
    /// Whether its elements are in memory of a device.
    pub(crate) fn is_on_device(&self) -> bool {
        self.place != TensorPlace::Host
    }

    /// The bytes from its first element to its last, gaps included.
    fn extent(&self) -> Option<AddressRange> {
        let mut elements = 1_usize;
        for (&size, &stride) in self.sizes.iter().zip(&self.strides) {
            let stride = if size <= 1 {
                0
            } else {
                usize::try_from(stride).ok()?
            };
            let span = size.checked_sub(1)?.checked_mul(stride)?;
            elements = elements.checked_add(span)?;
        }
        let bytes = elements.checked_mul(usize::try_from(self.unit.bytes()).ok()?)?;
        self.address.checked_add(bytes)?;
        Some(AddressRange {
            address: self.address,
            bytes,
        })
    }
}

impl ForeignTensor {
    /// The tensor as one dimension of bytes; `None` if it has gaps or goes backwards.
    pub(crate) fn into_bytes(mut self) -> Option<ForeignTensor> {
        let extent = self.extent()?;
        let elements: usize = self.sizes.iter().product();
        let bytes = elements.checked_mul(usize::try_from(self.unit.bytes()).ok()?)?;
        if bytes != extent.bytes {
            return None;
        }
        self.unit = Unit::named("uint8")?;
        self.sizes = vec![bytes];
        self.strides = vec![1];
        Some(self)
    }
}

/// Reads the description of `object`; `index` is for the error message.
pub(crate) fn describe(index: usize, object: &Bound<'_, PyAny>) -> PyResult<ForeignTensor> {
    let refused = |what: String| TensorError::new_err(format!("tensor {index}: {what}"));
    let found = protocols(object)?;
    match found {
        Some(Ok(mut tensor)) => {
            tensor.storage = storage::of(object)?;
            Ok(tensor)
        }
        Some(Err(what)) => Err(refused(what)),
        None => Err(refused(format!(
            "{} is not a tensor: it has neither __array_interface__ nor __dlpack__ nor \
             __cuda_array_interface__ nor a buffer",
            object.get_type().name()?
        ))),
    }
}

/// Reads the first protocol that `object` has. An object whose protocol fails is an unusable
/// tensor.
fn protocols(object: &Bound<'_, PyAny>) -> PyResult<Option<Result<ForeignTensor, String>>> {
    let protocols = [
        array::describe,
        dlpack::describe,
        cuda_array::describe,
        buffer::describe,
    ];
    for describe in protocols {
        match ending::run_python(object.py(), || describe(object)) {
            Ok(None) => {}
            Ok(found) => return Ok(found),
            Err(error) if error.is_instance_of::<PyException>(object.py()) => {
                return Ok(Some(Err(format!("it cannot be read: {error}"))));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Strides of tensors without gaps, the last dimension fastest.
fn dense_strides(sizes: &[usize]) -> Vec<isize> {
    let mut stride = 1_isize;
    let mut strides: Vec<isize> = Vec::with_capacity(sizes.len());
    for &size in sizes.iter().rev() {
        strides.push(stride);
        stride = stride.saturating_mul(isize::try_from(size).unwrap_or(isize::MAX));
    }
    strides.reverse();
    strides
}

/// Converts strides in bytes to strides in elements.
fn in_elements(strides: &[isize], element: u64) -> Option<Vec<isize>> {
    let element = isize::try_from(element).ok()?;
    let whole =
        |&stride: &isize| (stride.checked_rem(element) == Some(0)).then(|| stride / element);
    strides.iter().map(whole).collect()
}
