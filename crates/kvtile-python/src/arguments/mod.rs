//! Arguments of the functions that Python calls. Each reader checks an argument's type and limits
//! before the function runs. A refused argument raises an exception of `kvtile`.
//!
//! | module | what it reads |
//! | --- | --- |
//! | `number`, `optional` | integers, with their limits |
//! | `time` | seconds |
//! | `text`, `flag`, `object` | text, booleans, objects of this package |
//! | `list` | block ids, tokens, keys; arrays as a whole, never element by element |
//! | `range` | ranges of an axis |
//! | `stream` | streams of devices |
//! | `keywords` | keywords that a function does not have |
//!
//! A function names the reader of each of its parameters (`from_py_with`), so the limits are
//! defined only here. This module does not know what the arguments are for.

pub(crate) mod flag;
pub(crate) mod keywords;
pub(crate) mod list;
pub(crate) mod number;
pub(crate) mod object;
pub(crate) mod optional;
pub(crate) mod range;
pub(crate) mod stream;
pub(crate) mod text;
pub(crate) mod time;

use pyo3::{
    prelude::*,
    types::{PyBool, PyFloat, PyInt, PyString},
};

use crate::error::python::{ArgumentError, LayoutError, RequestError, SettingsError};

/// The exception class for a value outside its limits.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ArgumentRefusal {
    /// `LayoutError`: an invalid shape, layout or selection.
    Layout,
    /// `RequestError`: an id, key or option that the cache or the hasher does not have.
    Request,
    /// `SettingsError`: an invalid setting.
    Setting,
}

impl ArgumentRefusal {
    /// The exception.
    pub(crate) fn error(self, text: String) -> PyErr {
        match self {
            ArgumentRefusal::Layout => LayoutError::new_err(text),
            ArgumentRefusal::Request => RequestError::new_err(text),
            ArgumentRefusal::Setting => SettingsError::new_err(text),
        }
    }
}

/// The exception for an argument of the wrong type.
pub(crate) fn wrong_type(name: &str, wanted: &str, value: &Bound<'_, PyAny>) -> PyErr {
    ArgumentError::new_err(format!("{name} is {wanted}, not {}", shown(value)))
}

/// A value as error messages show it: short simple values by their `repr`, others by their type.
fn shown(value: &Bound<'_, PyAny>) -> String {
    let simple = value.is_none()
        || value.is_exact_instance_of::<PyBool>()
        || value.is_exact_instance_of::<PyInt>()
        || value.is_exact_instance_of::<PyFloat>()
        || (value.is_exact_instance_of::<PyString>() && value.len().is_ok_and(|len| len < 48));
    let text = match simple {
        // `repr` fails for integers of too many digits.
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
