//! The command line of the library, and the commands that every program has.

use std::ffi::OsString;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::{
    CommandLine, OutputArgs, cache, doctor, error::CliError, events, inspect, layout, plan, replay,
    serve, shell, top,
};

/// The description of kvtile in one line.
pub const ABOUT: &str = "KV cache layouts: explain, plan, measure and inspect";

const LONG_ABOUT: &str = "\
kvtile keeps the key/value cache of language models in blocks, in any layout and any memory, and \
moves the blocks between layouts at the speed of the memory. This program explains layouts, shows \
how to copy blocks from one to another, replays traces of requests, and looks into caches on disk.";

const EXAMPLES: &str = "\
Start here:
  kvtile layout 'L|BH(kCN,vNC)'                 explain and draw a layout
  kvtile layout list vllm                       layouts of real engines
  kvtile plan 'L|KBNHC' BHLKNC                  how to copy blocks from one to the other
  kvtile inspect cache.kvtile                   contents of a saved cache, and its checksums
  kvtile replay trace.jsonl --dry               hit rates of eviction policies
  kvtile cache stat DIR                         contents of the folder of a disk tier
  kvtile serve --socket kv.sock --host 64GiB    one cache for all processes of this machine
  kvtile top 9090                               what the caches of a running server do
  kvtile doctor                                 features of this machine, with advice";

/// The rules of every command and the exit codes: the end of `--help`.
pub const HELP_RULES: &str = "\
Words contain | and parentheses: quote them in a shell. Every command has --help with examples
and --json for programs. Where a file is read or written, - is standard input or output. A file
appears under its name only when complete. Give lists as a,b or repeat the option; give bytes as
4096, 512K, 64MiB (of 1024) or 1GB (of 1000).

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
    request: CliRequest,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Subcommand, Debug)]
enum CliRequest {
    #[command(flatten)]
    Command(CliCommand),
    #[command(hide = true, disable_help_flag = true)]
    Demo(ElsewhereArgs),
    #[command(hide = true, disable_help_flag = true)]
    Bench(ElsewhereArgs),
}

/// The arguments, unparsed, of a command that this command line does not have.
#[derive(Args, Debug)]
struct ElsewhereArgs {
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
            CliRequest::Command(command) => command.run(Cli::command()),
            CliRequest::Demo(_) => Err(CliError::InProgramOnly { command: "demo" }),
            CliRequest::Bench(_) => Err(CliError::InProgramOnly { command: "bench" }),
        }
    }
}

/// A command that every program has.
#[derive(Subcommand, Debug)]
#[non_exhaustive]
pub enum CliCommand {
    /// Explain a layout and draw it; list the known ones
    #[command(after_help = layout::EXAMPLES)]
    Layout(Box<layout::LayoutArgs>),
    /// Show how to copy blocks from one layout to another
    #[command(after_help = plan::EXAMPLES)]
    Plan(Box<plan::PlanArgs>),
    /// Show the contents of a saved cache, verify it, and check its identity
    #[command(after_help = inspect::EXAMPLES)]
    Inspect(inspect::InspectArgs),
    /// Replay a trace of requests and report the hit rates of a cache
    #[command(after_help = replay::EXAMPLES)]
    Replay(Box<replay::ReplayArgs>),
    /// Record the KV cache events of an engine, and publish a recording
    #[command(after_help = events::EXAMPLES)]
    Events(events::EventsArgs),
    /// Report on the folder of a disk tier or the store of a shared tier, verify, export or clear it
    #[command(after_help = cache::EXAMPLES)]
    Cache(cache::CacheArgs),
    /// Serve one host memory, disk and shared store to all processes of this machine
    #[command(after_help = serve::EXAMPLES)]
    Serve(Box<serve::ServeArgs>),
    /// Show what the caches of a server do, again and again
    #[command(after_help = top::EXAMPLES)]
    Top(top::TopArgs),
    /// Report the features of this machine, with advice
    #[command(after_help = doctor::EXAMPLES)]
    Doctor(doctor::DoctorArgs),
    /// Write the completion script of a shell
    #[command(after_help = shell::COMPLETIONS_EXAMPLES)]
    Completions(shell::CompletionsArgs),
    /// Write a manual page, in the format of `man`
    #[command(after_help = shell::MAN_EXAMPLES)]
    Man(shell::ManArgs),
}

impl CliCommand {
    /// Runs the command; `program` is the whole command line.
    ///
    /// # Errors
    /// The command failed, or the request makes no sense.
    pub fn run(&self, program: clap::Command) -> Result<(), CliError> {
        match self {
            CliCommand::Layout(args) => layout::run(args),
            CliCommand::Plan(args) => plan::run(args),
            CliCommand::Inspect(args) => inspect::run(args),
            CliCommand::Replay(args) => replay::run(args),
            CliCommand::Events(args) => events::run(args),
            CliCommand::Cache(args) => cache::run(args),
            CliCommand::Serve(args) => serve::run(args),
            CliCommand::Top(args) => top::run(args),
            CliCommand::Doctor(args) => doctor::run(args),
            CliCommand::Completions(args) => shell::completions(args, program),
            CliCommand::Man(args) => shell::man(args, program),
        }
    }
}
