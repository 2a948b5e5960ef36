//! The demonstration: a model answers three requests that share a long prefix. A cache keeps the
//! prefix in memory and, across a restart of the process, on disk in another layout.
//!
//! ```text
//! first process                                 second process
//!   load the model                                load the model anew
//!   request 1: prefix computed  L|BKNHC           open the cache on the folder
//!     store in host memory      BLHKNC            request 3: prefix from disk
//!   request 2: prefix from host memory               restored  L|BH(kCN,vNC)
//!   flush to disk, close the cache                   compute the rest, answer
//!                       \______ folder ______/
//!   compare each answer with a run from an empty sequence, token by token;
//!   show that the folder is refused to another RoPE base
//! ```
//!
//! Keys and values are in kvtile blocks from the first token on. The caller gets each completed
//! step as a [`DemoEvent`], and the report at the end contains all of them: this module prints
//! nothing and reads no environment. The caller gives the command of the second process, whose process
//! calls [`serve`] on its standard input and output.

mod engine;
mod event;
mod first;
mod folder;
mod generate;
mod model;
mod process;
mod report;
mod request;
mod second;
mod settings;
mod store;

use std::process::Command;

pub use event::DemoEvent;
pub use first::FirstProcess;
pub use process::serve;
pub use report::{
    AllocateReport, AnswerReport, DemoReport, FirstReport, FlushedReport, FolderRefusal,
    ModelReport, OpenReport, PrefixPart, PrefixReport, PromptReport, RecomputeReport,
    RequestReport, ResumeReport, SecondReport, ServedReport, StoredReport,
};
pub use second::resume;
pub use settings::{DemoSettings, ModelFile, ModelSource, ResumeRequest, StoreSettings};
pub use store::{BlockKv, ENGINE_ORDER, RESUMED_ORDER};

use crate::DemoError;

/// Runs the demonstration: both processes, the comparisons and the refusal.
///
/// `second` starts a process that calls [`serve`]; this call takes its standard streams. It kills
/// the process when it fails.
///
/// # Errors
/// The error of the failed step. [`DemoError::TokensDiffer`] when the prefix from the cache changes
/// an answer, [`DemoError::NotRefused`] when the cache accepts the folder under another RoPE base.
/// The run's folder is removed in every case unless the settings keep it.
pub fn run(
    settings: &DemoSettings,
    second: Command,
    events: &mut dyn FnMut(DemoEvent),
) -> Result<DemoReport, DemoError> {
    let first = FirstProcess::run(settings, events)?;
    let resumed = process::start(second, &first.request(), events)?;
    first.finish(resumed, events)
}
