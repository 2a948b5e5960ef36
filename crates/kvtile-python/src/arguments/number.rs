//! Integers, and the table of their limits. Python integers are unbounded, so each one is compared
//! with its limits before it is converted to a fixed size.

use pyo3::{exceptions::PyOverflowError, prelude::*, types::PyBool};

use super::{ArgumentRefusal, shown, wrong_type};

/// Defines one reader function, named like its parameter, for each row.
macro_rules! numbers {
    ($($name:ident: $kind:ty, $least:expr, $most:expr, $refusal:ident;)*) => {
        $(
            pub(crate) fn $name(value: &Bound<'_, PyAny>) -> PyResult<$kind> {
                let limits = (i128::from($least), i128::from($most));
                $crate::arguments::number::whole(
                    stringify!($name), value, limits, $crate::arguments::ArgumentRefusal::$refusal,
                )
            }
        )*
    };
}

/// The maximum of counts and indices: the largest length of a list.
const COUNT_MAX: u64 = (1 << 63) - 1;

// `Shape` checks further that no axis is empty and that the total size is below 2^63 bytes.
numbers! {
    num_blocks: u64, 0, COUNT_MAX, Layout;
    num_layers: u64, 0, COUNT_MAX, Layout;
    page_size: u64, 0, COUNT_MAX, Layout;
    first_layer: u64, 0, COUNT_MAX, Layout;
    first_head: u64, 0, COUNT_MAX, Layout;
    replica: u32, 0, u32::MAX, Layout;
    owner: u64, 0, u64::MAX, Request;
    have: u64, 0, COUNT_MAX, Request;
    tokens: u64, 0, COUNT_MAX, Request;
    tenant: u32, 0, u32::MAX, Request;
    priority: i8, i8::MIN, i8::MAX, Request;
    keep: i8, i8::MIN, i8::MAX, Request;
    output_tokens: u32, 0, u32::MAX, Request;
    input_tokens: u32, 0, u32::MAX, Request;
    bytes_max: u64, 0, COUNT_MAX, Setting;
    block_bytes: u64, 0, COUNT_MAX, Setting;
    capacity: usize, 0, 1_u64 << 26, Request;
    token_blocks: usize, 0, 1_u64 << 26, Request;
    job: u64, 0, u64::MAX, Request;
    first: usize, 0, COUNT_MAX, Request;
    blocks: usize, 0, COUNT_MAX, Request;
    count: usize, 0, COUNT_MAX, Request;
    layer: usize, 0, COUNT_MAX, Request;
    start: usize, 0, COUNT_MAX, Request;
    stop: usize, 0, COUNT_MAX, Request;
    length: usize, 0, COUNT_MAX, Request;
}

/// An integer within limits.
pub(crate) fn whole<T: TryFrom<i128>>(
    name: &str,
    value: &Bound<'_, PyAny>,
    (least, most): (i128, i128),
    refusal: ArgumentRefusal,
) -> PyResult<T> {
    let outside = || {
        let text = format!(
            "{name} is {}; give a whole number of {least} to {most}",
            shown(value)
        );
        refusal.error(text)
    };
    if value.is_instance_of::<PyBool>() {
        return Err(wrong_type(name, "a whole number", value));
    }
    let number = match value.extract::<i128>() {
        Ok(number) => number,
        Err(error) if error.is_instance_of::<PyOverflowError>(value.py()) => return Err(outside()),
        Err(_) => return Err(wrong_type(name, "a whole number", value)),
    };
    let within = Some(number).filter(|number| (least..=most).contains(number));
    within
        .and_then(|number| T::try_from(number).ok())
        .ok_or_else(outside)
}
