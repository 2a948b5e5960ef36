//! The settings of a check.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::phase::CheckPhase;

/// The settings of a check.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GpuCheckSettings {
    /// The device.
    pub device: u32,
    /// The seed of transfers and block orders.
    pub seed: u64,
    /// Seconds of all phases together. A phase starts no further measurement after its part of them.
    pub seconds: u32,
    /// The phases to run.
    pub phases: Vec<CheckPhase>,
    /// Random transfers for each direction and route.
    pub cases: u32,
    /// Most known layouts that are compared.
    pub layouts: u32,
    /// Rounds of a measurement, of which the median counts.
    pub rounds: u32,
    /// Shortest time of a round, in microseconds: short work is repeated.
    pub round_microseconds: u32,
    /// Most bytes of one measured transfer, and of the copy behind the ceilings between host and device.
    pub largest_bytes: usize,
    /// Most bytes of the copy behind the ceiling inside the device.
    pub inside_bytes: usize,
    /// Bytes that are registered, and allocated as pinned memory.
    pub pinned_bytes: usize,
    /// How long a phase may take beyond its time before the check gives up on the driver, in seconds.
    pub patience_seconds: u32,
}

impl Default for GpuCheckSettings {
    fn default() -> Self {
        GpuCheckSettings {
            device: 0,
            seed: 20_261_130,
            seconds: CheckPhase::total_parts(),
            phases: CheckPhase::ALL.to_vec(),
            cases: 2000,
            layouts: u32::MAX,
            rounds: 7,
            round_microseconds: 1000,
            largest_bytes: 256 << 20,
            inside_bytes: 4 << 30,
            pinned_bytes: 8 << 30,
            patience_seconds: 60,
        }
    }
}

impl GpuCheckSettings {
    /// Settings for a stand-in driver, which executes about a megabyte in a second: everything small, so that all
    /// phases end in seconds.
    #[must_use]
    pub fn small() -> GpuCheckSettings {
        GpuCheckSettings {
            cases: 3,
            layouts: 3,
            rounds: 1,
            round_microseconds: 0,
            largest_bytes: 64 << 10,
            inside_bytes: 256 << 10,
            pinned_bytes: 256 << 10,
            ..GpuCheckSettings::default()
        }
    }

    /// The phases to run in their order, with those that they need.
    pub(crate) fn ordered(&self) -> Vec<CheckPhase> {
        let needs_ceilings = self.phases.iter().any(|phase| phase.needs_ceilings());
        let all = CheckPhase::ALL.into_iter();
        all.filter(|phase| {
            self.phases.contains(phase) || (*phase == CheckPhase::Ceilings && needs_ceilings)
        })
        .collect()
    }

    /// The time of a phase.
    pub(crate) fn time_of(&self, phase: CheckPhase) -> Duration {
        let milliseconds = u64::from(self.seconds) * 1000 * u64::from(phase.parts());
        Duration::from_millis(milliseconds / u64::from(CheckPhase::total_parts()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_run_in_their_order_with_the_ceilings_that_they_need() {
        let mut settings = GpuCheckSettings {
            phases: vec![CheckPhase::Costs, CheckPhase::Sweep],
            ..GpuCheckSettings::default()
        };
        let expected = [CheckPhase::Ceilings, CheckPhase::Sweep, CheckPhase::Costs];
        assert_eq!(settings.ordered(), expected);
        settings.phases = vec![CheckPhase::Costs];
        assert_eq!(settings.ordered(), [CheckPhase::Costs]);
    }

    #[test]
    fn a_whole_run_takes_seven_minutes_and_a_shorter_one_shortens_every_phase() {
        let mut settings = GpuCheckSettings::default();
        let whole: Duration = CheckPhase::ALL
            .map(|phase| settings.time_of(phase))
            .iter()
            .sum();
        assert_eq!(whole, Duration::from_secs(420));
        settings.seconds = 42;
        assert_eq!(settings.time_of(CheckPhase::Sweep), Duration::from_secs(14));
    }
}
