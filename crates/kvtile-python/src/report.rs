//! Reports: what copies, loads, stores and flushes came to.

use std::collections::BTreeMap;

use kvtile::{
    blocks::events::TierId,
    tiers::cache::{FlushReport, LoadReport, LoadStop, StoreReport, StoreStop, TierFlush},
    transfer::TransferReport,
};
use pyo3::prelude::*;

/// What a finished copy did.
#[pyclass(name = "TransferReport", module = "kvtile", frozen)]
#[derive(Clone, Debug)]
pub(crate) struct PyTransferReport(pub(crate) TransferReport);

#[pymethods]
impl PyTransferReport {
    /// Payload bytes that were moved.
    #[getter]
    fn bytes(&self) -> u64 {
        self.0.bytes
    }

    /// Runs of contiguous bytes that the plan came to.
    #[getter]
    fn runs(&self) -> u64 {
        self.0.runs
    }

    /// From the start of the copy to its end, in seconds.
    #[getter]
    fn seconds(&self) -> f64 {
        self.0.elapsed.as_secs_f64()
    }

    /// Whether the destination was compared with the source.
    #[getter]
    fn verified(&self) -> bool {
        self.0.verified
    }

    fn __repr__(&self) -> String {
        let TransferReport { bytes, runs, .. } = self.0;
        let seconds = self.seconds();
        format!("TransferReport(bytes={bytes}, runs={runs}, seconds={seconds:.6})")
    }
}

/// What a load came to. Loads do not fail: what did not come has to be computed.
#[pyclass(name = "LoadReport", module = "kvtile", frozen)]
#[derive(Clone, Debug)]
pub(crate) struct PyLoadReport(pub(crate) LoadReport);

#[pymethods]
impl PyLoadReport {
    /// Leading blocks that are where they were wanted. What comes after them has to be computed.
    #[getter]
    fn blocks(&self) -> usize {
        self.0.blocks
    }

    /// Blocks that were wanted.
    #[getter]
    fn wanted(&self) -> usize {
        self.0.wanted
    }

    /// Blocks that came from each tier, by its name; tiers that gave none are left out.
    #[getter(from_tiers)]
    fn blocks_by_tier(&self) -> BTreeMap<String, usize> {
        let host = (TierId::HOST, self.0.from_host);
        let tiers = std::iter::once(host).chain(self.0.from_below.iter().copied());
        let gave = tiers.filter(|(_, blocks)| *blocks > 0);
        gave.map(|(tier, blocks)| (tier.to_string(), blocks))
            .collect()
    }

    /// Payload bytes that were copied to the engine.
    #[getter]
    fn bytes(&self) -> u64 {
        self.0.bytes
    }

    /// From the call to the end, in seconds.
    #[getter]
    fn seconds(&self) -> f64 {
        self.0.elapsed.as_secs_f64()
    }

