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
//! Everything it knows it asks the library; only this crate reads the environment.

use std::process::ExitCode;

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

fn main() -> ExitCode {
    match cli::Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", error.text());
            ExitCode::from(error.exit_code())
        }
    }
}
