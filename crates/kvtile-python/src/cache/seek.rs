//! Lookups that wait for the answers of tiers.

use std::time::Duration;

use kvtile::tiers::cache::Seek;
use parking_lot::Mutex;
use pyo3::prelude::*;

use super::PyMatch;
use crate::{error::python::ClosedError, guard, pickle};

/// A lookup that queries the shared tier first. ``Cache.seek`` starts it.
///
/// It pins no block before its match is taken.
#[pyclass(name = "Seek", module = "kvtile", frozen)]
pub(crate) struct PySeek(Mutex<Option<Seek>>);

impl PySeek {
    pub(super) fn new(seek: Seek) -> PySeek {
        PySeek(Mutex::new(Some(seek)))
    }

    fn take(&self) -> PyResult<Seek> {
        let seek = self.0.lock().take();
        seek.ok_or_else(|| ClosedError::new_err("the match of this seek was taken already"))
    }

    fn put_back(&self, seek: Seek) {
        *self.0.lock() = Some(seek);
    }
}

impl Drop for PySeek {
    fn drop(&mut self) {
        guard::discard(self.0.get_mut().take());
    }
}

#[pymethods]
impl PySeek {
    /// Whether the match would come at once: the tier has answered, or the time is over.
    #[getter]
    fn ready(&self) -> bool {
        self.0.lock().as_ref().is_some_and(Seek::is_ready)
    }

    /// Takes the match if it is ready, else returns None. It never blocks.
    ///
    /// Raises:
    ///     ClosedError: the match was taken already.
    #[pyo3(name = "match")]
    fn found(&self, py: Python<'_>) -> PyResult<Option<PyMatch>> {
        let seek = self.take()?;
        match guard::call(py, move || seek.try_match())? {
            Ok(found) => Ok(Some(PyMatch::new(found))),
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
    fn wait(&self, py: Python<'_>) -> PyResult<PyMatch> {
        let seek = self.take()?;
        let poll = |turn: Duration| seek.wait_timeout(turn).then_some(());
        if let Err(error) = guard::wait(py, None, poll) {
            self.put_back(seek);
            return Err(error);
        }
        Ok(PyMatch::new(guard::call(py, move || seek.wait())?))
    }

    fn __reduce__(&self) -> PyResult<()> {
        Err(pickle::refused(
            "Seek",
            "it belongs to its cache; pickle the keys and seek again",
        ))
    }

    fn __repr__(&self) -> String {
        match &*self.0.lock() {
            Some(seek) if seek.is_ready() => "<kvtile.Seek, ready>".to_owned(),
            Some(_) => "<kvtile.Seek, waiting for the shared tier>".to_owned(),
            None => "<kvtile.Seek, taken>".to_owned(),
        }
    }
}
