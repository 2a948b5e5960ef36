//! The Python package `kvtile`: this extension module and the files in `python/kvtile`.
//!
//! | module | contents |
//! | --- | --- |
//! | `guard` | the only way into the library: releases the GIL, catches panics, refuses forks |
//! | `ending` | interpreter shutdown: keeps other threads from returning to Python |
//! | `error` | converts Rust errors to Python exceptions |
//! | `arguments` | checks the type and limits of each Python argument |
//! | `dtype`, `shape` | data types, planes and shapes |
//! | `tensor` | reads DLPack, array interfaces and buffers; the only unsafe code here |
//! | `device` | the driver and the devices of the process |
//! | `layout` | words and presets over tensors |
//! | `plan`, `transfer` | copy plans and copies |
//! | `identity`, `model`, `keys` | identities, models with groups of layers, block keys |
//! | `cache` | the cache, its matches, statistics and events |
//! | `groups` | the cache over groups of layers, its matches and reports |
//! | `publish` | publishing events for routers |
//! | `shared` | the shared tier, and stores that Python implements |
//! | `http` | the numbers of caches and block stores over HTTP |
//! | `completion`, `report` | completions and their reports |
//!
//! The crate holds no logic of blocks or layouts: the library `kvtile` does all of it.

mod arguments;
mod cache;
mod completion;
mod device;
mod directory;
mod dtype;
mod ending;
mod error;
mod groups;
mod guard;
mod http;
mod identity;
mod keys;
mod layout;
mod model;
mod order;
mod pickle;
mod plan;
mod publish;
mod record;
mod report;
mod selection;
mod shape;
mod shared;
mod slot;
mod store;
mod tensor;
mod transfer;

use pyo3::prelude::*;

/// The extension module of the package `kvtile`. Import the package, not this module.
#[pymodule]
mod _kvtile {
    use std::ffi::OsString;

    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::cache::{PyCache, PyEvent, PyMatch, PySeek, PySnapshot, PySubscriber};
    #[pymodule_export]
    use crate::completion::PyCompletion;
    #[pymodule_export]
    use crate::directory::{PyTierDirectory, reading_pays, usable_stops};
    #[pymodule_export]
    use crate::groups::{
        PyGroupCache, PyGroupLoadReport, PyGroupMatch, PyGroupSeek, PyGroupStoreReport,
    };
    #[pymodule_export]
    use crate::http::{PyHttpServer, serve_http};
    #[pymodule_export]
    use crate::identity::PyIdentity;
    #[pymodule_export]
    use crate::keys::{PyTokenHasher, PyTokenSequence};
    #[pymodule_export]
    use crate::layout::PyLayout;
    #[pymodule_export]
    use crate::model::{PyModelGroup, PyModelIdentity};
    #[pymodule_export]
    use crate::order::PyEvictionOrder;
    #[pymodule_export]
    use crate::plan::{PyPlan, plan};
    #[pymodule_export]
    use crate::publish::PyEventPublisher;
    #[pymodule_export]
    use crate::record::PyTraceRecorder;
    #[pymodule_export]
    use crate::report::{
        PyBlockOutcomes, PyFlushReport, PyLoadReport, PyStoreFlush, PyStoreReport, PyTransferReport,
    };
    #[pymodule_export]
    use crate::shape::{PyPlane, PyShape};
    #[pymodule_export]
    use crate::store::{PyBlockStore, PyStoreGroup, PyStoreQuery, PyStoreRows, block_key};
    #[pymodule_export]
    use crate::transfer::{copy_blocks, copy_blocks_async};

    /// Closes all caches of this process, which is about to end. After that, other threads do not
    /// return from kvtile calls.
    #[pyfunction]
    fn close_all(py: Python<'_>) -> PyResult<()> {
        crate::publish::close_all(py)?;
        crate::record::close_all(py)?;
        crate::store::close_all(py)?;
        crate::groups::close_all(py)?;
        crate::cache::close_all(py)
    }

    /// Runs the command-line program kvtile with these arguments after its name. Returns the exit
    /// code.
    #[pyfunction]
    fn run_program(py: Python<'_>, arguments: Vec<OsString>) -> PyResult<u8> {
        let name = OsString::from("kvtile");
        let arguments: Vec<OsString> = std::iter::once(name).chain(arguments).collect();
        crate::guard::call(py, || kvtile_cli::run(&arguments))
    }

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        super::init(module)
    }
}

fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
    error::python::load(module.py());
    // A second interpreter in this process may have taken the logger already.
    let _ = pyo3_log::try_init();
    #[cfg(debug_assertions)]
    module.setattr("_panic", wrap_pyfunction!(panic_in_library, module)?)?;
    module.add("STORAGE_WORD", kvtile::tiers::cache::STORAGE_WORD)?;
    module.add("__version__", env!("CARGO_PKG_VERSION"))
}

/// Panics inside the library. A test checks the resulting exception. Not in release builds.
#[cfg(debug_assertions)]
#[pyfunction]
#[expect(clippy::panic, reason = "it is the purpose")]
fn panic_in_library(py: Python<'_>, text: String) -> PyResult<()> {
    guard::call(py, || panic!("{text}"))
}
