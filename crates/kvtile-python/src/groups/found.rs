//! Matches of a cache over groups: a stop and what it needs, pinned.

use kvtile::tiers::groups::GroupMatch;
use parking_lot::{Mutex, MutexGuard};
use pyo3::{
    prelude::*,
    types::{PyRange, PyTuple},
};

use crate::{
    arguments::{
        number,
        text::{self, TextArgument},
    },
    error::{CallFailure, python::ClosedError, raise},
    guard, pickle,
};

/// The longest usable stop of a request. What it needs of each group is pinned until the match is
/// loaded or released.
///
/// Use it in a ``with`` statement if it may stay unused.
#[pyclass(name = "GroupMatch", module = "kvtile", frozen)]
pub(crate) struct PyGroupMatch(Mutex<Option<GroupMatch>>);

impl PyGroupMatch {
    pub(super) fn new(found: GroupMatch) -> PyGroupMatch {
        PyGroupMatch(Mutex::new(Some(found)))
    }

    fn lock(&self) -> MutexGuard<'_, Option<GroupMatch>> {
        self.0.lock()
    }

    /// Takes the match out; later calls fail with `ClosedError`.
    pub(super) fn take(&self) -> PyResult<GroupMatch> {
        let found = self.lock().take();
        found.ok_or_else(gone)
    }

    fn read<T>(&self, read: impl FnOnce(&GroupMatch) -> T) -> PyResult<T> {
        self.lock().as_ref().map(read).ok_or_else(gone)
    }
}

fn gone() -> PyErr {
    ClosedError::new_err("the match was loaded or released already")
}

impl Drop for PyGroupMatch {
    fn drop(&mut self) {
        let found = self.0.get_mut();
        guard::discard(found.take());
    }
}

#[pymethods]
impl PyGroupMatch {
    /// Tokens that a load lets the engine resume after; 0 if nothing was found.
    #[getter]
    fn stop(&self) -> PyResult<u64> {
        self.read(GroupMatch::stop)
    }

    /// All usable stops of the request now, the longest first. Ranks of one engine intersect their sets;
    /// the smallest of their longest stops may be no stop of some of them.
    #[getter]
    fn stops(&self, py: Python<'_>) -> PyResult<Vec<u64>> {
        let found = guard::call(py, || self.lock().as_ref().map(GroupMatch::stops))?;
        found.ok_or_else(gone)
    }

    /// Tokens up to which the groups with the rule ``"full"`` are stored, if they reach beyond the stop;
    /// None otherwise. Another request branched off there: a stop stored there is found by the next one.
    #[getter]
    fn branch(&self) -> PyResult<Option<u64>> {
        self.read(GroupMatch::branch)
    }

    /// The pages of a group that a load must bring, as a range.
    ///
    /// Args:
    ///     group: the name of the group.
    ///     have: tokens of the group that the engine has itself, from the first one on.
    ///
    /// Raises:
    ///     RequestError: a group that the cache does not have.
    #[pyo3(signature = (group, have=0))]
    fn needs<'py>(
        &self,
        py: Python<'py>,
        #[pyo3(from_py_with = text::group)] group: TextArgument,
        #[pyo3(from_py_with = number::have)] have: u64,
    ) -> PyResult<Bound<'py, PyRange>> {
        let pages = self.read(|found| found.needs(&group, have))?;
        let pages = pages.map_err(|error| raise(py, CallFailure::from(error)))?;
        let end = |page: u64| isize::try_from(page).unwrap_or(isize::MAX);
        PyRange::new(py, end(pages.start), end(pages.end))
    }

    /// The longest usable stop of at most ``tokens`` tokens: a new lookup, which consumes this match.
    fn back_to(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = number::tokens)] tokens: u64,
    ) -> PyResult<PyGroupMatch> {
        let found = self.take()?;
        let shorter = guard::call(py, move || found.back_to(tokens))?;
        Ok(PyGroupMatch::new(shorter))
    }

    /// Unpins the pages. Releasing twice, or after a load, is fine.
    fn release(&self, py: Python<'_>) -> PyResult<()> {
        let found = self.lock().take();
        guard::call(py, move || drop(found))
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyTuple>) -> PyResult<()> {
        self.release(py)
    }

    fn __reduce__(&self) -> PyResult<()> {
        Err(pickle::refused(
            "GroupMatch",
            "it pins pages of this process; look the keys up again",
        ))
    }

    fn __repr__(&self) -> String {
        match &*self.lock() {
            Some(found) => format!("<kvtile.GroupMatch of {} tokens>", found.stop()),
            None => "<kvtile.GroupMatch, loaded or released>".to_owned(),
        }
    }
}
