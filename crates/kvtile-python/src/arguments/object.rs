//! Objects of this package, mappings and callbacks.

use pyo3::{
    PyTypeInfo,
    prelude::*,
    types::{PyDict, PyDictMethods, PyMapping, PyMappingMethods},
};

use super::wrong_type;
use crate::{
    cache::{PyMatch, PySnapshot},
    groups::PyGroupMatch,
    identity::PyIdentity,
    keys::{HashedIdentity, PyTokenHasher},
    layout::PyLayout,
    model::{PyModelGroup, PyModelIdentity},
    shape::{PyPlane, PyShape},
};

macro_rules! objects {
    ($($name:ident: $kind:ty, $wanted:literal;)*) => {
        $(
            pub(crate) fn $name<'py>(value: &Bound<'py, PyAny>) -> PyResult<Bound<'py, $kind>> {
                read::<$kind>(stringify!($name), $wanted, value)
            }
        )*
    };
}

objects! {
    src: PyLayout, "a Layout";
    dst: PyLayout, "a Layout";
    engine: PyLayout, "a Layout";
    shape: PyShape, "a Shape";
    identity: PyIdentity, "an Identity";
    other: PyIdentity, "an Identity";
    hasher: PyTokenHasher, "a TokenHasher";
    found: PyMatch, "a Match";
    snapshot: PySnapshot, "a Snapshot";
}

fn read<'py, T: PyTypeInfo>(
    name: &str,
    wanted: &str,
    value: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, T>> {
    let object = value.cast::<T>().cloned();
    object.map_err(|_| wrong_type(name, wanted, value))
}

/// A Layout or None.
pub(crate) fn layout<'py>(value: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyLayout>>> {
    if value.is_none() {
        return Ok(None);
    }
    read("layout", "a Layout or None", value).map(Some)
}

/// Another identity of a model.
pub(crate) fn other_model<'py>(value: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyModelIdentity>> {
    read("other", "a ModelIdentity", value)
}

/// What keys are of: an Identity or a ModelIdentity.
pub(crate) fn hashed(value: &Bound<'_, PyAny>) -> PyResult<HashedIdentity> {
    if let Ok(model) = value.cast::<PyModelIdentity>() {
        return Ok(HashedIdentity::Model(Box::new(model.get().0.clone())));
    }
    let wanted = "an Identity or a ModelIdentity";
    let identity = read::<PyIdentity>("identity", wanted, value)?;
    Ok(HashedIdentity::Blocks(Box::new(identity.get().0.clone())))
}

/// A list of groups.
pub(crate) fn groups<'py>(value: &Bound<'py, PyAny>) -> PyResult<Vec<Bound<'py, PyModelGroup>>> {
    let groups = super::list::items("groups", "a list of ModelGroup objects", value)?;
    let groups = groups.iter().enumerate();
    groups
        .map(|(index, group)| read(&format!("groups[{index}]"), "a ModelGroup", group))
        .collect()
}

/// A list of planes, or None.
pub(crate) fn planes<'py>(value: &Bound<'py, PyAny>) -> PyResult<Option<Vec<Bound<'py, PyPlane>>>> {
    if value.is_none() {
        return Ok(None);
    }
    let planes = super::list::items("planes", "a list of Plane objects", value)?;
    let planes = planes.iter().enumerate();
    planes
        .map(|(index, plane)| read(&format!("planes[{index}]"), "a Plane", plane))
        .collect::<PyResult<_>>()
        .map(Some)
}

/// A dict or another mapping, or None.
pub(crate) fn mapping<'py>(
    name: &str,
    value: &Bound<'py, PyAny>,
) -> PyResult<Option<Bound<'py, PyDict>>> {
    if value.is_none() {
        return Ok(None);
    }
    if let Ok(dict) = value.cast::<PyDict>() {
        return Ok(Some(dict.clone()));
    }
    let mapping = value.cast::<PyMapping>();
    let mapping = mapping.map_err(|_| wrong_type(name, "a dict", value))?;
    let dict = PyDict::new(value.py());
    for item in mapping.items()? {
        let (key, value): (Bound<'py, PyAny>, Bound<'py, PyAny>) = item.extract()?;
        dict.set_item(key, value)?;
    }
    Ok(Some(dict))
}

/// A match of a cache over groups.
pub(crate) fn group_match<'py>(value: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyGroupMatch>> {
    read("found", "a GroupMatch", value)
}

/// The identity of a model with groups.
pub(crate) fn model<'py>(value: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyModelIdentity>> {
    read("model", "a ModelIdentity", value)
}

/// The parameters of a rotary embedding.
pub(crate) fn rope<'py>(value: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyDict>>> {
    mapping("rope", value)
}

/// The `extra` entries of an identity.
pub(crate) fn extra<'py>(value: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyDict>>> {
    mapping("extra", value)
}

/// A callable.
pub(crate) fn callback<'py>(value: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    match value.is_callable() {
        true => Ok(value.clone()),
        false => Err(wrong_type("callback", "a function", value)),
    }
}
