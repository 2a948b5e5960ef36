//! Integers of an array or a tensor, read as a whole: block ids and tokens. This module does not
//! know their meaning.

use pyo3::prelude::*;

use super::{ForeignTensor, buffer, foreign::read_elements, protocols};
use crate::dtype::name_of;

/// A copy of the elements of a one-dimensional integer tensor.
#[derive(Debug)]
pub(crate) struct IntegerElements {
    bytes: Vec<u8>,
    width: usize,
    signed: bool,
}

impl IntegerElements {
    /// The number of elements.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() / self.width
    }

    /// The elements.
    pub(crate) fn iter(&self) -> impl Iterator<Item = i128> {
        self.bytes
            .chunks_exact(self.width)
            .map(|element| self.value(element))
    }

    fn value(&self, element: &[u8]) -> i128 {
        fn read<const WIDTH: usize, T: Into<i128>>(
            element: &[u8],
            from: fn([u8; WIDTH]) -> T,
        ) -> Option<i128> {
            element.first_chunk().map(|bytes| from(*bytes).into())
        }
        let value = match (self.width, self.signed) {
            (1, true) => read(element, i8::from_ne_bytes),
            (2, true) => read(element, i16::from_ne_bytes),
            (4, true) => read(element, i32::from_ne_bytes),
            (8, true) => read(element, i64::from_ne_bytes),
            (1, false) => read(element, u8::from_ne_bytes),
            (2, false) => read(element, u16::from_ne_bytes),
            (4, false) => read(element, u32::from_ne_bytes),
            _ => read(element, u64::from_ne_bytes),
        };
        value.unwrap_or_default()
    }
}

/// The integers of `object`, the reason why it is not a flat integer tensor, or `None` for an
/// object that is not a tensor.
pub(crate) fn numbers(
    object: &Bound<'_, PyAny>,
) -> PyResult<Option<Result<IntegerElements, String>>> {
    let tensor = match protocols(object)? {
        None => return Ok(None),
        Some(Ok(tensor)) if tensor.is_on_device() => {
            return elsewhere(object, "it is in memory of a device".to_owned()).map(Some);
        }
        Some(Ok(tensor)) => tensor,
        Some(Err(problem)) => return elsewhere(object, problem).map(Some),
    };
    Ok(Some(read(&tensor)))
}

/// Whether an object is an array, a tensor or a buffer.
pub(crate) fn is_tensor(object: &Bound<'_, PyAny>) -> PyResult<bool> {
    for name in [
        "__array_interface__",
        "__dlpack_device__",
        "__cuda_array_interface__",
    ] {
        if object.getattr_opt(name)?.is_some() {
            return Ok(true);
        }
    }
    Ok(!matches!(buffer::describe(object), Ok(None)))
}

fn read(tensor: &ForeignTensor) -> Result<IntegerElements, String> {
    let codec = tensor.unit.codec();
    let signed = match codec {
        "int8" | "int16" | "int32" | "int64" => true,
        "uint8" | "uint16" | "uint32" | "uint64" => false,
        _ => return Err(format!("its elements are {codec}")),
    };
    let ([size], [stride]) = (tensor.sizes.as_slice(), tensor.strides.as_slice()) else {
        return Err(format!("its sizes are {:?}", tensor.sizes));
    };
    let width = usize::try_from(tensor.unit.bytes()).unwrap_or_default();
    let bytes = read_elements(tensor, *size, *stride, width)
        .ok_or_else(|| format!("its size {size} and stride {stride} exceed the address space"))?;
    Ok(IntegerElements {
        bytes,
        width,
        signed,
    })
}

/// The numbers of a tensor on a device; its framework copies them to the CPU.
fn elsewhere(
    object: &Bound<'_, PyAny>,
    problem: String,
) -> PyResult<Result<IntegerElements, String>> {
    let flat = match object.getattr_opt("ndim")? {
        Some(dimensions) => dimensions.eq(1)?,
        None => false,
    };
    let whole = match object.getattr_opt("dtype")? {
        Some(dtype) => name_of(&dtype)?.contains("int"),
        None => false,
    };
    let cpu = object.getattr_opt("cpu")?.filter(|_| flat && whole);
    let Some(cpu) = cpu else {
        return Ok(Err(problem));
    };
    let copied = match cpu.call0() {
        Ok(copied) => protocols(&copied)?,
        Err(_) => None,
    };
    Ok(match copied {
        Some(Ok(tensor)) if !tensor.is_on_device() => read(&tensor),
        _ => Err(problem),
    })
}
