//! Errors of the commands: their messages, hints and exit codes.

use std::{error::Error as StdError, fmt::Write as _, path::PathBuf};

use kvtile::{
    layout::{LayoutError, Shown},
    memory::MemoryError,
    presets::PresetError,
    tiers::{TierError, replay::TraceError},
    transfer::{SavedError, TransferError},
};
use thiserror::Error;

/// Exit code of a failure.
pub const FAILURE: u8 = 1;

/// Exit code of a request that makes no sense, as `clap` has it too.
pub const USAGE: u8 = 2;

/// The error of a program, as its user is shown it.
pub trait Failure {
    /// [`USAGE`] where the request makes no sense, [`FAILURE`] where it failed.
    fn exit_code(&self) -> u8;

    /// The message with its causes and what to do.
    fn text(&self) -> String;

    /// An argument that was meant otherwise, and what it was meant to be.
    fn correction(&self) -> Option<(&str, &str)> {
        None
    }
}

/// `message` with the causes of `error` below it, each said once.
#[must_use]
pub fn with_causes(message: String, error: &dyn StdError) -> String {
    let mut text = message;
    let mut cause = error.source();
    while let Some(error) = cause {
        let problem = error.to_string();
        if !text.contains(&problem) {
            let problem = Shown(&problem);
            // Writing to a string cannot fail.
            let _ = write!(text, "\n  because: {problem}");
        }
        cause = error.source();
    }
    text
}

/// Why a command ended without doing what it was asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CliError {
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
    /// A command that the program has and this library has not.
    #[error(
        "`{command}` is a command of the Rust program `kvtile`; the Python package comes without it"
    )]
    InProgramOnly {
        /// The command.
        command: &'static str,
    },
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
    /// A file without a byte.
    #[error("{path} is empty: it has 0 bytes", path = .path.display())]
    Empty {
        /// The path.
        path: PathBuf,
    },
    /// A folder that is no disk tier.
    #[error("{path} {problem}", path = .path.display())]
    NoTier {
        /// The path.
        path: PathBuf,
        /// What it is instead.
        problem: String,
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

impl Failure for CliError {
    fn exit_code(&self) -> u8 {
        match self {
            CliError::Layout(_)
            | CliError::Option { .. }
            | CliError::NothingLeft { .. }
            | CliError::InProgramOnly { .. }
            | CliError::NotConfirmed { .. } => USAGE,
            _ => FAILURE,
        }
    }

    fn correction(&self) -> Option<(&str, &str)> {
        match self {
            CliError::Layout(LayoutError::SmallAxes { word, meant }) => Some((word, meant)),
            _ => None,
        }
    }

    fn text(&self) -> String {
        let mut message = self.to_string();
        if self.is_of_files() {
            message = Shown(&message).to_string();
        }
        let mut text = with_causes(message, self);
        if let Some(hint) = self.hint() {
            // Writing to a string cannot fail.
            let _ = write!(text, "\n  hint: {hint}");
        }
        text
    }
}

impl CliError {
    /// Whether the message has names or texts of files in it. The others may have several lines: they
    /// point at the place in a word.
    fn is_of_files(&self) -> bool {
        !matches!(
            self,
            CliError::Layout(_)
                | CliError::Transfer(TransferError::Layout(_))
                | CliError::Option { .. }
                | CliError::NothingLeft { .. }
        )
    }

    fn hint(&self) -> Option<&'static str> {
        match self {
            CliError::Layout(LayoutError::Parse(_)) => {
                Some("`kvtile layout --help` teaches the language")
            }
            CliError::Layout(LayoutError::Preset(PresetError::NameForWord { .. })) => Some(
                "give one of these in the place of a word; `kvtile layout list NAME` says what each is",
            ),
            CliError::Empty { .. } => Some(
                "a saved cache is written under another name and renamed at its end, so this is none; \
                 save it again",
            ),
            CliError::Layout(LayoutError::Preset(_)) => {
                Some("`kvtile layout list` and `kvtile layout models` show all names")
            }
            CliError::Layout(
                LayoutError::EmptyPart { .. }
                | LayoutError::PlaneMissing { .. }
                | LayoutError::UnknownAxis { .. },
            ) => Some("give the planes of the shape, for instance --plane c:bf16:C=512"),
            CliError::Transfer(TransferError::Saved(SavedError::NotASavedCache { .. })) => {
                Some("`kvtile inspect` reads files that the library's `saved::save` wrote")
            }
            CliError::Transfer(TransferError::Saved(SavedError::Damaged { .. })) => {
                Some("nothing of it can be used; delete it and save the cache again")
            }
            CliError::InProgramOnly { command: "demo" } => Some(
                "in a checkout of kvtile: `cargo run --release -- demo`, or \
                 `cargo install --path crates/kvtile-program` and then `kvtile demo`",
            ),
            CliError::InProgramOnly { .. } => Some(
                "in a checkout of kvtile: `cargo run --release -- bench`, or \
                 `cargo install --path crates/kvtile-program` and then `kvtile bench`",
            ),
            _ => None,
        }
    }
}
