//! What caches and block stores of this process do, over HTTP.

use std::sync::{Arc, Weak};

use kvtile::{BlockStore, Cache};
use kvtile_http::{CacheReport, HttpError, HttpServer};
use parking_lot::Mutex;
use pyo3::{prelude::*, types::PyDictMethods};

use crate::{
    arguments::{
        object,
        text::{self, TextArgument},
        wrong_type,
    },
    cache::PyCache,
    error::python::{HttpServerError, SettingsError},
    guard,
    slot::OpenSlot,
    store::PyBlockStore,
};

/// The names of one cache that has no name of its own.
const NAME: &str = "kvtile";

/// Something that a server shows. It does not keep it open.
#[derive(Clone)]
pub(crate) enum ObservedSlot {
    /// A cache.
    Cache(Weak<OpenSlot<Cache>>),
    /// A block store.
    Store(Weak<OpenSlot<BlockStore>>),
}

impl ObservedSlot {
    /// Its numbers; `None` once it is closed.
    fn report(&self, name: &str) -> Option<CacheReport> {
        match self {
            ObservedSlot::Cache(slot) => {
                let cache = slot.upgrade()?.get()?;
                Some(CacheReport::of(name, &*cache))
            }
            ObservedSlot::Store(slot) => {
                let store = slot.upgrade()?.get()?;
                Some(CacheReport::of(name, &*store))
            }
        }
    }
}

/// Caches by their names.
pub(crate) struct ObservedSlots(Vec<(String, ObservedSlot)>);

/// A cache, a block store, or a dict of these by their names.
fn observed(value: &Bound<'_, PyAny>) -> PyResult<ObservedSlots> {
    if let Some(slot) = slot_of(value) {
        return Ok(ObservedSlots(vec![(NAME.to_owned(), slot)]));
    }
    const WANTED: &str = "a Cache, a BlockStore, or a dict of these by their names";
    let dict = object::mapping("caches", value);
    let dict = dict.map_err(|_| wrong_type("caches", WANTED, value))?;
    let dict = dict.ok_or_else(|| wrong_type("caches", WANTED, value))?;
    let mut slots = Vec::new();
    for (name, cache) in dict.iter() {
        let name = text::read("the name of a cache", &name)?;
        let slot = slot_of(&cache);
        let slot = slot.ok_or_else(|| wrong_type("a cache", "a Cache or a BlockStore", &cache))?;
        slots.push((name.into_owned(), slot));
    }
    Ok(ObservedSlots(slots))
}

fn slot_of(value: &Bound<'_, PyAny>) -> Option<ObservedSlot> {
    if let Ok(cache) = value.cast::<PyCache>() {
        return Some(ObservedSlot::Cache(cache.get().observed()));
    }
    let store = value.cast::<PyBlockStore>().ok()?;
    Some(ObservedSlot::Store(store.get().observed()))
}

/// Serves the numbers of caches over HTTP: a live page at ``/``, ``/metrics`` for Prometheus, ``/stats.json`` and
/// ``/healthz``. The server has threads of its own, changes nothing in the caches, and does not keep them open: a
/// closed cache leaves the page.
///
/// It has no passwords and no encryption. On an address that other machines reach, they can read the names of the
/// models and all numbers.
///
/// Args:
///     caches: a Cache, a BlockStore, or a dict of these by the names that the page shows.
///     address: ``"HOST:PORT"``, or ``"PORT"`` for this machine alone; port 0 is a free port.
///
/// Returns:
///     An HttpServer, which serves until it is closed.
///
/// Raises:
///     SettingsError: a text that is not an address.
///     HttpServerError: an address that this process cannot listen on.
#[pyfunction]
#[pyo3(
    signature = (caches, address=TextArgument::Borrowed("127.0.0.1:0")),
    text_signature = "(caches, address='127.0.0.1:0')"
)]
pub(crate) fn serve_http(
    py: Python<'_>,
    #[pyo3(from_py_with = observed)] caches: ObservedSlots,
    #[pyo3(from_py_with = text::address)] address: TextArgument,
) -> PyResult<PyHttpServer> {
    let ObservedSlots(caches) = caches;
    let read = move || {
        let reports = caches.iter().map(|(name, slot)| slot.report(name));
        reports.flatten().collect()
    };
    let served = guard::call(py, || kvtile_http::serve(&address, read))?;
    let server = served.map_err(|error| match error {
        HttpError::Address { .. } => SettingsError::new_err(error.to_string()),
        _ => HttpServerError::new_err(error.to_string()),
    })?;
    Ok(PyHttpServer {
        url: server.url(),
        server: Some(Arc::new(Mutex::new(Some(server)))),
    })
}

/// A server of the numbers of caches, which ``serve_http`` starts. Close it, or use it in a ``with`` statement; it also
/// ends when it is collected.
#[pyclass(name = "HttpServer", module = "kvtile", frozen)]
pub(crate) struct PyHttpServer {
    url: String,
    server: Option<Arc<Mutex<Option<HttpServer>>>>,
}

impl Drop for PyHttpServer {
    fn drop(&mut self) {
        guard::discard(self.server.take());
    }
}

#[pymethods]
impl PyHttpServer {
    /// The URL of the page.
    #[getter]
    fn url(&self) -> &str {
        &self.url
    }

    /// Whether it is closed.
    #[getter]
    fn closed(&self) -> bool {
        let server = self.server.as_ref();
        server.is_none_or(|server| server.lock().is_none())
    }

    /// Ends the server. Closing twice is fine.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        guard::call(py, || {
            let server = self.server.as_ref();
            drop(server.and_then(|server| server.lock().take()));
        })
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(
        &self,
        py: Python<'_>,
        _exception: &Bound<'_, pyo3::types::PyTuple>,
    ) -> PyResult<()> {
        self.close(py)
    }

    fn __repr__(&self) -> String {
        let state = if self.closed() { " (closed)" } else { "" };
        format!("<kvtile.HttpServer at {}{state}>", self.url)
    }
}
