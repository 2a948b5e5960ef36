//! Text.

use std::borrow::Cow;

use kvtile::blocks::events::TierId;
use pyo3::{prelude::*, types::PyString};

use super::wrong_type;
use crate::error::python::RequestError;

/// Text that was given, or a default.
pub(crate) type TextArgument = Cow<'static, str>;

macro_rules! texts {
    ($($name:ident)*) => {
        $(
            pub(crate) fn $name(value: &Bound<'_, PyAny>) -> PyResult<TextArgument> {
                read(stringify!($name), value)
            }
        )*
    };
}

texts! { address name word model revision salt profile text tier priority policy endpoint topic hashes rule
unknown_tokens }

/// The default rule of a group.
pub(crate) const fn full() -> TextArgument {
    Cow::Borrowed("full")
}

/// An address, or None.
pub(crate) fn replay(value: &Bound<'_, PyAny>) -> PyResult<Option<TextArgument>> {
    match value.is_none() {
        true => Ok(None),
        false => read("replay", value).map(Some),
    }
}

/// The name of a group, or None.
pub(crate) fn optional_group(value: &Bound<'_, PyAny>) -> PyResult<Option<TextArgument>> {
    match value.is_none() {
        true => Ok(None),
        false => read("group", value).map(Some),
    }
}

/// Text that Unicode has: no halves of surrogate pairs.
pub(crate) fn read(name: &str, value: &Bound<'_, PyAny>) -> PyResult<TextArgument> {
    let text = value.cast::<PyString>();
    let text = text.map_err(|_| wrong_type(name, "text", value))?;
    match text.to_cow() {
        Ok(text) => Ok(Cow::Owned(text.into_owned())),
        Err(_) => Err(wrong_type(name, "text without lone surrogates", value)),
    }
}

/// A tier by its name.
pub(crate) fn tier_of(name: &str) -> PyResult<TierId> {
    name.parse::<TierId>()
        .map_err(|error| RequestError::new_err(error.to_string()))
}
