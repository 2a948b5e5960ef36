//! The storage that a tensor is a view of, if its framework exposes it.

use pyo3::{prelude::*, types::PyDict};

use super::AddressRange;

/// The maximum depth of nested views that is followed.
const DEPTH_MAX: usize = 16;

/// The storage of a torch tensor or a numpy array.
pub(super) fn of(object: &Bound<'_, PyAny>) -> PyResult<Option<AddressRange>> {
    if let Some(storage) = object.getattr_opt("untyped_storage")? {
        let storage = storage.call0()?;
        return Ok(Some(AddressRange {
            address: storage.call_method0("data_ptr")?.extract()?,
            bytes: storage.call_method0("nbytes")?.extract()?,
        }));
    }
    of_array(object)
}

/// The storage of an array is the array at the end of its `base` chain, if that one has no gaps.
fn of_array(object: &Bound<'_, PyAny>) -> PyResult<Option<AddressRange>> {
    let mut root = object.clone();
    for _ in 0..DEPTH_MAX {
        match root.getattr_opt("base")? {
            Some(base) if base.hasattr("__array_interface__")? => root = base,
            _ => break,
        }
    }
    let (Some(interface), Some(bytes)) = (
        root.getattr_opt("__array_interface__")?,
        root.getattr_opt("nbytes")?,
    ) else {
        return Ok(None);
    };
    let interface = interface.cast_into::<PyDict>()?;
    let strides = interface.get_item("strides")?;
    let (Some(data), true) = (
        interface.get_item("data")?,
        strides.is_none_or(|s| s.is_none()),
    ) else {
        return Ok(None);
    };
    let (address, _): (usize, bool) = data.extract()?;
    Ok(Some(AddressRange {
        address,
        bytes: bytes.extract()?,
    }))
}
