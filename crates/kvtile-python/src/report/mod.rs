//! Reports of copies, loads, stores and flushes.

mod rows;

pub(crate) use rows::{PyBlockOutcomes, PyStoreFlush};

use std::collections::BTreeMap;

use kvtile::{
    blocks::events::TierId,
    tiers::cache::{FlushReport, LoadReport, LoadStop, StoreReport, StoreStop, TierFlush},
    transfer::TransferReport,
};
use pyo3::{prelude::*, types::PyType};
use serde::{Deserialize, Serialize};

use crate::pickle::{self, ReducedObject};

/// The report of a completed copy.
#[pyclass(name = "TransferReport", module = "kvtile", frozen)]
#[derive(Clone, Debug)]
pub(crate) struct PyTransferReport(TransferFacts);

#[derive(Clone, Debug, Serialize, Deserialize)]
struct TransferFacts {
    bytes: u64,
    runs: u64,
    seconds: f64,
    verified: bool,
}

impl From<TransferReport> for PyTransferReport {
    fn from(report: TransferReport) -> PyTransferReport {
        PyTransferReport(TransferFacts {
            bytes: report.bytes,
            runs: report.runs,
            seconds: report.elapsed.as_secs_f64(),
            verified: report.verified,
        })
    }
}

#[pymethods]
impl PyTransferReport {
    /// Payload bytes that were moved.
    #[getter]
    fn bytes(&self) -> u64 {
        self.0.bytes
    }

    /// The number of runs of contiguous bytes that were copied.
    #[getter]
    fn runs(&self) -> u64 {
        self.0.runs
    }

    /// Seconds from the start of the copy to its end.
    #[getter]
    fn seconds(&self) -> f64 {
        self.0.seconds
    }

    /// Whether the copy compared the destination with the source.
    #[getter]
    fn verified(&self) -> bool {
        self.0.verified
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<ReducedObject<'py>> {
        pickle::reduce(&slf.get_type(), &slf.get().0)
    }

    #[classmethod]
    fn _from_pickle(_class: &Bound<'_, PyType>, text: &str) -> PyResult<Self> {
        pickle::restore(text).map(Self)
    }

    fn __repr__(&self) -> String {
        let TransferFacts {
            bytes,
            runs,
            seconds,
            ..
        } = self.0;
        format!("TransferReport(bytes={bytes}, runs={runs}, seconds={seconds:.6})")
    }
}

/// The report of a load. Loads do not fail: compute the blocks that did not load.
#[pyclass(name = "LoadReport", module = "kvtile", frozen)]
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PyLoadReport(LoadFacts);

#[derive(Clone, Debug, Serialize, Deserialize)]
struct LoadFacts {
    blocks: usize,
    wanted: usize,
    from_tiers: BTreeMap<String, usize>,
    bytes: u64,
    seconds: f64,
    stopped: Option<String>,
    detail: Option<String>,
}

impl From<LoadReport> for PyLoadReport {
    fn from(report: LoadReport) -> PyLoadReport {
        let host = (TierId::HOST, report.from_host);
        let tiers = std::iter::once(host).chain(report.from_below.iter().copied());
        let gave = tiers.filter(|(_, blocks)| *blocks > 0);
        let stop = report.stopped.as_ref();
        PyLoadReport(LoadFacts {
            blocks: report.blocks,
            wanted: report.wanted,
            from_tiers: gave
                .map(|(tier, blocks)| (tier.to_string(), blocks))
                .collect(),
            bytes: report.bytes,
            seconds: report.elapsed.as_secs_f64(),
            stopped: load_stop(stop).map(str::to_owned),
            detail: match stop {
                Some(LoadStop::Pool(error)) => Some(error.to_string()),
                Some(LoadStop::Transfer(error)) => Some(error.to_string()),
                Some(LoadStop::Refused(text)) => Some(text.to_string()),
                _ => None,
            },
        })
    }
}

fn load_stop(stop: Option<&LoadStop>) -> Option<&'static str> {
    stop.map(|stop| match stop {
        LoadStop::Cancelled => "cancelled",
        LoadStop::Deadline => "deadline",
        LoadStop::Closed => "closed",
        LoadStop::Panicked => "panicked",
        LoadStop::Lost => "lost",
        LoadStop::Evicted => "evicted",
        LoadStop::Late => "late",
        LoadStop::HostFull => "host_full",
        LoadStop::Pool(_) => "pool",
        LoadStop::Transfer(_) => "transfer",
        LoadStop::Refused(_) => "refused",
        _ => "other",
    })
}

impl PyLoadReport {
    /// Why the load is incomplete, with the error if there is one.
    pub(crate) fn stop_text(&self) -> Option<String> {
        stop_text(self.0.stopped.as_ref(), self.0.detail.as_ref())
    }
}

/// A reason with its error.
fn stop_text(stopped: Option<&String>, detail: Option<&String>) -> Option<String> {
    let detail = detail.map(|detail| format!(" ({detail})"));
    stopped.map(|stopped| format!("{stopped}{}", detail.unwrap_or_default()))
}

