//! Checks and measures the device code on a machine with a GPU.
//!
//! **Not run on hardware.** It has been executed against a stand-in driver alone, whose figures say nothing about
//! hardware; reports are labelled accordingly.
//!
//! | module | content |
//! | --- | --- |
//! | `settings`, `phase` | what a run does, and how long |
//! | `run` | the phases in turn, watched |
//! | `rig` | buffers, copies and programs behind safe calls |
//! | `phases` | the measurements and comparisons |
//! | `measure` | medians of rounds |
//! | `figures` | figures and comparisons |
//! | `goals`, `routes` | goals of the device code; constants of the cost model |
//! | `report` | the results, as stored and shown |
//!
//! Only the program of this crate and its tests use it. It is a leaf: nothing of kvtile depends on it. It depends on
//! the testkit, because it compares with the naive copy on the machine that it checks.

mod error;
mod figures;
mod goals;
mod machine;
mod measure;
mod phase;
mod phases;
mod report;
mod rig;
mod routes;
mod run;
mod settings;

pub use error::GpuCheckError;
pub use figures::{ByteCheck, CheckFigure, CountedKernels, MeasuredDirection, MeasuredRoute};
pub use goals::{GoalRow, GoalState};
pub use measure::RoundSpread;
pub use phase::CheckPhase;
pub use report::{DeviceFacts, GpuCheckReport, PhaseEnd, PhaseOutcome, ReportFiles};
pub use routes::RouteConstants;
pub use run::{CheckProgress, run};
pub use settings::GpuCheckSettings;
