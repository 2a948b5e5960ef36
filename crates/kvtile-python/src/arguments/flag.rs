//! `True` and `False` only: other truthy or falsy values are refused.

use pyo3::{prelude::*, types::PyBool};

use super::wrong_type;

macro_rules! flags {
    ($($name:ident)*) => {
        $(
            pub(crate) fn $name(value: &Bound<'_, PyAny>) -> PyResult<bool> {
                read(stringify!($name), value)
            }
        )*
    };
}

flags! { draft opaque per_page verify partial_tail }

/// True or False.
pub(crate) fn read(name: &str, value: &Bound<'_, PyAny>) -> PyResult<bool> {
    let flag = value.cast::<PyBool>();
    let flag = flag.map_err(|_| wrong_type(name, "True or False", value))?;
    Ok(flag.is_true())
}
