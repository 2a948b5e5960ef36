//! Which memory a tensor is a view of, where its framework tells.

use pyo3::{prelude::*, types::PyDict};

use super::Extent;

/// Most views of views that are followed.
const DEPTH_MAX: usize = 16;

/// The memory under a tensor of torch or an array of numpy.
pub(super) fn of(object: &Bound<'_, PyAny>) -> PyResult<Option<Extent>> {
    if let Some(storage) = object.getattr_opt("untyped_storage")? {
        let storage = storage.call0()?;
        return Ok(Some(Extent {
            address: storage.call_method0("data_ptr")?.extract()?,
            bytes: storage.call_method0("nbytes")?.extract()?,
        }));
    }
    of_array(object)
}

/// An array's is that of the array at the end of its bases, if that one has no gaps.
fn of_array(object: &Bound<'_, PyAny>) -> PyResult<Option<Extent>> {
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
    Ok(Some(Extent {
        address,
        bytes: bytes.extract()?,
    }))
}
