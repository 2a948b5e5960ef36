//! The phases, each with its own time.

mod beside;
mod bytes;
mod ceilings;
mod costs;
mod permutes;
mod plans;
mod sweep;

use std::time::{Duration, Instant};

use crate::{
    error::GpuCheckError,
    figures::{ByteCheck, CheckFigure, MeasuredDirection},
    measure::RoundSettings,
    phase::CheckPhase,
    report::SharedReport,
    rig::Rig,
    settings::GpuCheckSettings,
};

/// Runs a phase.
pub(crate) fn run(phase: CheckPhase, context: &mut PhaseContext<'_>) -> Result<(), GpuCheckError> {
    match phase {
        CheckPhase::Bytes => bytes::run(context),
        CheckPhase::Ceilings => ceilings::run(context),
        CheckPhase::Sweep => sweep::run(context),
        CheckPhase::Permutes => permutes::run(context),
        CheckPhase::Beside => beside::run(context),
        CheckPhase::Costs => costs::run(context),
    }
}

/// What a phase works with.
pub(crate) struct PhaseContext<'c> {
    pub(crate) rig: &'c Rig,
    pub(crate) settings: &'c GpuCheckSettings,
    pub(crate) report: &'c SharedReport,
    pub(crate) phase: CheckPhase,
    pub(crate) deadline: Instant,
    /// Parts of the work that were done, and all parts.
    pub(crate) done: usize,
    pub(crate) planned: usize,
}

impl PhaseContext<'_> {
    /// Whether the time of the phase is over. Its first part is done in any case.
    pub(crate) fn is_over(&self) -> bool {
        self.done > 0 && Instant::now() >= self.deadline
    }

    pub(crate) fn rounds(&self) -> RoundSettings {
        RoundSettings {
            rounds: self.settings.rounds,
            shortest: Duration::from_micros(u64::from(self.settings.round_microseconds)),
            deadline: self.deadline,
        }
    }

    /// Adds a figure, with its ratio to the ceiling of its direction.
    pub(crate) fn add(&mut self, mut figure: CheckFigure) {
        self.done += 1;
        self.report.change(|report| {
            let rate = figure.bytes_per_second();
            let ceiling = figure.direction.and_then(|way| report.ceiling(way));
            if figure.ratio.is_none()
                && figure.phase != CheckPhase::Ceilings
                && let (Some(rate), Some(ceiling)) = (rate, ceiling)
            {
                figure.ratio = Some(rate / ceiling);
            }
            report.figures.push(figure);
        });
    }

    /// Adds a comparison of bytes.
    pub(crate) fn compared(&mut self, check: ByteCheck) {
        self.report.change(|report| report.bytes.push(check));
    }

    /// Free memory of the device that a phase may use: half of it, so that other users of the device go on.
    pub(crate) fn room(&self) -> Result<usize, GpuCheckError> {
        Ok(self.rig.device().memory_info()?.free_bytes / 2)
    }

    /// The bytes of a transfer for which the device holds `copies` buffers of that size: a power of two, at most the
    /// largest of the settings.
    pub(crate) fn fitting(&self, bytes_max: usize, copies: usize) -> Result<usize, GpuCheckError> {
        const LEAST: usize = 4096;
        let free = self.room()? / copies.max(1);
        let bytes = bytes_max.min(free);
        match bytes.checked_ilog2() {
            Some(log) if bytes >= LEAST => Ok(1 << log),
            _ => Err(GpuCheckError::NoRoom {
                needed: LEAST * copies,
                free,
            }),
        }
    }

    /// The ceiling of a direction.
    pub(crate) fn ceiling(&self, direction: MeasuredDirection) -> Option<f64> {
        self.report.look(|report| report.ceiling(direction))
    }
}
