//! Pickling and copying: plain data is restored equal, other objects refuse with a reason.

use pyo3::{
    exceptions::PyTypeError,
    prelude::*,
    types::{PyString, PyType},
};
use serde::{Serialize, de::DeserializeOwned};

use crate::error::python::ArgumentError;

/// The function and arguments that `pickle` and `copy` use to restore an object.
pub(crate) type ReducedObject<'py> = (Bound<'py, PyAny>, (Bound<'py, PyString>,));

/// Reduces an object of `class` to a call of its class method `_from_pickle`.
pub(crate) fn reduce<'py>(
    class: &Bound<'py, PyType>,
    value: &impl Serialize,
) -> PyResult<ReducedObject<'py>> {
    let text = serde_json::to_string(value);
    let text = text.map_err(|error| PyTypeError::new_err(error.to_string()))?;
    let text = PyString::new(class.py(), &text);
    Ok((class.getattr("_from_pickle")?, (text,)))
}

/// Parses what [`reduce`] wrote, with all checks of a new object.
pub(crate) fn restore<T: DeserializeOwned>(text: &str) -> PyResult<T> {
    serde_json::from_str(text)
        .map_err(|error| ArgumentError::new_err(format!("not a pickled kvtile object: {error}")))
}

/// The error for objects that hold more than data.
pub(crate) fn refused(class: &str, because: &str) -> PyErr {
    PyTypeError::new_err(format!("a {class} cannot be pickled or copied: {because}"))
}
