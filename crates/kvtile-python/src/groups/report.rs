//! Reports of loads and stores over groups.

use std::collections::BTreeMap;

use kvtile::tiers::groups::{GroupLoadReport, GroupOutcome, GroupStoreReport};
use pyo3::{prelude::*, types::PyType};
use serde::{Deserialize, Serialize};

use crate::{
    pickle::{self, ReducedObject},
    report::{PyLoadReport, PyStoreReport},
};

/// The report of a load over groups. Loads do not fail: compute from the start if it brought 0 tokens.
#[pyclass(name = "GroupLoadReport", module = "kvtile", frozen)]
#[derive(Clone, Debug)]
pub(crate) struct PyGroupLoadReport(GroupLoadFacts);

#[derive(Clone, Debug, Serialize, Deserialize)]
struct GroupLoadFacts {
    tokens: u64,
    wanted: u64,
    groups: BTreeMap<String, PyLoadReport>,
    bytes: u64,
    seconds: f64,
    stopped: Option<String>,
}

/// The reports of the groups, and why the first of the others has none or is incomplete.
fn parts<R: Clone, P: From<R>>(
    groups: &[GroupOutcome<R>],
    stop: impl Fn(&P) -> Option<String>,
) -> (BTreeMap<String, P>, Option<String>) {
    let mut reports = BTreeMap::new();
    let mut stopped = None;
    for of in groups {
        let name = &of.group;
        let why = match &of.outcome {
            Ok(report) => {
                let report = P::from(report.clone());
                let why = stop(&report);
                reports.insert(name.clone(), report);
                why
            }
            Err(error) => Some(error.to_string()),
        };
        if let Some(why) = why.filter(|_| stopped.is_none()) {
            stopped = Some(format!("{name}: {why}"));
        }
    }
    (reports, stopped)
}

impl From<GroupLoadReport> for PyGroupLoadReport {
    fn from(report: GroupLoadReport) -> PyGroupLoadReport {
        let (groups, stopped) = parts(&report.groups, PyLoadReport::stop_text);
        PyGroupLoadReport(GroupLoadFacts {
            tokens: report.tokens,
            wanted: report.wanted,
            groups,
            bytes: report.bytes,
            seconds: report.elapsed.as_secs_f64(),
            stopped,
        })
    }
}

#[pymethods]
impl PyGroupLoadReport {
    /// Tokens that the engine can resume after: the stop of the match if each page that it needs
    /// arrived, otherwise 0.
    #[getter]
    fn tokens(&self) -> u64 {
        self.0.tokens
    }

    /// The stop of the match.
    #[getter]
    fn wanted(&self) -> u64 {
        self.0.wanted
    }

    /// The LoadReport of each group that had pages to bring.
    #[getter]
    fn groups(&self) -> BTreeMap<String, PyLoadReport> {
        self.0.groups.clone()
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

    /// The first group of which a page did not arrive, and the reason, such as ``"state: lost"``; None if
    /// all arrived.
    #[getter]
    fn stopped(&self) -> Option<&str> {
        self.0.stopped.as_deref()
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<ReducedObject<'py>> {
        pickle::reduce(&slf.get_type(), &slf.get().0)
    }

    #[classmethod]
    fn _from_pickle(_class: &Bound<'_, PyType>, text: &str) -> PyResult<Self> {
        pickle::restore(text).map(Self)
    }

    fn __repr__(&self) -> String {
        let GroupLoadFacts {
            tokens,
            wanted,
            stopped,
            ..
        } = &self.0;
        let stopped = stopped
            .as_ref()
            .map(|stopped| format!(", stopped={stopped:?}"));
        let stopped = stopped.unwrap_or_default();
        format!("GroupLoadReport(tokens={tokens}, wanted={wanted}{stopped})")
    }
}

/// The report of a store over groups.
#[pyclass(name = "GroupStoreReport", module = "kvtile", frozen)]
#[derive(Clone, Debug)]
pub(crate) struct PyGroupStoreReport(GroupStoreFacts);

#[derive(Clone, Debug, Serialize, Deserialize)]
struct GroupStoreFacts {
    stored: usize,
    present: usize,
    dropped: usize,
    unreachable: usize,
    groups: BTreeMap<String, PyStoreReport>,
    bytes: u64,
    seconds: f64,
    stopped: Option<String>,
}

impl From<GroupStoreReport> for PyGroupStoreReport {
    fn from(report: GroupStoreReport) -> PyGroupStoreReport {
        let (groups, stopped) = parts(&report.groups, PyStoreReport::stop_text);
        PyGroupStoreReport(GroupStoreFacts {
            stored: report.stored(),
            present: report.present(),
            dropped: report.dropped(),
            unreachable: report.unreachable,
            groups,
            bytes: report.bytes(),
            seconds: report.elapsed.as_secs_f64(),
            stopped,
        })
    }
}

#[pymethods]
impl PyGroupStoreReport {
    /// Pages that were copied and that lookups find now, over all groups.
    #[getter]
    fn stored(&self) -> usize {
        self.0.stored
    }

    /// Pages that were in the cache already.
    #[getter]
    fn present(&self) -> usize {
        self.0.present
    }

    /// Pages that a stop needs and that were not stored.
    #[getter]
    fn dropped(&self) -> usize {
        self.0.dropped
    }

    /// Pages that were given and that none of the stops needs. They were not stored.
    #[getter]
    fn unreachable(&self) -> usize {
        self.0.unreachable
    }

    /// The StoreReport of each group that had pages to store.
    #[getter]
    fn groups(&self) -> BTreeMap<String, PyStoreReport> {
        self.0.groups.clone()
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

    /// The first group of which a page was not stored, and the reason, such as ``"full: host_full"``; None
    /// if all pages are stored.
    #[getter]
    fn stopped(&self) -> Option<&str> {
        self.0.stopped.as_deref()
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<ReducedObject<'py>> {
        pickle::reduce(&slf.get_type(), &slf.get().0)
    }

    #[classmethod]
    fn _from_pickle(_class: &Bound<'_, PyType>, text: &str) -> PyResult<Self> {
        pickle::restore(text).map(Self)
    }

    fn __repr__(&self) -> String {
        let GroupStoreFacts {
            stored,
            present,
            dropped,
            unreachable,
            ..
        } = self.0;
        format!(
            "GroupStoreReport(stored={stored}, present={present}, dropped={dropped}, unreachable={unreachable})"
        )
    }
}
