//! Errors for keywords that a function does not have.

use kvtile::layout::nearest;
use pyo3::{exceptions::PyTypeError, prelude::*, types::PyDict};

/// Names that other projects use, and our name for the same argument.
const ELSEWHERE: [(&str, &str); 22] = [
    ("heads", "num_heads"),
    ("kv_heads", "num_heads"),
    ("num_kv_heads", "num_heads"),
    ("num_key_value_heads", "num_heads"),
    ("head_dim", "head_size"),
    ("block_size", "page_size"),
    ("tokens_per_block", "page_size"),
    ("blocks", "num_blocks"),
    ("num_gpu_blocks", "num_blocks"),
    ("layers", "num_layers"),
    ("num_hidden_layers", "num_layers"),
    ("cache_dtype", "dtype"),
    ("kv_cache_dtype", "dtype"),
    ("torch_dtype", "dtype"),
    ("array", "tensors"),
    ("arrays", "tensors"),
    ("kv_caches", "tensors"),
    ("capacity", "host_bytes"),
    ("cpu_bytes", "host_bytes"),
    ("path", "disk"),
    ("folder", "disk"),
    ("threads", "workers"),
];

/// Refuses keywords in `others`, which `function` does not have. The error is Python's own, with
/// the closest `known` keyword.
pub(crate) fn refuse(
    function: &str,
    others: Option<&Bound<'_, PyDict>>,
    known: &[&str],
) -> PyResult<()> {
    let Some((name, _)) = others.into_iter().flatten().next() else {
        return Ok(());
    };
    let name = name.str()?.to_string();
    let meant = meant(&name, known);
    Err(PyTypeError::new_err(format!(
        "{function}() got an unexpected keyword argument '{name}'{meant}"
    )))
}

/// `; did you mean num_heads?`, or an empty string.
pub(crate) fn meant(name: &str, known: &[&str]) -> String {
    let elsewhere = ELSEWHERE.iter().find(|(other, _)| *other == name);
    let here = elsewhere
        .map(|(_, here)| *here)
        .filter(|here| known.contains(here));
    let close = match here {
        Some(here) => vec![here],
        None => nearest(name, known.iter().copied()),
    };
    match close.as_slice() {
        [] => String::new(),
        close => format!("; did you mean {}?", close.join(" or ")),
    }
}
