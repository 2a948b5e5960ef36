//! The phases of a check and their times.

use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// A part of the check that can be run alone.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum CheckPhase {
    /// Random transfers and every known layout, byte for byte.
    Bytes,
    /// The fastest copies of this machine; all ratios refer to them.
    Ceilings,
    /// Runs of many sizes and numbers by every route.
    Sweep,
    /// Permutations on the device, and between host and device.
    Permutes,
    /// A kernel that uses all memory bandwidth of the device, alone and beside transfers.
    Beside,
    /// Enqueueing, first layers, small transfers, pinned memory.
    Costs,
}

impl CheckPhase {
    /// Every phase, in the order of a run.
    pub const ALL: [CheckPhase; 6] = [
        CheckPhase::Bytes,
        CheckPhase::Ceilings,
        CheckPhase::Sweep,
        CheckPhase::Permutes,
        CheckPhase::Beside,
        CheckPhase::Costs,
    ];

    /// Its name on the command line and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            CheckPhase::Bytes => "bytes",
            CheckPhase::Ceilings => "ceilings",
            CheckPhase::Sweep => "sweep",
            CheckPhase::Permutes => "permutes",
            CheckPhase::Beside => "beside",
            CheckPhase::Costs => "costs",
        }
    }

    /// Its part of the time of a run, in seconds of [`CheckPhase::total_parts`].
    pub(crate) fn parts(self) -> u32 {
        match self {
            CheckPhase::Bytes => 90,
            CheckPhase::Ceilings => 30,
            CheckPhase::Sweep => 140,
            CheckPhase::Permutes => 70,
            CheckPhase::Beside => 30,
            CheckPhase::Costs => 60,
        }
    }

    /// The parts of all phases: the seconds of a whole run.
    pub(crate) fn total_parts() -> u32 {
        CheckPhase::ALL.iter().map(|phase| phase.parts()).sum()
    }

    /// Whether its ratios need the ceilings.
    pub(crate) fn needs_ceilings(self) -> bool {
        matches!(
            self,
            CheckPhase::Sweep | CheckPhase::Permutes | CheckPhase::Beside
        )
    }
}

impl fmt::Display for CheckPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
