//! The program kvtile: the commands of `kvtile-cli`, the demonstration and the benchmark.
//!
//! | module | what it is |
//! | --- | --- |
//! | `command_line` | the command line as a whole |
//! | `demo`, `bench` | the two commands that the library does not have |
//! | `error` | what these two say when they fail |

use std::{ffi::OsString, process::ExitCode};

mod bench;
mod command_line;
mod demo;
mod error;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    ExitCode::from(kvtile_cli::run_program::<command_line::CommandLine>(
        &arguments,
    ))
}
