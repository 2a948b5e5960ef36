//! Data types as Python gives them, and their units.

use kvtile::layout::Unit;
use pyo3::{
    prelude::*,
    types::{PyFloat, PyInt},
};

use crate::error::raise;

/// The unit of a dtype: a name, or a dtype of numpy, torch, jax or ml_dtypes.
pub(crate) fn unit_of(dtype: &Bound<'_, PyAny>) -> PyResult<Unit> {
    let py = dtype.py();
    let wide = dtype.is(py.get_type::<PyFloat>());
    if wide || dtype.is(py.get_type::<PyInt>()) {
        return Err(crate::error::python::LayoutError::new_err(
            "Python's own int and float have no fixed width: numpy takes float for 64 bits, torch for 32; \
             give a dtype such as 'float32' or torch.bfloat16",
        ));
    }
    Unit::of_dtype(&name_of(dtype)?).map_err(|error| raise(py, error))
}

/// The last part of a dtype's name: `bfloat16` for `torch.bfloat16` and `dtype('bfloat16')`,
/// `float32` for `numpy.float32`.
pub(crate) fn name_of(dtype: &Bound<'_, PyAny>) -> PyResult<String> {
    if let Ok(name) = dtype.extract::<String>() {
        return Ok(last(&name));
    }
    for attribute in ["name", "__name__"] {
        if let Some(name) = dtype.getattr_opt(attribute)?
            && let Ok(name) = name.extract::<String>()
        {
            return Ok(last(&name));
        }
    }
    Ok(last(&dtype.str()?.to_string()))
}

fn last(name: &str) -> String {
    name.rsplit('.').next().unwrap_or(name).to_owned()
}
