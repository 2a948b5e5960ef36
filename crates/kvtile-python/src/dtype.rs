//! Data types as Python has them, and the units that they are.

use kvtile::layout::Unit;
use pyo3::{
    prelude::*,
    types::{PyFloat, PyInt},
};

use crate::error::raise;

/// The unit that a user means: a name, or the dtype of numpy, torch, jax or ml_dtypes.
pub(crate) fn unit_of(dtype: &Bound<'_, PyAny>) -> PyResult<Unit> {
    let py = dtype.py();
    let wide = dtype.is(py.get_type::<PyFloat>());
    if wide || dtype.is(py.get_type::<PyInt>()) {
        return Err(crate::error::python::LayoutError::new_err(
            "Python's own int and float are of no fixed width: numpy takes float for 64 bits, torch for 32; \
             give a dtype such as 'float32' or torch.bfloat16",
        ));
    }
    Unit::of_dtype(&name_of(dtype)?).map_err(|error| raise(py, error))
}

/// What a dtype is called: `torch.bfloat16`, `dtype('bfloat16')` and `numpy.float32` by their last
/// names.
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
