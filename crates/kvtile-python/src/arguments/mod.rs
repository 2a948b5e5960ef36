//! Arguments of the functions that Python calls: each is checked by its name, its kind and its limits
//! before anything is done with it, and what is refused is an exception of `kvtile`.
//!
//! | module | what it reads |
//! | --- | --- |
//! | `number`, `optional` | whole numbers, with their limits |
//! | `time` | seconds |
//! | `text`, `flag`, `object` | text, True and False, objects of this package |
//! | `list` | block ids, tokens, keys; never element by element where it is an array |
//! | `range` | entries of an axis |
//! | `keywords` | keywords that a function does not have |
//!
//! A function names the reader of each of its parameters (`from_py_with`), so the table of limits is
//! here and nowhere else. This module does not know what the arguments are for.

pub(crate) mod flag;
pub(crate) mod keywords;
pub(crate) mod list;
pub(crate) mod number;
pub(crate) mod object;
pub(crate) mod optional;
pub(crate) mod range;
pub(crate) mod text;
pub(crate) mod time;

use pyo3::{
    prelude::*,
    types::{PyBool, PyFloat, PyInt, PyString},
};

use crate::error::python::{ArgumentError, LayoutError, RequestError, SettingsError};

/// What a value outside its limits is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Refusal {
    /// A shape, a layout or a selection that makes no sense.
    Layout,
    /// Something that the cache or the hasher does not have.
    Request,
    /// A setting that means nothing.
    Setting,
}

impl Refusal {
    /// The exception.
    pub(crate) fn error(self, text: String) -> PyErr {
        match self {
            Refusal::Layout => LayoutError::new_err(text),
            Refusal::Request => RequestError::new_err(text),
            Refusal::Setting => SettingsError::new_err(text),
        }
    }
}

/// The exception for an argument of another type.
pub(crate) fn wrong_type(name: &str, wanted: &str, value: &Bound<'_, PyAny>) -> PyErr {
    ArgumentError::new_err(format!("{name} is {wanted}, not {}", shown(value)))
}

/// A value as messages show it: simple ones as Python writes them, others by their type.
fn shown(value: &Bound<'_, PyAny>) -> String {
    let simple = value.is_none()
        || value.is_exact_instance_of::<PyBool>()
        || value.is_exact_instance_of::<PyInt>()
        || value.is_exact_instance_of::<PyFloat>()
        || (value.is_exact_instance_of::<PyString>() && value.len().is_ok_and(|len| len < 48));
    let text = match simple {
        // Numbers of many digits have no text.
        true => value.repr().ok().map(|text| text.to_string()),
        false => None,
    };
    let kind = || match value.get_type().name() {
        Ok(name) => format!("a value of type {name}"),
        Err(_) => "a value of another type".to_owned(),
    };
    match text {
        Some(text) if text.chars().count() <= 48 => text,
        _ => kind(),
    }
}
