//! Ranges of an axis: `(start, stop)` for both sides, or one such pair for each side.

use kvtile::layout::{AxisRange, RangePair};
use pyo3::{
    prelude::*,
    types::{PyList, PyTuple},
};

use super::{ArgumentRefusal, number::whole, wrong_type};
use crate::error::python::LayoutError;

macro_rules! ranges {
    ($($name:ident)*) => {
        $(
            pub(crate) fn $name(value: &Bound<'_, PyAny>) -> PyResult<Option<RangePair>> {
                read(stringify!($name), value)
            }
        )*
    };
}

ranges! { layers tokens heads }

fn read(name: &str, value: &Bound<'_, PyAny>) -> PyResult<Option<RangePair>> {
    if value.is_none() {
        return Ok(None);
    }
    let (first, second) = pair_of(name, value)?;
    let (source, destination) = match is_pair(&first) || is_pair(&second) {
        true => (side(name, &first)?, side(name, &second)?),
        false => {
            let both = side(name, value)?;
            (both, both)
        }
    };
    if source.count != destination.count {
        return Err(LayoutError::new_err(format!(
            "{name} are {} entries into {}; give as many on both sides",
            source.count, destination.count
        )));
    }
    Ok(Some(RangePair {
        source: source.start,
        destination: destination.start,
        count: source.count,
    }))
}

fn is_pair(value: &Bound<'_, PyAny>) -> bool {
    value.is_instance_of::<PyTuple>() || value.is_instance_of::<PyList>()
}

fn pair_of<'py>(
    name: &str,
    value: &Bound<'py, PyAny>,
) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
    let wanted = "(start, stop), or one such pair for each side";
    if !is_pair(value) || value.len()? != 2 {
        return Err(wrong_type(name, wanted, value));
    }
    Ok((value.get_item(0)?, value.get_item(1)?))
}

fn side(name: &str, value: &Bound<'_, PyAny>) -> PyResult<AxisRange> {
    let (start, stop) = pair_of(name, value)?;
    let number = |value: &Bound<'_, PyAny>| {
        whole::<u64>(
            name,
            value,
            (0, i128::from(i64::MAX)),
            ArgumentRefusal::Layout,
        )
    };
    let (start, stop) = (number(&start)?, number(&stop)?);
    let count = stop.checked_sub(start).filter(|&count| count > 0);
    let count = count.ok_or_else(|| {
        LayoutError::new_err(format!(
            "{name} ({start}, {stop}) is not a range; stop must be greater than start"
        ))
    })?;
    Ok(AxisRange::new(start, count))
}
