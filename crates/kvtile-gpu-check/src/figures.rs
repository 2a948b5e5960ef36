//! Figures and comparisons, as phases make them and goals read them.

use serde::{Deserialize, Serialize};

use crate::{measure::RoundSpread, phase::CheckPhase};

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MeasuredDirection {
    /// From the host to the device.
    HostToDevice,
    /// From the device to the host.
    DeviceToHost,
    /// Inside the device.
    Inside,
}

impl MeasuredDirection {
    /// Every direction.
    pub const ALL: [MeasuredDirection; 3] = [
        MeasuredDirection::HostToDevice,
        MeasuredDirection::DeviceToHost,
        MeasuredDirection::Inside,
    ];

    /// Its short name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            MeasuredDirection::HostToDevice => "host → device",
            MeasuredDirection::DeviceToHost => "device → host",
            MeasuredDirection::Inside => "in the device",
        }
    }
}

/// How a transfer was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MeasuredRoute {
    /// One copy.
    Copy,
    /// One copy for each run.
    Loop,
    /// All runs in one call, which reads its sources in the order of the queue.
    Batch,
    /// All runs in one call, which may read its sources at any time.
    BatchAny,
    /// One copy of everything, and a kernel on the device.
    Staged,
    /// A transfer of kvtile's manager, which chooses the way.
    Manager,
    /// A kernel that reads or writes the memory of the host, or memory of the device alone.
    Kernel,
}

impl MeasuredRoute {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            MeasuredRoute::Copy => "copy",
            MeasuredRoute::Loop => "loop",
            MeasuredRoute::Batch => "batch",
            MeasuredRoute::BatchAny => "batch, any order",
            MeasuredRoute::Staged => "staged",
            MeasuredRoute::Manager => "kvtile's transfer",
            MeasuredRoute::Kernel => "kernel",
        }
    }
}

/// Transfers that were compared with the naive copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ByteCheck {
    /// What was copied.
    pub work: String,
    /// Which way.
    pub direction: MeasuredDirection,
    /// By which route.
    pub route: MeasuredRoute,
    /// Transfers that were compared.
    pub compared: u32,
    /// Transfers that have no plan, and so were refused.
    pub refused: u32,
    /// The first difference, with the case.
    pub wrong: Option<String>,
}

/// The counts of the interpreter for the same kernels on a small case, for 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CountedKernels {
    /// Instructions of all threads.
    pub instructions: f64,
    /// The part of the sectors of loads that is ideal.
    pub loads: f64,
    /// The part of the sectors of stores that is ideal.
    pub stores: f64,
    /// Passes over the banks of shared memory, where 1 has no conflicts.
    pub passes: Option<f64>,
}

/// One figure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckFigure {
    /// The phase.
    pub phase: CheckPhase,
    /// What was done.
    pub work: String,
    /// Which way, where bytes were moved.
    pub direction: Option<MeasuredDirection>,
    /// By which route.
    pub route: Option<MeasuredRoute>,
    /// Most blocks of a kernel.
    pub blocks: Option<u32>,
    /// Bytes of a run.
    pub run_bytes: Option<u64>,
    /// Number of runs.
    pub pieces: Option<u64>,
    /// Bytes that were moved.
    pub bytes: u64,
    /// Seconds.
    pub seconds: RoundSpread,
    /// The rate as a part of the ceiling of this direction in the same run.
    pub ratio: Option<f64>,
    /// Counts of the kernels.
    pub counts: Option<CountedKernels>,
}

impl CheckFigure {
    /// A figure without bytes.
    pub(crate) fn of(phase: CheckPhase, work: impl Into<String>, seconds: RoundSpread) -> Self {
        CheckFigure {
            phase,
            work: work.into(),
            direction: None,
            route: None,
            blocks: None,
            run_bytes: None,
            pieces: None,
            bytes: 0,
            seconds,
            ratio: None,
            counts: None,
        }
    }

    /// With the bytes that were moved, which way and how.
    pub(crate) fn moved(
        self,
        bytes: u64,
        direction: MeasuredDirection,
        route: MeasuredRoute,
    ) -> CheckFigure {
        CheckFigure {
            bytes,
            direction: Some(direction),
            route: Some(route),
            ..self
        }
    }

    /// Bytes in a second, by the median.
    #[must_use]
    pub fn bytes_per_second(&self) -> Option<f64> {
        let is_rate = self.bytes > 0 && self.seconds.median > 0.0;
        is_rate.then(|| self.bytes as f64 / self.seconds.median)
    }
}
