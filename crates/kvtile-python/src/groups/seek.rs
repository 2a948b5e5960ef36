//! Lookups over groups that wait for the answers of tiers.

use std::time::Duration;

use kvtile::tiers::groups::GroupSeek;
use parking_lot::Mutex;
use pyo3::prelude::*;

use super::PyGroupMatch;
use crate::{error::python::ClosedError, guard, pickle};

/// A lookup of stops that asks the shared tier first. ``GroupCache.seek`` starts it.
///
/// It pins no page before its match is taken.
#[pyclass(name = "GroupSeek", module = "kvtile", frozen)]
pub(crate) struct PyGroupSeek(Mutex<Option<GroupSeek>>);

impl PyGroupSeek {
    pub(super) fn new(seek: GroupSeek) -> PyGroupSeek {
        PyGroupSeek(Mutex::new(Some(seek)))
    }

    fn take(&self) -> PyResult<GroupSeek> {
        let seek = self.0.lock().take();
        seek.ok_or_else(|| ClosedError::new_err("the match of this seek was taken already"))
    }

    fn put_back(&self, seek: GroupSeek) {
        *self.0.lock() = Some(seek);
    }
}

impl Drop for PyGroupSeek {
    fn drop(&mut self) {
        guard::discard(self.0.get_mut().take());
    }
}

#[pymethods]
impl PyGroupSeek {
    /// Whether the match would come at once: the longest stop is known, or the time is over.
    #[getter]
    fn ready(&self, py: Python<'_>) -> PyResult<bool> {
        guard::call(py, || {
            self.0.lock().as_mut().is_some_and(GroupSeek::is_ready)
        })
    }

    /// Takes the match if it is ready, else returns None. It never blocks.
    ///
    /// Raises:
    ///     ClosedError: the match was taken already.
    #[pyo3(name = "match")]
    fn found(&self, py: Python<'_>) -> PyResult<Option<PyGroupMatch>> {
        let seek = self.take()?;
        match guard::call(py, move || seek.try_match())? {
            Ok(found) => Ok(Some(PyGroupMatch::new(found))),
            Err(seek) => {
                self.put_back(*seek);
                Ok(None)
            }
        }
    }

    /// Waits until the match is ready, at most for the time of the seek, and takes it.
    ///
    /// Raises:
    ///     ClosedError: the match was taken already.
    fn wait(&self, py: Python<'_>) -> PyResult<PyGroupMatch> {
        let seek = Mutex::new(self.take()?);
        let poll = |turn: Duration| seek.lock().wait_timeout(turn).then_some(());
        let waited = guard::wait(py, None, poll);
        let seek = seek.into_inner();
        if let Err(error) = waited {
            self.put_back(seek);
            return Err(error);
        }
        Ok(PyGroupMatch::new(guard::call(py, move || seek.wait())?))
    }

    fn __reduce__(&self) -> PyResult<()> {
        Err(pickle::refused(
            "GroupSeek",
            "it belongs to its cache; pickle the keys and seek again",
        ))
    }

    fn __repr__(&self) -> String {
        match &*self.0.lock() {
            Some(_) => "<kvtile.GroupSeek>".to_owned(),
            None => "<kvtile.GroupSeek, taken>".to_owned(),
        }
    }
}
