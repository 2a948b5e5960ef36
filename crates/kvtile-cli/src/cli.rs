//! The command line of the library, and the commands that every program has.

use std::ffi::OsString;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::{
    CommandLine, OutputArgs, cache, doctor, error::CliError, inspect, layout, plan, replay, shell,
};

/// What a program kvtile is, in one line.
pub const ABOUT: &str = "KV cache layouts: explain, plan, measure and inspect";

const LONG_ABOUT: &str = "\
kvtile keeps the key/value cache of language models in blocks, in any layout and any memory, and \
moves the blocks between layouts at the speed of the memory. This program explains layouts, shows \
how blocks get from one to another, replays traces of requests, and looks into caches on disk.";

const EXAMPLES: &str = "\
Start here:
  kvtile layout 'L|BH(kCN,vNC)'                 what a layout is, drawn
  kvtile layout list vllm                       layouts of real engines
  kvtile plan 'L|KBNHC' BHLKNC                  how blocks get from one to the other
  kvtile inspect cache.kvtile                   what a saved cache holds, and whether it is whole
  kvtile replay trace.jsonl --dry               which policy would have kept what was asked for
  kvtile cache stat DIR                         what the folder of a disk tier holds
  kvtile doctor                                 what this machine offers, and what to change";

/// What holds for every command, and the exit codes: the end of `--help`.
pub const HELP_RULES: &str = "\
Words contain | and parentheses: quote them in a shell. Every command has --help with examples
and --json for programs. Where a file is read or written, - is standard input or output. A file
has its name when all of it is there. Lists are given as a,b or by repeating the option; bytes
as 4096, 512K, 64MiB (of 1024) or 1GB (of 1000).

Exit codes:
  0    done, and what was checked is whole
  1    failed, damaged or refused
  2    a request that makes no sense
  130  stopped with Ctrl-C, by the shell's count";

const ELSEWHERE: &str = "\
The demonstration and the benchmark are commands of the Rust program alone: in a checkout of kvtile,
`cargo run --release -- demo` and `cargo run --release -- bench`.";

/// The arguments of the library's command line.
#[derive(Parser, Debug)]
#[command(name = "kvtile", version, about = ABOUT, long_about = LONG_ABOUT)]
#[command(after_help = format!("{EXAMPLES}\n\n{HELP_RULES}\n\n{ELSEWHERE}"), arg_required_else_help = true, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    request: Request,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Subcommand, Debug)]
enum Request {
    #[command(flatten)]
    Command(Command),
    #[command(hide = true, disable_help_flag = true)]
    Demo(Elsewhere),
    #[command(hide = true, disable_help_flag = true)]
    Bench(Elsewhere),
}

/// Arguments of a command that this command line does not have, whatever they are.
#[derive(Args, Debug)]
struct Elsewhere {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    _arguments: Vec<OsString>,
}

impl CommandLine for Cli {
    type Failed = CliError;

    fn output(&self) -> &OutputArgs {
        &self.output
    }

    fn run(self) -> Result<(), CliError> {
        match self.request {
            Request::Command(command) => command.run(Cli::command()),
            Request::Demo(_) => Err(CliError::InProgramOnly { command: "demo" }),
            Request::Bench(_) => Err(CliError::InProgramOnly { command: "bench" }),
        }
    }
}

/// A command that every program has.
#[derive(Subcommand, Debug)]
#[non_exhaustive]
pub enum Command {
    /// Explain a layout and draw it; list the known ones
    #[command(after_help = layout::EXAMPLES)]
    Layout(Box<layout::LayoutArgs>),
    /// Show how blocks get from one layout to another
    #[command(after_help = plan::EXAMPLES)]
    Plan(Box<plan::PlanArgs>),
    /// Tell what a saved cache holds, whether it is whole, and why it would be refused
    #[command(after_help = inspect::EXAMPLES)]
    Inspect(inspect::InspectArgs),
    /// Replay a trace of requests: how often would a cache have had the blocks?
    #[command(after_help = replay::EXAMPLES)]
    Replay(replay::ReplayArgs),
    /// Look into the folder of a disk tier, check it, export it, clear it
    #[command(after_help = cache::EXAMPLES)]
    Cache(cache::CacheArgs),
    /// Tell what this machine offers, and what to change
    #[command(after_help = doctor::EXAMPLES)]
    Doctor(doctor::DoctorArgs),
    /// Write the script that completes these commands in a shell
    #[command(after_help = shell::COMPLETIONS_EXAMPLES)]
    Completions(shell::CompletionsArgs),
    /// Write a page of the manual, as `man` reads it
    #[command(after_help = shell::MAN_EXAMPLES)]
    Man(shell::ManArgs),
}

impl Command {
    /// Runs the command, of the command line `program`.
    ///
    /// # Errors
    /// What the command could not do, or why the request makes no sense.
    pub fn run(&self, program: clap::Command) -> Result<(), CliError> {
        match self {
            Command::Layout(args) => layout::run(args),
            Command::Plan(args) => plan::run(args),
            Command::Inspect(args) => inspect::run(args),
            Command::Replay(args) => replay::run(args),
            Command::Cache(args) => cache::run(args),
            Command::Doctor(args) => doctor::run(args),
            Command::Completions(args) => shell::completions(args, program),
            Command::Man(args) => shell::man(args, program),
        }
    }
}
