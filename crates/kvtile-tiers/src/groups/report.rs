//! The outcomes of loads and stores over groups.

use std::{fmt, time::Duration};

use crate::{
    cache::{LoadReport, LoadStop, StoreReport, StoreStop},
    error::TierError,
};

/// What a group contributed to a load or a store: its report, or why its cache refused the request
/// after other groups had begun.
#[derive(Clone, Debug)]
pub struct GroupOutcome<R> {
    /// The name of the group.
    pub group: String,
    /// The outcome.
    pub outcome: Result<R, TierError>,
}

/// The outcome of a load over groups.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GroupLoadReport {
    /// Tokens that the engine can resume after: the stop of the match if each needed page of each
    /// group of the model itself arrived, otherwise 0. A window or a state that arrived in part is not usable, so there
    /// is nothing between.
    pub tokens: u64,
    /// The stop of the match.
    pub wanted: u64,
    /// The groups that had pages to bring.
    pub groups: Vec<GroupOutcome<LoadReport>>,
    /// Payload bytes copied to the engine.
    pub bytes: u64,
    /// Time until the last group ended.
    pub elapsed: Duration,
}

impl GroupLoadReport {
    /// The first group of which a page did not arrive, and the reason; `None` if all arrived.
    #[must_use]
    pub fn stopped(&self) -> Option<(&str, GroupStop<'_, LoadStop>)> {
        self.groups.iter().find_map(|of| match &of.outcome {
            Ok(report) => {
                let stop = report.stopped.as_ref()?;
                Some((of.group.as_str(), GroupStop::Stopped(stop)))
            }
            Err(error) => Some((of.group.as_str(), GroupStop::Refused(error))),
        })
    }

    /// The report of the outcomes, those of `draft` groups among them.
    pub(super) fn of(
        wanted: u64,
        groups: Vec<GroupOutcome<LoadReport>>,
        draft: &[String],
    ) -> GroupLoadReport {
        let all_came = |of: &GroupOutcome<LoadReport>| match &of.outcome {
            Ok(report) => report.stopped.is_none() && report.blocks == report.wanted,
            Err(_) => false,
        };
        let mut gates = groups.iter().filter(|of| !draft.contains(&of.group));
        let came = gates.all(all_came);
        let reports = || groups.iter().filter_map(|of| of.outcome.as_ref().ok());
        GroupLoadReport {
            tokens: if came { wanted } else { 0 },
            wanted,
            bytes: reports().map(|report| report.bytes).sum(),
            elapsed: reports()
                .map(|report| report.elapsed)
                .max()
                .unwrap_or_default(),
            groups,
        }
    }
}

/// The outcome of a store over groups.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GroupStoreReport {
    /// The groups that had pages to store.
    pub groups: Vec<GroupOutcome<StoreReport>>,
    /// Pages that were given and that none of the stops needs. They were not stored.
    pub unreachable: usize,
    /// Time until the last group ended.
    pub elapsed: Duration,
}

impl GroupStoreReport {
    /// The first group of which a page was not stored, and the reason; `None` if all pages are.
    #[must_use]
    pub fn stopped(&self) -> Option<(&str, GroupStop<'_, StoreStop>)> {
        self.groups.iter().find_map(|of| match &of.outcome {
            Ok(report) => {
                let stop = report.stopped.as_ref()?;
                Some((of.group.as_str(), GroupStop::Stopped(stop)))
            }
            Err(error) => Some((of.group.as_str(), GroupStop::Refused(error))),
        })
    }

    /// Pages that were copied and that lookups now find, over all groups.
    #[must_use]
    pub fn stored(&self) -> usize {
        self.sum(|report| report.stored)
    }

    /// Pages that were stored already, over all groups.
    #[must_use]
    pub fn present(&self) -> usize {
        self.sum(|report| report.present)
    }

    /// Pages that were not stored although a stop needs them, over the groups that were begun.
    #[must_use]
    pub fn dropped(&self) -> usize {
        self.sum(|report| report.dropped)
    }

    /// Payload bytes copied from the engine.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let reports = self.groups.iter().filter_map(|of| of.outcome.as_ref().ok());
        reports.map(|report| report.bytes).sum()
    }

    fn sum(&self, of_report: impl Fn(&StoreReport) -> usize) -> usize {
        let reports = self.groups.iter().filter_map(|of| of.outcome.as_ref().ok());
        reports.map(of_report).sum()
    }
}

/// Why a group did not complete its part.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum GroupStop<'a, S> {
    /// Its load or store stopped.
    Stopped(&'a S),
    /// Its cache refused it, after other groups had begun.
    Refused(&'a TierError),
}

impl<S: fmt::Debug> fmt::Display for GroupStop<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GroupStop::Stopped(stop) => write!(f, "{stop:?}"),
            GroupStop::Refused(error) => write!(f, "{error}"),
        }
    }
}
