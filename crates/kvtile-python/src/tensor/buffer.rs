//! The buffer protocol: bytearray, mmap, array.array, ctypes and every other object that
//! `memoryview` accepts.

use kvtile::layout::Unit;
use pyo3::{exceptions::PyTypeError, prelude::*, types::PyMemoryView};

use super::{ForeignTensor, TensorPlace, foreign::buffer_address, in_elements};

/// The tensor, the reason why it is unusable, or `None` for an object without a buffer.
pub(super) fn describe(
    object: &Bound<'_, PyAny>,
) -> PyResult<Option<Result<ForeignTensor, String>>> {
    let py = object.py();
    let view = match PyMemoryView::from(object) {
        Ok(view) => view.into_any(),
        Err(error) if error.is_instance_of::<PyTypeError>(py) => return Ok(None),
        Err(error) => return Err(error),
    };
    let format: String = view.getattr("format")?.extract()?;
    let bytes: u64 = view.getattr("itemsize")?.extract()?;
    let Some(unit) = unit(&format, bytes) else {
        return Ok(Some(Err(format!(
            "its buffer has elements of format {format:?}, which is not a native number format"
        ))));
    };
    let strides: Vec<isize> = view.getattr("strides")?.extract()?;
    let Some(strides) = in_elements(&strides, bytes) else {
        return Ok(Some(Err(format!(
            "its strides {strides:?} are not multiples of {bytes} bytes"
        ))));
    };
    Ok(Some(Ok(ForeignTensor {
        address: buffer_address(&view)?,
        sizes: view.getattr("shape")?.extract()?,
        strides,
        unit,
        place: TensorPlace::Host,
        read_only: view.getattr("readonly")?.extract()?,
        storage: None,
        // A held view stops its owner from moving or shrinking the memory.
        owners: vec![view.unbind()],
    })))
}

/// The unit of a `struct` format in native byte order, which has several spellings: no prefix, `@`, `=`, and the
/// prefix of this machine's order, which ctypes uses. An element of one byte has no order.
fn unit(format: &str, bytes: u64) -> Option<Unit> {
    let (prefix, kind) = match format.strip_prefix(['@', '=', '<', '>', '!']) {
        Some(kind) => (format.strip_suffix(kind)?, kind),
        None => ("", format),
    };
    let is_native = match prefix {
        "<" => cfg!(target_endian = "little"),
        ">" | "!" => cfg!(target_endian = "big"),
        _ => true,
    };
    if !is_native && bytes != 1 {
        return None;
    }
    let kind = match kind {
        "e" | "f" | "d" => "float",
        "b" | "h" | "i" | "l" | "q" | "n" => "int",
        "c" | "B" | "H" | "I" | "L" | "Q" | "N" => "uint",
        "?" => return Unit::named("bool"),
        _ => return None,
    };
    Unit::named(&format!("{kind}{}", bytes * 8))
}