    /// Why not all of them came: ``"cancelled"``, ``"deadline"``, ``"closed"``, ``"lost"`` (not what was
    /// written, or not readable), ``"evicted"``, ``"late"`` (a tier did not answer in time), ``"host_full"``, ``"pool"``, ``"transfer"`` or
    /// ``"panicked"`` (a defect of kvtile); None where all came.
    #[getter]
    fn stopped(&self) -> Option<&'static str> {
        self.0.stopped.as_ref().map(|stop| match stop {
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
            _ => "other",
        })
    }

    /// What the pool or the copy said, where one of them stopped it.
    #[getter]
    fn detail(&self) -> Option<String> {
        match &self.0.stopped {
            Some(LoadStop::Pool(error)) => Some(error.to_string()),
            Some(LoadStop::Transfer(error)) => Some(error.to_string()),
            _ => None,
        }
    }

    fn __repr__(&self) -> String {
        let LoadReport { blocks, wanted, .. } = self.0;
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

/// What a store came to. Stores do not fail: what was not stored is not found later.
#[pyclass(name = "StoreReport", module = "kvtile", frozen)]
#[derive(Clone, Debug)]
pub(crate) struct PyStoreReport(pub(crate) StoreReport);

#[pymethods]
impl PyStoreReport {
    /// Blocks that were copied and can be found now.
    #[getter]
    fn stored(&self) -> usize {
        self.0.stored
    }

    /// Blocks that were there already.
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

    /// From the call to the end, in seconds.
    #[getter]
    fn seconds(&self) -> f64 {
        self.0.elapsed.as_secs_f64()
    }

    /// Why not all of them were stored: ``"cancelled"``, ``"deadline"``, ``"closed"``, ``"host_full"`` (all host
    /// memory is in use, or holds the first blocks of the same chain, which stay), ``"no_ancestors"`` (the block
    /// before the first one is in no tier, so these would never be found), ``"pool"``, ``"transfer"`` or
    /// ``"panicked"`` (a defect of kvtile); None where all were.
    #[getter]
    fn stopped(&self) -> Option<&'static str> {
        self.0.stopped.as_ref().map(|stop| match stop {
            StoreStop::Cancelled => "cancelled",
            StoreStop::Deadline => "deadline",
            StoreStop::Closed => "closed",
            StoreStop::Panicked => "panicked",
            StoreStop::HostFull => "host_full",
            StoreStop::NoAncestors => "no_ancestors",
            StoreStop::Pool(_) => "pool",
            StoreStop::Transfer(_) => "transfer",
            _ => "other",
        })
    }

    /// What the pool or the copy said, where one of them stopped it.
    #[getter]
    fn detail(&self) -> Option<String> {
        match &self.0.stopped {
            Some(StoreStop::Pool(error)) => Some(error.to_string()),
            Some(StoreStop::Transfer(error)) => Some(error.to_string()),
            _ => None,
        }
    }

    fn __repr__(&self) -> String {
        let StoreReport {
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

/// What a flush came to.
#[pyclass(name = "FlushReport", module = "kvtile", frozen)]
#[derive(Clone, Debug)]
pub(crate) struct PyFlushReport(pub(crate) FlushReport);

#[pymethods]
impl PyFlushReport {
    /// Blocks that were in host memory when the flush began, or on their way from there to the disk.
    #[getter]
    fn wanted(&self) -> usize {
        self.0.wanted
    }

    /// Blocks that were written by this call; the others were on disk already.
    #[getter]
    fn written(&self) -> usize {
        self.0.written
    }

    /// Blocks that no durable tier was to have: the cache has no disk, or the block before them is not there.
    #[getter]
    fn no_tier(&self) -> usize {
        self.0.no_tier
    }

    /// Blocks that are not on disk because it has no room for them; they are worth less than those that are.
    #[getter]
    fn no_room(&self) -> usize {
        self.0.no_room
    }

    /// Blocks that are not on disk because the time was over; with a ``close_within`` of 0 it never begins.
    #[getter]
    fn late(&self) -> usize {
        self.0.late
    }

    /// Blocks that are not on disk because it failed, or that it lost.
    #[getter]
    fn failed(&self) -> usize {
        self.0.failed
    }

    /// Whether all wanted blocks outlive a crash now, each on some tier. False without a disk tier.
    #[getter]
    fn durable(&self) -> bool {
        self.0.durable
    }

    /// What it came to on each durable tier, by its name: ``wanted``, ``durable``, ``written``, ``no_room``, ``late``
    /// and ``failed``.
    #[getter(tiers)]
    fn flushed_tiers(&self) -> BTreeMap<String, BTreeMap<&'static str, usize>> {
        let tiers = self.0.tiers.iter();
        let counts = |tier: &TierFlush| {
            BTreeMap::from([
                ("wanted", tier.wanted),
                ("durable", tier.durable),
                ("written", tier.written),
                ("no_room", tier.no_room),
                ("late", tier.late),
                ("failed", tier.failed),
            ])
        };
        tiers
            .map(|tier| (tier.tier.to_string(), counts(tier)))
            .collect()
    }

    fn __repr__(&self) -> String {
        let FlushReport {
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