#[pymethods]
impl PyLoadReport {
    /// Leading blocks that were loaded. Compute the blocks after them.
    #[getter]
    fn blocks(&self) -> usize {
        self.0.blocks
    }

    /// Blocks that were requested.
    #[getter]
    fn wanted(&self) -> usize {
        self.0.wanted
    }

    /// Loaded blocks by the name of their tier; tiers without any are left out.
    #[getter(from_tiers)]
    fn blocks_by_tier(&self) -> BTreeMap<String, usize> {
        self.0.from_tiers.clone()
    }

    /// Payload bytes that were copied to the engine.
    #[getter]
    fn bytes(&self) -> u64 {
        self.0.bytes
    }

    /// Seconds from the call to the completion.
    #[getter]
    fn seconds(&self) -> f64 {
        self.0.seconds
    }

    /// Why a load is incomplete: ``"cancelled"``, ``"deadline"``, ``"closed"``, ``"lost"``
    /// (unreadable, or not the bytes that were written), ``"evicted"``, ``"late"`` (a tier did not
    /// answer in time), ``"host_full"``, ``"pool"``, ``"transfer"`` or ``"panicked"`` (a defect of
    /// kvtile). None if all blocks were loaded.
    #[getter]
    fn stopped(&self) -> Option<&str> {
        self.0.stopped.as_deref()
    }

    /// The error of the pool or the copy, if one of them stopped the load.
    #[getter]
    fn detail(&self) -> Option<String> {
        self.0.detail.clone()
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<ReducedObject<'py>> {
        pickle::reduce(&slf.get_type(), &slf.get().0)
    }

    #[classmethod]
    fn _from_pickle(_class: &Bound<'_, PyType>, text: &str) -> PyResult<Self> {
        pickle::restore(text).map(Self)
    }

    fn __repr__(&self) -> String {
        let LoadFacts { blocks, wanted, .. } = self.0;
        let tiers = self.blocks_by_tier();
        let tiers: Vec<String> = tiers
            .iter()
            .map(|(tier, blocks)| format!("{tier:?}: {blocks}"))
            .collect();
        let stopped = self
            .stopped()
            .map_or("None".to_owned(), |stop| format!("{stop:?}"));
        format!(
            "LoadReport(blocks={blocks}, wanted={wanted}, from_tiers={{{}}}, stopped={stopped})",
            tiers.join(", ")
        )
    }
}

/// The report of a store. Stores do not fail: later lookups miss the blocks that were not stored.
#[pyclass(name = "StoreReport", module = "kvtile", frozen)]
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PyStoreReport(StoreFacts);

#[derive(Clone, Debug, Serialize, Deserialize)]
struct StoreFacts {
    stored: usize,
    present: usize,
    dropped: usize,
    bytes: u64,
    seconds: f64,
    stopped: Option<String>,
    detail: Option<String>,
}

impl From<StoreReport> for PyStoreReport {
    fn from(report: StoreReport) -> PyStoreReport {
        let stop = report.stopped.as_ref();
        PyStoreReport(StoreFacts {
            stored: report.stored,
            present: report.present,
            dropped: report.dropped,
            bytes: report.bytes,
            seconds: report.elapsed.as_secs_f64(),
            stopped: store_stop(stop).map(str::to_owned),
            detail: match stop {
                Some(StoreStop::Pool(error)) => Some(error.to_string()),
                Some(StoreStop::Transfer(error)) => Some(error.to_string()),
                Some(StoreStop::Refused(text)) => Some(text.to_string()),
                _ => None,
            },
        })
    }
}

fn store_stop(stop: Option<&StoreStop>) -> Option<&'static str> {
    stop.map(|stop| match stop {
        StoreStop::Cancelled => "cancelled",
        StoreStop::Deadline => "deadline",
        StoreStop::Cleared => "cleared",
        StoreStop::Closed => "closed",
        StoreStop::Panicked => "panicked",
        StoreStop::HostFull => "host_full",
        StoreStop::NoAncestors => "no_ancestors",
        StoreStop::Pool(_) => "pool",
        StoreStop::Transfer(_) => "transfer",
        StoreStop::Late => "late",
        StoreStop::Refused(_) => "refused",
        _ => "other",
    })
}

impl PyStoreReport {
    /// Why the store is incomplete, with the error if there is one.
    pub(crate) fn stop_text(&self) -> Option<String> {
        stop_text(self.0.stopped.as_ref(), self.0.detail.as_ref())
    }
}

#[pymethods]
impl PyStoreReport {
    /// Blocks that were copied and that lookups find now.
    #[getter]
    fn stored(&self) -> usize {
        self.0.stored
    }

    /// Blocks that were in the cache already.
    #[getter]
    fn present(&self) -> usize {
        self.0.present
    }

    /// Blocks that were not stored.
    #[getter]
    fn dropped(&self) -> usize {
        self.0.dropped
    }

    /// Payload bytes that were copied.
    #[getter]
    fn bytes(&self) -> u64 {
        self.0.bytes
    }

    /// Seconds from the call to the completion.
    #[getter]
    fn seconds(&self) -> f64 {
        self.0.seconds
    }

