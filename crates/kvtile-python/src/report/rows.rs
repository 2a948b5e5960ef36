//! The outcome of a job of a block store, and of its flushes.

use kvtile::tiers::block_store::{BlockOutcome, BlockOutcomes, StoreFlush};
use pyo3::{prelude::*, types::PyType};
use serde::{Deserialize, Serialize};

use crate::pickle::{self, ReducedObject};

/// The outcome of a job. The job no longer touches its rows.
#[pyclass(name = "BlockOutcomes", module = "kvtile", frozen)]
#[derive(Clone, Debug)]
pub(crate) struct PyBlockOutcomes(OutcomeFacts);

#[derive(Clone, Debug, Serialize, Deserialize)]
struct OutcomeFacts {
    outcomes: Vec<String>,
    ok: Vec<bool>,
    detail: Option<String>,
    bytes: u64,
    seconds: f64,
}

impl From<BlockOutcomes> for PyBlockOutcomes {
    fn from(report: BlockOutcomes) -> PyBlockOutcomes {
        let blocks = report.blocks.iter();
        let detail = report.blocks.iter().find_map(|block| match block {
            BlockOutcome::Failed(error) => Some(error.to_string()),
            _ => None,
        });
        PyBlockOutcomes(OutcomeFacts {
            outcomes: blocks.map(|block| block.name().to_owned()).collect(),
            ok: report.blocks.iter().map(BlockOutcome::is_ok).collect(),
            detail,
            bytes: report.bytes,
            seconds: report.elapsed.as_secs_f64(),
        })
    }
}

#[pymethods]
impl PyBlockOutcomes {
    /// The outcome of each key, in the order of the call: ``"ok"``, ``"present"`` (it was stored
    /// already), ``"absent"``, ``"damaged"`` (the bytes were not those that were stored; the block is
    /// removed), ``"no room"`` (staging memory stayed full), ``"cancelled"``, ``"closed"`` or
    /// ``"failed"``. The row of a block that was not loaded has unspecified bytes.
    #[getter]
    fn outcomes(&self) -> Vec<String> {
        self.0.outcomes.clone()
    }

    /// Whether each block is where the job should bring it.
    #[getter]
    fn ok(&self) -> Vec<bool> {
        self.0.ok.clone()
    }

    /// The error of the first failed block.
    #[getter]
    fn detail(&self) -> Option<String> {
        self.0.detail.clone()
    }

    /// Bytes that were copied to or from rows.
    #[getter]
    fn bytes(&self) -> u64 {
        self.0.bytes
    }

    /// Seconds from the call to the end.
    #[getter]
    fn seconds(&self) -> f64 {
        self.0.seconds
    }

    fn __len__(&self) -> usize {
        self.0.ok.len()
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<ReducedObject<'py>> {
        pickle::reduce(&slf.get_type(), &slf.get().0)
    }

    #[classmethod]
    fn _from_pickle(_class: &Bound<'_, PyType>, text: &str) -> PyResult<Self> {
        pickle::restore(text).map(Self)
    }

    fn __repr__(&self) -> String {
        let ok = self.0.ok.iter().filter(|ok| **ok).count();
        format!(
            "<kvtile.BlockOutcomes: {ok} of {} blocks ok, {} bytes>",
            self.0.ok.len(),
            self.0.bytes
        )
    }
}

/// The outcome of a flush of a block store.
#[pyclass(name = "StoreFlush", module = "kvtile", frozen)]
#[derive(Clone, Debug)]
pub(crate) struct PyStoreFlush(StoreFlushFacts);

#[derive(Clone, Debug, Serialize, Deserialize)]
struct StoreFlushFacts {
    durable: bool,
    unwritten: usize,
    failed: usize,
}

impl From<StoreFlush> for PyStoreFlush {
    fn from(report: StoreFlush) -> PyStoreFlush {
        PyStoreFlush(StoreFlushFacts {
            durable: report.durable,
            unwritten: report.unwritten,
            failed: report.failed,
        })
    }
}

#[pymethods]
impl PyStoreFlush {
    /// Whether every block that was stored before the flush is durable, or was evicted or removed
    /// since.
    #[getter]
    fn durable(&self) -> bool {
        self.0.durable
    }

    /// Blocks that still wait to be written.
    #[getter]
    fn unwritten(&self) -> usize {
        self.0.unwritten
    }

    /// Blocks whose write failed, or that were damaged or lost, since the previous flush.
    #[getter]
    fn failed(&self) -> usize {
        self.0.failed
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<ReducedObject<'py>> {
        pickle::reduce(&slf.get_type(), &slf.get().0)
    }

    #[classmethod]
    fn _from_pickle(_class: &Bound<'_, PyType>, text: &str) -> PyResult<Self> {
        pickle::restore(text).map(Self)
    }

    fn __repr__(&self) -> String {
        let StoreFlushFacts {
            durable,
            unwritten,
            failed,
        } = self.0;
        let durable = if durable { "True" } else { "False" };
        format!("StoreFlush(durable={durable}, unwritten={unwritten}, failed={failed})")
    }
}
