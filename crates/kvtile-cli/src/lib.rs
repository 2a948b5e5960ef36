//! The commands of the program kvtile: they explain layouts and plans, inspect saved caches and the
//! folders of disk tiers, replay traces, and report the features of the machine.
//!
//! | module | content |
//! | --- | --- |
//! | `cli` | the command line of the library, and the commands that every program has |
//! | `layout`, `plan`, `inspect`, `cache`, `replay`, `events`, `serve`, `top`, `doctor` | one command each |
//! | `draw` | pictures in the terminal and as SVG |
//! | `settings` | the options that every command has |
//! | `shell` | completions, manual pages, shell quoting |
//! | [`shape_args`], `known`, `ranges`, [`numbers`] | the user's input: shapes, layouts, ranges, sizes |
//! | [`output`], [`files`] | text, tables, JSON, progress, files |
//! | [`error`] | the error messages of a program, and its exit codes |
//!
//! All facts come from the library. Only this crate and the program read the environment.
//!
//! The Python package runs this library unchanged ([`run`]). The program `kvtile` of
//! `kvtile-program` adds the demonstration and the benchmark: its command line includes
//! [`CliCommand`], and [`run_program`] runs it. So only the program contains the demonstration's model
//! and the benchmark's rivals.

use std::ffi::OsString;

use clap::Parser;

mod cache;
mod cli;
mod doctor;
mod draw;
pub mod error;
mod events;
pub mod files;
mod inspect;
mod known;
mod layout;
mod model_file;
pub mod numbers;
pub mod output;
mod plan;
mod policy;
mod ranges;
mod replay;
mod serve;
mod settings;
pub mod shape_args;
mod shell;
mod top;

pub use cli::{ABOUT, CliCommand, HELP_RULES};
pub use layout::layout_picture;
pub use plan::plan_picture;
pub use settings::OutputArgs;

/// The arguments of each command.
pub mod arguments {
    pub use super::{
        cache::CacheArgs,
        doctor::DoctorArgs,
        events::EventsArgs,
        inspect::InspectArgs,
        layout::LayoutArgs,
        plan::PlanArgs,
        replay::ReplayArgs,
        serve::ServeArgs,
        shell::{CompletionsArgs, ManArgs},
        top::TopArgs,
    };
}

use self::{error::ProgramFailure, settings::RunSettings};

/// The complete arguments of a program.
pub trait CommandLine: Parser {
    /// The error of its commands.
    type Failed: ProgramFailure;

    /// The options that every command has.
    fn output(&self) -> &OutputArgs;

    /// Runs the command of the arguments.
    ///
    /// # Errors
    /// The command failed, or the request makes no sense.
    fn run(self) -> Result<(), Self::Failed>;
}

/// Runs the commands of this library with `arguments`, the name of the program first, and returns
/// the exit code (see [`run_program`]).
#[must_use]
pub fn run(arguments: &[OsString]) -> u8 {
    run_program::<cli::Cli>(arguments)
}

/// Parses `arguments`, the name of the program first, as the command line `P`, runs it, and returns
/// the exit code: 0 done, 1 failed or refused, 2 a request that makes no sense. Results go to
/// standard output, errors to standard error.
#[must_use]
pub fn run_program<P: CommandLine>(arguments: &[OsString]) -> u8 {
    let matches = shell::with_negative_numbers(P::command()).try_get_matches_from(arguments);
    let program = match matches.and_then(|mut found| P::from_arg_matches_mut(&mut found)) {
        Ok(program) => program,
        Err(said) => {
            // Help and versions take this path as well. A closed output is no error here.
            let _ = said.print();
            return u8::try_from(said.exit_code()).unwrap_or(error::USAGE);
        }
    };
    let settings = match RunSettings::of(program.output()) {
        Ok(settings) => settings,
        Err(error) => return report(&error, arguments),
    };
    let done = program.run();
    let written = settings.finish();
    match (done, written) {
        (Err(error), _) => report(&error, arguments),
        (Ok(()), Err(error)) => report(&error, arguments),
        (Ok(()), Ok(())) => 0,
    }
}

fn report(error: &impl ProgramFailure, arguments: &[OsString]) -> u8 {
    let mut text = format!("error: {}\n", error.text());
    if let Some((word, meant)) = error.correction() {
        let command = shell::corrected(arguments, word, meant);
        text.push_str(&format!("  type: {command}\n"));
    }
    output::print_error(&text);
    error.exit_code()
}
