//! Errors of the commands: their messages, hints and exit codes.

use std::{error::Error as StdError, fmt::Write as _, path::PathBuf};

use kvtile::{
    layout::{LayoutError, ResolveError, ShownText},
    memory::MemoryError,
    presets::PresetError,
    tiers::{TierError, replay::TraceError},
    transfer::{SavedError, TransferError},
};
use kvtile_events_publish::PublishError;
use kvtile_events_wire::WireError;
use kvtile_http::FetchError;
use thiserror::Error;

/// Exit code of a failure.
pub const FAILURE: u8 = 1;

/// Exit code of a request that makes no sense, as `clap` has it too.
pub const USAGE: u8 = 2;

/// The error of a program, as shown to the user.
pub trait ProgramFailure {
    /// [`USAGE`] where the request makes no sense, [`FAILURE`] where it failed.
    fn exit_code(&self) -> u8;

    /// The message with its causes and a hint.
    fn text(&self) -> String;

    /// A mistyped argument and its correction.
    fn correction(&self) -> Option<(&str, &str)> {
        None
    }
}

/// `message` with the causes of `error` below it, without repetitions.
#[must_use]
pub fn with_causes(message: String, error: &dyn StdError) -> String {
    let mut text = message;
    let mut cause = error.source();
    while let Some(error) = cause {
        let problem = error.to_string();
        if !text.contains(&problem) {
            let problem = ShownText(&problem);
            // Writing to a string cannot fail.
            let _ = write!(text, "\n  because: {problem}");
        }
        cause = error.source();
    }
    text
}

/// Why a command failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CliError {
    /// A word, a shape or a selection of the user that is invalid.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// An option with an invalid value.
    #[error("{option} {value:?}: {problem}")]
    Option {
        /// The option.
        option: &'static str,
        /// Its value.
        value: String,
        /// The problem, and what to give instead.
        problem: String,
    },
    /// A filter without matches.
    #[error("nothing matches {filter:?}; there are {known}")]
    NothingLeft {
        /// The filter.
        filter: String,
        /// The existing names.
        known: String,
    },
    /// A transfer, a physical layout or a saved cache failed.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// A folder that the user did not confirm to clear.
    #[error("{path} is unchanged; give --yes to clear it", path = .path.display())]
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
    /// A command of the program that this library does not have.
    #[error(
        "`{command}` is a command of the Rust program `kvtile`; the Python package does not have it"
    )]
    InProgramOnly {
        /// The command.
        command: &'static str,
    },
    /// The page of numbers is not served.
    #[error(transparent)]
    Http(#[from] kvtile_http::HttpError),
    /// The node daemon does not start, or is not reached.
    #[error(transparent)]
    Daemon(#[from] kvtile_daemon::DaemonError),
    /// Memory could not be allocated.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A failed operation on a file of the user.
    #[error("cannot {operation} {path}", path = .path.display())]
    File {
        /// The operation.
        operation: &'static str,
        /// The path.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// An empty file.
    #[error("{path} is empty: it has 0 bytes", path = .path.display())]
    Empty {
        /// The path.
        path: PathBuf,
    },
    /// A folder that is not a disk tier.
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
        /// Why it is not an identity.
        source: serde_json::Error,
    },
    /// A file that is no model.
    #[error(
        "{path} is not the JSON of a model's identity, as `kvtile.ModelIdentity.to_json()` of the Python package \
         writes it", path = .path.display()
    )]
    NotAModel {
        /// The path.
        path: PathBuf,
        /// Why it is none.
        source: serde_json::Error,
    },
    /// A saved cache or a folder that is damaged, or that does not fit its intended use. The
    /// command has printed the report.
    #[error("{path}: {problem}", path = .path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// The reason.
        problem: String,
    },
    /// A file that is not a valid trace of requests.
    #[error("{path} cannot be replayed", path = .path.display())]
    Trace {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: TraceError,
    },
    /// A cache failed.
    #[error(transparent)]
    Tier(#[from] TierError),
    /// Events could not be received, published or read.
    #[error(transparent)]
    Events(#[from] WireError),
    /// The events of a daemon could not be published.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// The numbers of a server could not be read.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// Too few subscribers to publish to.
    #[error(
        "{found} of {wanted} subscribers came within {seconds} s; give --wait 0 to publish without any"
    )]
    NoSubscribers {
        /// Subscribers to wait for.
        wanted: u64,
        /// Subscribers that came.
        found: u64,
        /// Seconds that it waited.
        seconds: u64,
    },
    /// The output could not be written.
    #[error("cannot write the output")]
    Output(#[from] std::io::Error),
    /// A report that could not be serialised as JSON.
    #[error("cannot write the report as JSON")]
    Json(#[from] serde_json::Error),
}

impl ProgramFailure for CliError {
    fn exit_code(&self) -> u8 {
        match self {
            CliError::Layout(_)
            | CliError::Option { .. }
            | CliError::NothingLeft { .. }
            | CliError::InProgramOnly { .. }
            | CliError::Events(WireError::Endpoint { .. })
            | CliError::Publish(PublishError::Wire(WireError::Endpoint { .. }))
            | CliError::Fetch(FetchError::Url { .. })
            | CliError::NotConfirmed { .. } => USAGE,
            _ => FAILURE,
        }
    }

    fn correction(&self) -> Option<(&str, &str)> {
        match self {
            CliError::Layout(LayoutError::Resolve(ResolveError::SmallAxes { word, meant })) => {
                Some((word, meant))
            }
            _ => None,
        }
    }

    fn text(&self) -> String {
        let mut message = self.to_string();
        if self.is_of_files() {
            message = ShownText(&message).to_string();
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
    /// Whether the message contains names or text from files. Other messages may have several
    /// lines: they point at a position in a word.
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
                LayoutError::Resolve(ResolveError::EmptyPart { .. })
                | LayoutError::Resolve(ResolveError::PlaneMissing { .. })
                | LayoutError::Resolve(ResolveError::UnknownAxis { .. }),
            ) => Some("give the planes of the shape, for instance --plane c:bf16:C=512"),
            CliError::Transfer(TransferError::Saved(SavedError::NotASavedCache { .. })) => Some(
                "`kvtile inspect` reads files that `kvtile cache export --format saved` or the library's \
                     `saved::save` wrote",
            ),
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
