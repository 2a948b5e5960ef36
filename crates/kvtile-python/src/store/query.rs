//! Queries of a block store to the tiers that answer later.

use std::time::{Duration, Instant};

use kvtile::tiers::{cache::Completion, tier::TierAnswer};
use pyo3::prelude::*;

use crate::{arguments::time, guard, pickle};

/// A query to the tiers of a BlockStore that answer later, such as a shared one. ``BlockStore.ask``
/// starts it.
///
/// Once it is ready, ``BlockStore.contains`` and ``BlockStore.load`` know the blocks that it named.
/// A tier that does not answer in time counts as without them.
#[pyclass(name = "StoreQuery", module = "kvtile", frozen)]
pub(crate) struct PyStoreQuery(Vec<Completion<TierAnswer>>);

impl PyStoreQuery {
    pub(super) fn new(answers: Vec<Completion<TierAnswer>>) -> PyStoreQuery {
        PyStoreQuery(answers)
    }

    fn is_ready(&self) -> bool {
        self.0.iter().all(Completion::is_complete)
    }
}

#[pymethods]
impl PyStoreQuery {
    /// Whether all tiers have answered.
    #[getter]
    fn ready(&self) -> bool {
        self.is_ready()
    }

    /// Waits until all tiers have answered. Other Python threads run during the wait, and Ctrl-C ends
    /// it.
    ///
    /// Args:
    ///     timeout: seconds; default: until the tiers' own time limits (``shared_within``).
    ///
    /// Returns:
    ///     Whether all tiers have answered.
    #[pyo3(signature = (timeout=None))]
    fn wait(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = time::timeout)] timeout: Option<Duration>,
    ) -> PyResult<bool> {
        let poll = |turn: Duration| {
            let end = Instant::now() + turn;
            let left = || end.saturating_duration_since(Instant::now());
            let mut answers = self.0.iter();
            answers
                .all(|answer| answer.wait_timeout(left()).is_some())
                .then_some(())
        };
        Ok(guard::wait(py, timeout, poll)?.is_some())
    }

    fn __reduce__(&self) -> PyResult<()> {
        Err(pickle::refused(
            "StoreQuery",
            "it belongs to its store; pickle the keys and ask again",
        ))
    }

    fn __repr__(&self) -> String {
        let state = if self.is_ready() { "ready" } else { "waiting" };
        format!("<kvtile.StoreQuery, {state}>")
    }
}
