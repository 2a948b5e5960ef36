//! Streams of devices: a handle, or an object that has one.

use pyo3::{exceptions::PyException, prelude::*};

use super::{ArgumentRefusal, number, wrong_type};
use crate::{
    device::StreamHandle,
    ending,
    error::python::{ArgumentError, RequestError},
};

/// What a stream is.
const WANTED: &str = "a stream: its handle, or an object with cuda_stream or __cuda_stream__";

/// The stream of work that comes before, or None.
pub(crate) fn after(value: &Bound<'_, PyAny>) -> PyResult<Option<StreamHandle>> {
    optional("after", value)
}

/// The stream that waits, or None.
pub(crate) fn stream(value: &Bound<'_, PyAny>) -> PyResult<Option<StreamHandle>> {
    optional("stream", value)
}

fn optional(name: &str, value: &Bound<'_, PyAny>) -> PyResult<Option<StreamHandle>> {
    if value.is_none() {
        return Ok(None);
    }
    let handle = match ending::run_python(value.py(), || handle_of(value)) {
        Ok(Some(handle)) => handle,
        Ok(None) => value.clone(),
        Err(error) if error.is_instance_of::<RequestError>(value.py()) => return Err(error),
        Err(error) if error.is_instance_of::<PyException>(value.py()) => {
            return Err(ArgumentError::new_err(format!(
                "{name} cannot be read: {error}"
            )));
        }
        Err(error) => return Err(error),
    };
    let limits = (0, i128::from(u64::MAX));
    let handle: u64 = number::whole(name, &handle, limits, ArgumentRefusal::Request)?;
    let handle = usize::try_from(handle).map_err(|_| wrong_type(name, WANTED, value))?;
    Ok(Some(StreamHandle(handle)))
}

/// The handle that an object has: `cuda_stream` of torch, or `__cuda_stream__`, which returns a version and the handle.
fn handle_of<'py>(value: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyAny>>> {
    if let Some(handle) = value.getattr_opt("cuda_stream")? {
        return Ok(Some(handle));
    }
    let Some(protocol) = value.getattr_opt("__cuda_stream__")? else {
        return Ok(None);
    };
    let answer = match protocol.is_callable() {
        true => protocol.call0()?,
        false => protocol,
    };
    let (version, handle): (u32, Bound<'py, PyAny>) = answer.extract()?;
    match version {
        0 => Ok(Some(handle)),
        _ => Err(ArgumentRefusal::Request.error(format!(
            "__cuda_stream__ is of version {version}; kvtile reads version 0"
        ))),
    }
}
