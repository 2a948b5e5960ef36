//! The report while a run adds to it.

use std::sync::Arc;

use parking_lot::Mutex;

use super::GpuCheckReport;
use crate::{
    goals::{self, GoalState},
    routes,
};

/// The report while it grows. It can be read at any time, also while a call of the driver does not return.
#[derive(Clone, Default)]
pub(crate) struct SharedReport(Arc<Mutex<GpuCheckReport>>);

impl SharedReport {
    pub(crate) fn change(&self, change: impl FnOnce(&mut GpuCheckReport)) {
        change(&mut self.0.lock());
    }

    pub(crate) fn look<T>(&self, look: impl FnOnce(&GpuCheckReport) -> T) -> T {
        look(&self.0.lock())
    }

    /// The report with its conclusions.
    pub(crate) fn concluded(&self) -> GpuCheckReport {
        let mut report = self.0.lock().clone();
        report.goals = goals::goals(&report.figures, &report.device.capability);
        if report.device.is_standin() {
            let found = report.goals.iter_mut().filter(|goal| goal.found.is_some());
            found.for_each(|goal| goal.state = GoalState::Undecided);
        }
        report.routes = routes::constants(&report.figures);
        report
    }
}
