//! The program kvtile: the commands of `kvtile-cli`, the demonstration and the benchmark.
//!
//! | module | content |
//! | --- | --- |
//! | `command_line` | the complete command line |
//! | `demo`, `bench` | the two commands that the library does not have |
//! | `error` | the errors of these two |

use std::{ffi::OsString, process::ExitCode};

mod bench;
mod command_line;
mod demo;
mod error;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    ExitCode::from(kvtile_cli::run_program::<command_line::ProgramArgs>(
        &arguments,
    ))
}
