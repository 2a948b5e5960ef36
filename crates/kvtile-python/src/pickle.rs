//! Pickling and copying: objects that are plain data come back equal, all others say why they do not.

use pyo3::{
    exceptions::PyTypeError,
    prelude::*,
    types::{PyString, PyType},
};
use serde::{Serialize, de::DeserializeOwned};

use crate::error::python::ArgumentError;

/// What `pickle` and `copy` call with what, to have the object again.
pub(crate) type Reduced<'py> = (Bound<'py, PyAny>, (Bound<'py, PyString>,));

/// An object of `class` as a call of its class method `_from_pickle`.
pub(crate) fn reduce<'py>(
    class: &Bound<'py, PyType>,
    value: &impl Serialize,
) -> PyResult<Reduced<'py>> {
    let text = serde_json::to_string(value);
    let text = text.map_err(|error| PyTypeError::new_err(error.to_string()))?;
    let text = PyString::new(class.py(), &text);
    Ok((class.getattr("_from_pickle")?, (text,)))
}

/// What [`reduce`] wrote, checked as if it were given anew.
pub(crate) fn restore<T: DeserializeOwned>(text: &str) -> PyResult<T> {
    serde_json::from_str(text)
        .map_err(|error| ArgumentError::new_err(format!("no pickled object of kvtile: {error}")))
}

/// The refusal of what holds more than data.
pub(crate) fn refused(class: &str, because: &str) -> PyErr {
    PyTypeError::new_err(format!("a {class} cannot be pickled or copied: {because}"))
}
