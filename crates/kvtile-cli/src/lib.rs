//! The program kvtile: explains layouts and plans, measures, inspects saved caches, and tells what
//! the machine offers.
//!
//! | module | what it is |
//! | --- | --- |
//! | `cli` | the command line as a whole |
//! | `layout`, `plan`, `bench`, `inspect`, `cache`, `replay`, `doctor`, `demo` | one command each |
//! | `draw` | pictures in the terminal and as SVG |
//! | `shape_args`, `known`, `ranges` | what the user may say: shapes, layouts, ranges |
//! | `output` | text, tables, JSON, progress |
//!
//! Everything it knows it asks the library; only this crate reads the environment. It is a library
//! itself so that the Python package can be the same program.

use std::ffi::OsString;

use clap::Parser;

mod bench;
mod cache;
mod cli;
mod demo;
mod doctor;
mod draw;
mod error;
mod files;
mod inspect;
mod known;
mod layout;
mod output;
mod plan;
mod ranges;
mod replay;
mod shape_args;

pub use plan::plan_picture;

/// How the program was started.
#[derive(Clone, Debug)]
pub struct Invocation {
    /// The arguments, the name of the program first.
    pub arguments: Vec<OsString>,
    /// What starts the same program in another process, the file first.
    pub restart: Vec<OsString>,
}

/// Does what the arguments say and returns the exit code: 0 done, 1 failed or refused, 2 a request
/// that makes no sense. What it has to say goes to standard output and standard error.
#[must_use]
pub fn run(invocation: &Invocation) -> u8 {
    let cli = match cli::Cli::try_parse_from(&invocation.arguments) {
        Ok(cli) => cli,
        Err(said) => {
            // Help and versions come this way as well. Where nobody reads, there is nobody to tell.
            let _ = said.print();
            return u8::try_from(said.exit_code()).unwrap_or(2);
        }
    };
    match cli.run(&invocation.restart) {
        Ok(()) => 0,
        Err(error) => {
            output::print_error(&format!("error: {}\n", error.text()));
            error.exit_code()
        }
    }
}
