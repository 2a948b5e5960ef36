//! The array interface, version 3, of numpy and other arrays.

use kvtile::layout::Unit;
use pyo3::{prelude::*, types::PyDict};

use super::{ForeignTensor, TensorPlace, dense_strides, in_elements};
use crate::dtype::name_of;

/// The tensor, the reason why it is unusable, or `None` for an object without the interface.
pub(super) fn describe(
    object: &Bound<'_, PyAny>,
) -> PyResult<Option<Result<ForeignTensor, String>>> {
    let Some(interface) = object.getattr_opt("__array_interface__")? else {
        return Ok(None);
    };
    let interface = interface.cast_into::<PyDict>()?;
    let item = |name: &str| -> PyResult<Option<Bound<'_, PyAny>>> {
        Ok(interface.get_item(name)?.filter(|value| !value.is_none()))
    };
    let (Some(sizes), Some(typestr)) = (item("shape")?, item("typestr")?) else {
        return Ok(Some(Err(
            "its array interface has no shape or type".to_owned()
        )));
    };
    let sizes: Vec<usize> = sizes.extract()?;
    let unit = match unit(object, &typestr.extract::<String>()?)? {
        Ok(unit) => unit,
        Err(what) => return Ok(Some(Err(what))),
    };
    let Some(data) = item("data")? else {
        return Ok(Some(Err("its array interface has no address".to_owned())));
    };
    let (address, read_only): (usize, bool) = data.extract()?;
    let strides = match item("strides")? {
        None => dense_strides(&sizes),
        Some(strides) => {
            let strides: Vec<isize> = strides.extract()?;
            let Some(strides) = in_elements(&strides, unit.bytes()) else {
                let what = format!(
                    "its strides {strides:?} are not multiples of {} bytes",
                    unit.bytes()
                );
                return Ok(Some(Err(what)));
            };
            strides
        }
    };
    Ok(Some(Ok(ForeignTensor {
        address,
        sizes,
        strides,
        unit,
        place: TensorPlace::Host,
        read_only,
        storage: None,
        owners: vec![object.clone().unbind()],
    })))
}

/// The unit of an element. The name of the dtype comes first, because the type string of every
/// one-byte float is `f1`. Arrays without a named dtype use the type string.
pub(super) fn unit(object: &Bound<'_, PyAny>, typestr: &str) -> PyResult<Result<Unit, String>> {
    let mut letters = typestr.chars();
    let (order, kind) = (letters.next(), letters.next());
    let bytes: u64 = letters.as_str().parse().unwrap_or(0);
    let foreign_order = if cfg!(target_endian = "little") {
        '>'
    } else {
        '<'
    };
    if order == Some(foreign_order) && bytes > 1 {
        return Ok(Err(format!(
            "its dtype {typestr} is in another byte order than this machine's"
        )));
    }
    let name = match (object.getattr_opt("dtype")?, kind) {
        (Some(dtype), _) => name_of(&dtype)?,
        (None, Some('f')) => format!("float{}", bytes * 8),
        (None, Some('i')) => format!("int{}", bytes * 8),
        (None, Some('u')) => format!("uint{}", bytes * 8),
        (None, _) => typestr.to_owned(),
    };
    let unit = Unit::named(&name);
    Ok(unit.ok_or_else(|| {
        format!("its dtype {name} ({typestr}) is not a number type that kvtile knows")
    }))
}
