//! The commands of the program kvtile: they explain layouts and plans, inspect saved caches and the
//! folders of disk tiers, replay traces, and report what the machine offers.
//!
//! | module | what it is |
//! | --- | --- |
//! | `cli` | the command line of the library, and the commands that every program has |
//! | `layout`, `plan`, `inspect`, `cache`, `replay`, `doctor` | one command each |
//! | `draw` | pictures in the terminal and as SVG |
//! | [`shape_args`], `known`, `ranges` | what the user may say: shapes, layouts, ranges |
//! | [`output`], [`files`] | text, tables, JSON, progress, files |
//! | [`error`] | what a program says when it fails, and its exit codes |
//!
//! The commands know only what the library says; only this crate and the program read the environment.
//!
//! The Python package runs this library as it is ([`run`]). The program `kvtile` of `kvtile-program`
//! adds the demonstration and the benchmark: its command line has [`Command`] as a part, and
//! [`run_program`] runs it. So the demonstration's model and the benchmark's rivals are in the
//! program alone.

use std::ffi::OsString;

use clap::Parser;

mod cache;
mod cli;
mod doctor;
mod draw;
pub mod error;
pub mod files;
mod inspect;
mod known;
mod layout;
pub mod output;
mod plan;
mod ranges;
mod replay;
pub mod shape_args;

pub use cli::{ABOUT, Command};
pub use plan::plan_picture;

use self::error::Failure;

/// Runs the commands of this library with `arguments`, the name of the program first, and returns
/// the exit code (see [`run_program`]).
#[must_use]
pub fn run(arguments: &[OsString]) -> u8 {
    run_program(arguments, cli::Cli::run)
}

/// Parses `arguments`, the name of the program first, as the command line `P`, runs it, and returns
/// the exit code: 0 done, 1 failed or refused, 2 a request that makes no sense. Results go to
/// standard output, errors to standard error.
#[must_use]
pub fn run_program<P: Parser, E: Failure>(
    arguments: &[OsString],
    run: impl FnOnce(P) -> Result<(), E>,
) -> u8 {
    let program = match P::try_parse_from(arguments) {
        Ok(program) => program,
        Err(said) => {
            // Help and versions come this way as well. A closed output is no error here.
            let _ = said.print();
            return u8::try_from(said.exit_code()).unwrap_or(2);
        }
    };
    match run(program) {
        Ok(()) => 0,
        Err(error) => {
            output::print_error(&format!("error: {}\n", error.text()));
            error.exit_code()
        }
    }
}
