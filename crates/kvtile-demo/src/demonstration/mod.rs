//! The demonstration: a model answers from KV that another process saved in another
//! layout.
//!
//! ```text
//! first process                                 second process
//!   load the model                                load the model anew
//!   prefill a long prompt    L|BKNHC              open the file: identity, checksums
//!   answer                                        restore  L|BH(kCN,vNC)
//!   save to a file           any word             compute the last prompt token, continue
//!                    \______ file ______/
//!   compare token by token; show that another RoPE base is refused
//! ```
//!
//! Keys and values live in kvtile blocks from the first token on. Each step is told
//! to the caller as an [`Event`] when it is done, and all of them are in the report
//! at the end: this module prints nothing and reads no environment. How the second
//! process is started is the caller's business: it gives a command whose process
//! calls [`serve`] on its standard input and output.

mod event;
mod first;
mod folder;
mod generate;
mod model;
mod process;
mod report;
mod second;
mod settings;
mod store;

use std::process::Command;

pub use event::Event;
pub use first::FirstProcess;
pub use process::serve;
pub use report::{
    AllocateReport, AnswerReport, Comparison, DemoReport, FirstReport, ModelReport, OpenReport,
    PrefillReport, PromptReport, Refusal, RestoreReport, ResumeReport, SaveReport,
};
pub use second::resume;
pub use settings::{ModelFile, ModelSource, ResumeRequest, Settings};
pub use store::{BlockKv, ENGINE_ORDER, RESUMED_ORDER};

use crate::DemoError;

/// Runs the demonstration: both processes, the comparison and the refusal.
///
/// `second` starts a process that calls [`serve`]; its standard streams are taken. It is
/// ended when this call fails.
///
/// # Errors
/// Whatever made a step fail. [`DemoError::TokensDiffer`] when the second process
/// continued differently, [`DemoError::NotRefused`] when the file was not refused
/// under another RoPE base. The run's folder is gone afterwards unless it was to be
/// kept.
pub fn run(
    settings: &Settings,
    second: Command,
    events: &mut dyn FnMut(Event),
) -> Result<DemoReport, DemoError> {
    let first = FirstProcess::run(settings, events)?;
    let resumed = process::start(second, &first.request(), events)?;
    first.finish(resumed, events)
}
