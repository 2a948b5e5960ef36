//! Text.

use std::borrow::Cow;

use pyo3::{prelude::*, types::PyString};

use super::wrong_type;

/// Text that was given, or a default.
pub(crate) type Text = Cow<'static, str>;

macro_rules! texts {
    ($($name:ident)*) => {
        $(
            pub(crate) fn $name(value: &Bound<'_, PyAny>) -> PyResult<Text> {
                read(stringify!($name), value)
            }
        )*
    };
}

texts! { name word model revision salt profile text tier priority }

/// Text that Unicode has: no halves of surrogate pairs.
pub(crate) fn read(name: &str, value: &Bound<'_, PyAny>) -> PyResult<Text> {
    let text = value.cast::<PyString>();
    let text = text.map_err(|_| wrong_type(name, "text", value))?;
    match text.to_cow() {
        Ok(text) => Ok(Cow::Owned(text.into_owned())),
        Err(_) => Err(wrong_type(name, "text without lone surrogates", value)),
    }
}
