//! What the program says when it cannot do what it was asked, and its exit codes.

use std::{fmt::Write as _, path::PathBuf};

use kvtile::{
    layout::{LayoutError, Shown},
    memory::MemoryError,
    tiers::{TierError, replay::TraceError},
    transfer::TransferError,
};
use kvtile_bench::BenchError;
use kvtile_demo::DemoError;
use thiserror::Error;

/// Exit code of a failure.
const FAILURE: u8 = 1;

/// Exit code of a request that makes no sense, as `clap` has it too.
const USAGE: u8 = 2;

/// Why a command ended without doing what it was asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(crate) enum CliError {
    /// A word, a shape or a selection that the user gave does not work out.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// An option whose value does not work out.
    #[error("{option} {value:?}: {problem}")]
    Option {
        /// The option.
        option: &'static str,
        /// Its value.
        value: String,
        /// What is wrong, and what to give instead.
        problem: String,
    },
    /// A filter that leaves nothing.
    #[error("nothing matches {filter:?}; there are {known}")]
    NothingLeft {
        /// The filter.
        filter: String,
        /// What there is.
        known: String,
    },
    /// A transfer, a physical layout or a saved cache failed.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// Nobody said that a folder may be cleared.
    #[error("{path} is left as it is; say --yes to clear it", path = .path.display())]
    NotConfirmed {
        /// The folder.
        path: PathBuf,
    },
    /// More blocks than a safetensors header can name.
    #[error("{blocks} blocks need a header of {header_bytes} bytes, and readers take 100,000,000")]
    TooManyBlocks {
        /// How many.
        blocks: usize,
        /// Bytes of the header.
        header_bytes: usize,
    },
    /// The demonstration failed.
    #[error(transparent)]
    Demo(#[from] DemoError),
    /// Memory could not be had.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A file of the user's.
    #[error("cannot {operation} {path}", path = .path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file that is neither a saved cache nor an identity.
    #[error("{path} is neither a saved cache nor the JSON of an identity", path = .path.display())]
    NotAnIdentity {
        /// The path.
        path: PathBuf,
        /// Why it is no identity.
        source: serde_json::Error,
    },
    /// A saved cache is not what was saved, or not what it is to be used for. The report was
    /// printed.
    #[error("{path}: {problem}", path = .path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// The benchmark failed.
    #[error(transparent)]
    Bench(#[from] BenchError),
    /// A trace of requests is none.
    #[error("{path} cannot be replayed", path = .path.display())]
    Trace {
        /// The file.
        path: PathBuf,
        /// Why.
        source: TraceError,
    },
    /// A cache failed.
    #[error(transparent)]
    Tier(#[from] TierError),
    /// The output could not be written.
    #[error("cannot write the output")]
    Output(#[from] std::io::Error),
    /// A report could not be put as JSON.
    #[error("cannot put the report as JSON")]
    Json(#[from] serde_json::Error),
}

impl CliError {
    /// 2 where the request makes no sense, 1 where it failed.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            CliError::Layout(_)
            | CliError::Option { .. }
            | CliError::NothingLeft { .. }
            | CliError::NotConfirmed { .. }
            | CliError::Bench(
                BenchError::Layout(_)
                | BenchError::NothingLeft { .. }
                | BenchError::TooManyBytes { .. }
                | BenchError::Threads { .. },
            ) => USAGE,
            _ => FAILURE,
        }
    }

    /// The message with what caused it, each said once.
    pub(crate) fn text(&self) -> String {
        let mut text = self.to_string();
        if self.is_of_files() {
            text = Shown(&text).to_string();
        }
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let problem = Shown(&error.to_string()).to_string();
            if !text.contains(&problem) {
                // Writing to a string cannot fail.
                let _ = write!(text, "\n  because: {problem}");
            }
            cause = error.source();
        }
        if let Some(hint) = self.hint() {
            let _ = write!(text, "\n  hint: {hint}");
        }
        text
    }

    /// Whether the message has names or texts of files in it. The others may have several lines: they
    /// point at the place in a word.
    fn is_of_files(&self) -> bool {
        !matches!(
            self,
            CliError::Layout(_)
                | CliError::Transfer(TransferError::Layout(_))
                | CliError::Option { .. }
                | CliError::NothingLeft { .. }
                | CliError::Bench(_)
                | CliError::Demo(_)
        )
    }

    fn hint(&self) -> Option<&'static str> {
        match self {
            CliError::Layout(LayoutError::Parse(_)) => {
                Some("`kvtile layout --help` teaches the language")
            }
            CliError::Layout(LayoutError::Preset(_)) => {
                Some("`kvtile layout list` and `kvtile layout models` show all names")
            }
            CliError::Layout(
                LayoutError::EmptyPart { .. }
                | LayoutError::PlaneMissing { .. }
                | LayoutError::UnknownAxis { .. },
            ) => Some("give the planes of the shape, for instance --plane c:bf16:C=512"),
            CliError::Transfer(TransferError::NotASavedCache { .. }) => {
                Some("`kvtile inspect` reads files that the library's `saved::save` wrote")
            }
            CliError::Transfer(TransferError::Damaged { .. }) => {
                Some("nothing of it can be used; delete it and save the cache again")
            }
            _ => None,
        }
    }
}
