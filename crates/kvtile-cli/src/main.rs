//! The program kvtile as a file of its own.

use std::process::ExitCode;

use kvtile_cli::Invocation;

fn main() -> ExitCode {
    let invocation = Invocation {
        arguments: std::env::args_os().collect(),
        // Where the system does not tell the file, its name has to do.
        restart: vec![std::env::current_exe().map_or_else(|_| "kvtile".into(), Into::into)],
    };
    ExitCode::from(kvtile_cli::run(&invocation))
}
