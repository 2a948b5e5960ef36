//! Integers that may be None, with their limits.

use pyo3::prelude::*;

use super::number::whole;

macro_rules! optional {
    ($($name:ident: $kind:ty, $most:expr, $refusal:ident;)*) => {
        $(
            pub(crate) fn $name(value: &Bound<'_, PyAny>) -> PyResult<Option<$kind>> {
                if value.is_none() {
                    return Ok(None);
                }
                let limits = (0, i128::from($most));
                let refusal = $crate::arguments::ArgumentRefusal::$refusal;
                whole(stringify!($name), value, limits, refusal).map(Some)
            }
        )*
    };
}

/// The same maximum as in [`super::number`].
const COUNT_MAX: u64 = (1 << 63) - 1;

optional! {
    num_heads: u64, COUNT_MAX, Layout;
    head_size: u64, COUNT_MAX, Layout;
    total_layers: u64, COUNT_MAX, Layout;
    total_heads: u64, COUNT_MAX, Layout;
    unit_bytes: u64, COUNT_MAX, Layout;
    page_size: usize, COUNT_MAX, Request;
    seed: u64, u64::MAX, Request;
}
