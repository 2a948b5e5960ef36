//! Times in seconds.

use std::time::Duration;

use pyo3::{
    exceptions::PyOverflowError,
    prelude::*,
    types::{PyBool, PyString},
};

use super::{shown, wrong_type};
use crate::error::python::RequestError;

/// Longer than any process lives; more is for ever.
const SECONDS_MAX: f64 = 1e10;

macro_rules! times {
    ($($name:ident)*) => {
        $(
            pub(crate) fn $name(value: &Bound<'_, PyAny>) -> PyResult<Option<Duration>> {
                seconds(stringify!($name), value)
            }
        )*
    };
}

times! { timeout hold lifetime within close_within answer_within stage_within arrived
shared_lifetime shared_within connect_within }

/// The time of a seek, which must be stated.
pub(crate) fn seek_within(value: &Bound<'_, PyAny>) -> PyResult<Duration> {
    let time = seconds("within", value)?;
    time.ok_or_else(|| wrong_type("within", "a number of seconds", value))
}

fn seconds(name: &str, value: &Bound<'_, PyAny>) -> PyResult<Option<Duration>> {
    if value.is_none() {
        return Ok(None);
    }
    let seconds = real(name, "a number of seconds", value)?;
    let seconds = seconds.filter(|seconds| *seconds >= 0.0);
    let seconds = seconds.ok_or_else(|| {
        let text = format!("{name} is {}; give 0 seconds or more", shown(value));
        RequestError::new_err(text)
    })?;
    Ok(Some(Duration::from_secs_f64(seconds.min(SECONDS_MAX))))
}

/// A real number; `None` where no floating-point number is as large.
pub(crate) fn real(name: &str, wanted: &str, value: &Bound<'_, PyAny>) -> PyResult<Option<f64>> {
    if value.is_instance_of::<PyBool>() || value.is_instance_of::<PyString>() {
        return Err(wrong_type(name, wanted, value));
    }
    match value.extract::<f64>() {
        Ok(number) => Ok(Some(number)),
        Err(error) if error.is_instance_of::<PyOverflowError>(value.py()) => Ok(None),
        Err(_) => Err(wrong_type(name, wanted, value)),
    }
}
