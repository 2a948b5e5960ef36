//! The errors of the demonstration and the benchmark, besides those of the other commands.

use kvtile::layout::LayoutError;
use kvtile_bench::BenchError;
use kvtile_cli::error::{CliError, FAILURE, ProgramFailure, USAGE, with_causes};
use kvtile_demo::DemoError;
use thiserror::Error;

/// Why a command of the program failed.
#[derive(Debug, Error)]
pub(crate) enum ProgramError {
    /// An error of the other commands.
    #[error(transparent)]
    Cli(#[from] CliError),
    /// The demonstration failed.
    #[error(transparent)]
    Demo(#[from] DemoError),
    /// The benchmark failed.
    #[error(transparent)]
    Bench(#[from] BenchError),
}

impl From<LayoutError> for ProgramError {
    fn from(error: LayoutError) -> ProgramError {
        ProgramError::Cli(error.into())
    }
}

impl ProgramFailure for ProgramError {
    fn exit_code(&self) -> u8 {
        match self {
            ProgramError::Cli(error) => error.exit_code(),
            ProgramError::Bench(
                BenchError::Layout(_)
                | BenchError::NothingLeft { .. }
                | BenchError::TooManyBytes { .. },
            ) => USAGE,
            _ => FAILURE,
        }
    }

    fn correction(&self) -> Option<(&str, &str)> {
        match self {
            ProgramError::Cli(error) => error.correction(),
            _ => None,
        }
    }

    fn text(&self) -> String {
        match self {
            ProgramError::Cli(error) => error.text(),
            other => with_causes(other.to_string(), other),
        }
    }
}