    /// Why a store is incomplete: ``"cancelled"``, ``"deadline"``, ``"cleared"``, ``"closed"``,
    /// ``"host_full"`` (all host memory is in use, or holds the first blocks of the same chain, which stay),
    /// ``"no_ancestors"`` (no tier has the parent of the first block, so no lookup would find
    /// these), ``"pool"``, ``"transfer"`` or ``"panicked"`` (a defect of kvtile). None if all
    /// blocks were stored.
    #[getter]
    fn stopped(&self) -> Option<&str> {
        self.0.stopped.as_deref()
    }

    /// The error of the pool or the copy, if one of them stopped the store.
    #[getter]
    fn detail(&self) -> Option<String> {
        self.0.detail.clone()
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<ReducedObject<'py>> {
        pickle::reduce(&slf.get_type(), &slf.get().0)
    }

    #[classmethod]
    fn _from_pickle(_class: &Bound<'_, PyType>, text: &str) -> PyResult<Self> {
        pickle::restore(text).map(Self)
    }

    fn __repr__(&self) -> String {
        let StoreFacts {
            stored,
            present,
            dropped,
            ..
        } = self.0;
        let stopped = self
            .stopped()
            .map_or("None".to_owned(), |stop| format!("{stop:?}"));
        format!(
            "StoreReport(stored={stored}, present={present}, dropped={dropped}, stopped={stopped})"
        )
    }
}

/// The report of a flush.
#[pyclass(name = "FlushReport", module = "kvtile", frozen)]
#[derive(Clone, Debug)]
pub(crate) struct PyFlushReport(FlushFacts);

#[derive(Clone, Debug, Serialize, Deserialize)]
struct FlushFacts {
    wanted: usize,
    written: usize,
    no_tier: usize,
    no_room: usize,
    late: usize,
    failed: usize,
    durable: bool,
    tiers: BTreeMap<String, BTreeMap<String, usize>>,
}

/// The counts of a flush on one tier.
fn counts(tier: &TierFlush) -> BTreeMap<String, usize> {
    [
        ("wanted", tier.wanted),
        ("durable", tier.durable),
        ("written", tier.written),
        ("no_room", tier.no_room),
        ("late", tier.late),
        ("failed", tier.failed),
    ]
    .map(|(name, count)| (name.to_owned(), count))
    .into()
}

impl From<FlushReport> for PyFlushReport {
    fn from(report: FlushReport) -> PyFlushReport {
        PyFlushReport(FlushFacts {
            wanted: report.wanted,
            written: report.written,
            no_tier: report.no_tier,
            no_room: report.no_room,
            late: report.late,
            failed: report.failed,
            durable: report.durable,
            tiers: report
                .tiers
                .iter()
                .map(|tier| (tier.tier.to_string(), counts(tier)))
                .collect(),
        })
    }
}

#[pymethods]
impl PyFlushReport {
    /// Blocks that were in host memory when the flush began, or on their way from there to the
    /// disk.
    #[getter]
    fn wanted(&self) -> usize {
        self.0.wanted
    }

    /// Blocks that this call wrote; the others were on disk already.
    #[getter]
    fn written(&self) -> usize {
        self.0.written
    }

    /// Blocks for which there is no durable tier: the cache has no disk, or their parent is
    /// neither in host memory nor on disk.
    #[getter]
    fn no_tier(&self) -> usize {
        self.0.no_tier
    }

    /// Blocks that are not on disk because it has no room; they are less valuable than those on
    /// disk.
    #[getter]
    fn no_room(&self) -> usize {
        self.0.no_room
    }

    /// Blocks that are not on disk because time ran out; with a ``close_within`` of 0, writing
    /// never begins.
    #[getter]
    fn late(&self) -> usize {
        self.0.late
    }

    /// Blocks that are not on disk because the disk failed or lost them.
    #[getter]
    fn failed(&self) -> usize {
        self.0.failed
    }

    /// Whether all requested blocks now survive a crash, each on some tier. False without a disk
    /// tier.
    #[getter]
    fn durable(&self) -> bool {
        self.0.durable
    }

    /// Counts for each durable tier, by its name: ``wanted``, ``durable``, ``written``,
    /// ``no_room``, ``late`` and ``failed``.
    #[getter(tiers)]
    fn flushed_tiers(&self) -> BTreeMap<String, BTreeMap<String, usize>> {
        self.0.tiers.clone()
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<ReducedObject<'py>> {
        pickle::reduce(&slf.get_type(), &slf.get().0)
    }

    #[classmethod]
    fn _from_pickle(_class: &Bound<'_, PyType>, text: &str) -> PyResult<Self> {
        pickle::restore(text).map(Self)
    }

    fn __repr__(&self) -> String {
        let FlushFacts {
            wanted,
            written,
            no_tier,
            no_room,
            late,
            failed,
            durable,
            ..
        } = self.0;
        let durable = if durable { "True" } else { "False" };
        format!(
            "FlushReport(wanted={wanted}, written={written}, no_tier={no_tier}, no_room={no_room}, late={late}, \
             failed={failed}, durable={durable})"
        )
    }
}
