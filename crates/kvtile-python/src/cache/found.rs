//! Matches: the blocks that a lookup found, pinned until the match is loaded or released.

use kvtile::{blocks::events::TierId, tiers::cache::Match};
use parking_lot::{Mutex, MutexGuard};
use pyo3::{prelude::*, types::PyTuple};

use crate::{
    arguments::{
        number,
        text::{self, TextArgument},
    },
    error::python::ClosedError,
    guard, pickle,
};

/// The longest stored prefix of a request. Its blocks are pinned until the match is loaded or
/// released.
///
/// ``len`` is the number of blocks. Use it in a ``with`` statement if it may stay unused.
#[pyclass(name = "Match", module = "kvtile", frozen)]
pub(crate) struct PyMatch(Mutex<Option<Match>>);

impl PyMatch {
    pub(super) fn new(found: Match) -> PyMatch {
        PyMatch(Mutex::new(Some(found)))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Match>> {
        self.0.lock()
    }

    /// Takes the match out; later calls fail with `ClosedError`.
    pub(super) fn take(&self) -> PyResult<Match> {
        let found = self.lock().take();
        found.ok_or_else(|| ClosedError::new_err("the match was loaded or released already"))
    }

    fn read<T>(&self, read: impl FnOnce(&Match) -> T) -> PyResult<T> {
        let found = self.lock();
        let found = found.as_ref().map(read);
        found.ok_or_else(|| ClosedError::new_err("the match was loaded or released already"))
    }
}

impl Drop for PyMatch {
    fn drop(&mut self) {
        let found = self.0.get_mut();
        guard::discard(found.take());
    }
}

#[pymethods]
impl PyMatch {
    /// The number of blocks found.
    #[getter]
    fn blocks(&self) -> PyResult<usize> {
        self.read(Match::blocks)
    }

    fn __len__(&self) -> PyResult<usize> {
        self.blocks()
    }

    /// The tier of each block: ``"host"``, ``"disk"``, or ``"disk:parts"`` for blocks that parts of
    /// other caches cover.
    #[getter]
    fn tiers(&self) -> PyResult<Vec<String>> {
        self.read(|found| found.tiers().map(|tier| tier.to_string()).collect())
    }

    /// How many of its blocks are in ``tier``.
    fn blocks_in(&self, #[pyo3(from_py_with = text::tier)] tier: TextArgument) -> PyResult<usize> {
        let tier = text::tier_of(&tier)?;
        self.read(|found| found.blocks_in(tier))
    }

    /// Drops the first ``blocks`` blocks, which the engine has already, and returns the match.
    fn skip<'py>(
        slf: Bound<'py, Self>,
        #[pyo3(from_py_with = number::blocks)] blocks: usize,
    ) -> PyResult<Bound<'py, Self>> {
        slf.get().change(slf.py(), |found| found.skip(blocks))?;
        Ok(slf)
    }

    /// Keeps only the first ``blocks`` blocks, and returns the match.
    fn truncate<'py>(
        slf: Bound<'py, Self>,
        #[pyo3(from_py_with = number::blocks)] blocks: usize,
    ) -> PyResult<Bound<'py, Self>> {
        slf.get().change(slf.py(), |found| found.truncate(blocks))?;
        Ok(slf)
    }

    /// Unpins the blocks. Releasing twice, or after a load, is fine.
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
            "Match",
            "it pins blocks of its cache; pickle the keys and look them up again",
        ))
    }

    fn __repr__(&self) -> String {
        match &*self.lock() {
            Some(found) => {
                let mut tiers: Vec<(TierId, usize)> = Vec::new();
                for tier in found.tiers() {
                    match tiers.iter_mut().find(|(one, _)| *one == tier) {
                        Some((_, blocks)) => *blocks += 1,
                        None => tiers.push((tier, 1)),
                    }
                }
                let tiers: Vec<String> = tiers
                    .iter()
                    .map(|(tier, blocks)| format!("{blocks} in {tier}"))
                    .collect();
                format!(
                    "<kvtile.Match of {} blocks: {}>",
                    found.blocks(),
                    tiers.join(", ")
                )
            }
            None => "<kvtile.Match, loaded or released>".to_owned(),
        }
    }
}

impl PyMatch {
    fn change(&self, py: Python<'_>, change: impl FnOnce(Match) -> Match + Send) -> PyResult<()> {
        let found = self.take()?;
        let changed = guard::call(py, move || change(found))?;
        *self.lock() = Some(changed);
        Ok(())
    }
}
