//! Integers that may be None, with their limits.

use pyo3::prelude::*;

use super::{ArgumentRefusal, number::whole, shown, time::real};

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

/// A share of a disk, or None.
pub(crate) fn share(value: &Bound<'_, PyAny>) -> PyResult<Option<f64>> {
    if value.is_none() {
        return Ok(None);
    }
    let share = real("share", "a number above 0", value)?;
    let share = share.filter(|share| share.is_finite() && *share > 0.0);
    share.map(Some).ok_or_else(|| {
        let text = format!("share is {}; give a number above 0", shown(value));
        ArgumentRefusal::Setting.error(text)
    })
}

/// The same maximum as in [`super::number`].
const COUNT_MAX: u64 = (1 << 63) - 1;

optional! {
    num_heads: u64, COUNT_MAX, Layout;
    tokens: u64, COUNT_MAX, Layout;
    every: u64, COUNT_MAX, Layout;
    head_size: u64, COUNT_MAX, Layout;
    total_layers: u64, COUNT_MAX, Layout;
    total_heads: u64, COUNT_MAX, Layout;
    unit_bytes: u64, COUNT_MAX, Layout;
    page_size: usize, COUNT_MAX, Request;
    seed: u64, u64::MAX, Request;
    rank: u64, u64::MAX, Request;
}
