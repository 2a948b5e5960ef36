//! What a check found, as it is stored.
//!
//! | module | content |
//! | --- | --- |
//! | this one | the facts and figures, as JSON |
//! | `csv` | one line for each figure |
//! | `page` | one page to look at |
//! | `files` | the files of a run |
//! | `shared` | the report while a run adds to it |

mod csv;
mod files;
mod page;
mod shared;

use kvtile_bench::machine::MachineFacts;
use kvtile_device::{DeviceDescription, Driver};
use serde::{Deserialize, Serialize};

pub use self::files::ReportFiles;
pub(crate) use self::shared::SharedReport;
use crate::{
    figures::{ByteCheck, CheckFigure, MeasuredDirection, MeasuredRoute},
    goals::GoalRow,
    phase::CheckPhase,
    routes::RouteConstants,
    settings::GpuCheckSettings,
};

/// The device that the stand-in driver has.
const STANDIN: &str = "kvtile stand-in, no hardware";

/// The device and its driver.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DeviceFacts {
    /// The newest CUDA version that the driver knows.
    pub driver: String,
    /// Ordinal.
    pub ordinal: u32,
    /// Name.
    pub name: String,
    /// UUID.
    pub uuid: String,
    /// Bytes of its memory.
    pub bytes: usize,
    /// Compute capability.
    pub capability: String,
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Copies that it can run beside kernels.
    pub copy_engines: u32,
    /// What `nvidia-smi` printed before the first and after the last phase, by field; or why not.
    pub state_before: Vec<(String, String)>,
    /// As above.
    pub state_after: Vec<(String, String)>,
}

impl DeviceFacts {
    pub(crate) fn of(driver: &Driver, description: &DeviceDescription) -> DeviceFacts {
        let (major, minor) = description.capability;
        DeviceFacts {
            driver: driver.version().to_string(),
            ordinal: description.ordinal,
            name: description.name.clone(),
            uuid: uuid(&description.uuid),
            bytes: description.bytes,
            capability: format!("{major}.{minor}"),
            multiprocessors: description.multiprocessors,
            copy_engines: description.copy_engines,
            state_before: Vec::new(),
            state_after: Vec::new(),
        }
    }

    /// Whether it is the stand-in of the tests.
    #[must_use]
    pub fn is_standin(&self) -> bool {
        self.name == STANDIN
    }
}

/// A UUID as drivers print it.
fn uuid(bytes: &[u8; 16]) -> String {
    let mut text = String::from("GPU-");
    for (index, byte) in bytes.iter().enumerate() {
        if [4, 6, 8, 10].contains(&index) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// How a phase ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "end", content = "reason")]
pub enum PhaseEnd {
    /// Everything was done.
    Complete,
    /// Its time was over before everything was done.
    CutShort,
    /// The driver, or something else, failed; what was measured before is kept.
    Failed(String),
    /// It did not start, because the device is lost.
    NotStarted(String),
}

/// One phase of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PhaseOutcome {
    /// The phase.
    pub phase: CheckPhase,
    /// How it ended.
    #[serde(flatten)]
    pub end: PhaseEnd,
    /// How long it took.
    pub seconds: f64,
    /// Its time.
    pub seconds_max: f64,
    /// Parts of its work that were done.
    pub done: usize,
    /// All parts of its work.
    pub planned: usize,
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GpuCheckReport {
    /// What the figures stand for.
    pub label: String,
    /// The machine.
    pub machine: MachineFacts,
    /// The device.
    pub device: DeviceFacts,
    /// The settings.
    pub settings: Option<GpuCheckSettings>,
    /// The phases, in the order of the run.
    pub phases: Vec<PhaseOutcome>,
    /// Transfers that were compared with the naive copy.
    pub bytes: Vec<ByteCheck>,
    /// Figures.
    pub figures: Vec<CheckFigure>,
    /// The goals.
    pub goals: Vec<GoalRow>,
    /// Proposed constants of the routes.
    pub routes: Vec<RouteConstants>,
    /// What the check does not measure.
    pub left_out: Vec<String>,
}

impl GpuCheckReport {
    /// The rate of the ceiling of a direction, in bytes in a second.
    #[must_use]
    pub fn ceiling(&self, direction: MeasuredDirection) -> Option<f64> {
        let mut ceilings = self.figures.iter().filter(|figure| {
            figure.phase == CheckPhase::Ceilings
                && figure.direction == Some(direction)
                && figure.route == Some(MeasuredRoute::Copy)
        });
        ceilings.next().and_then(CheckFigure::bytes_per_second)
    }

    /// Whether something was wrong: bytes that differ, or a phase that failed.
    #[must_use]
    pub fn has_faults(&self) -> bool {
        let failed = |outcome: &PhaseOutcome| {
            matches!(outcome.end, PhaseEnd::Failed(_) | PhaseEnd::NotStarted(_))
        };
        self.phases.iter().any(failed) || self.bytes.iter().any(|check| check.wrong.is_some())
    }
}

/// The label of the figures.
pub(crate) fn label(device: &DeviceFacts) -> String {
    match device.is_standin() {
        true => "stand-in: figures say nothing about hardware".to_owned(),
        false => format!(
            "measured on {}, driver of CUDA {}",
            device.name, device.driver
        ),
    }
}
