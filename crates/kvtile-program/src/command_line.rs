//! The complete command line of the program.

use clap::{CommandFactory, Parser, Subcommand};
use kvtile_cli::{ABOUT, HELP_RULES, OutputArgs};

use crate::{bench, demo, error::ProgramError};

const LONG_ABOUT: &str = "\
kvtile keeps the key/value cache of language models in blocks, in any layout and any memory, and \
moves the blocks between layouts at the speed of the memory. This program explains layouts, shows \
how blocks get from one to another, measures that on this machine, and looks into saved caches.";

const EXAMPLES: &str = "\
Start here:
  kvtile demo                                   a real model, two processes, three layouts
  kvtile layout 'L|BH(kCN,vNC)'                 explain and draw a layout
  kvtile layout list vllm                       layouts of real engines
  kvtile plan 'L|KBNHC' BHLKNC                  how to copy blocks from one to the other
  kvtile bench --quick                          the speed on this machine, against memcpy
  kvtile inspect cache.kvtile                   contents of a saved cache, and its checksums
  kvtile replay trace.jsonl --dry               hit rates of eviction policies
  kvtile cache stat DIR                         contents of the folder of a disk tier
  kvtile serve --socket kv.sock --host 64GiB    one cache for all processes of this machine
  kvtile top 9090                               what the caches of a running server do
  kvtile doctor                                 features of this machine, with advice";

/// The program's arguments.
#[derive(Parser, Debug)]
#[command(name = "kvtile", version, about = ABOUT, long_about = LONG_ABOUT)]
#[command(after_help = format!("{EXAMPLES}\n\n{HELP_RULES}"), arg_required_else_help = true, max_term_width = 100)]
pub(crate) struct ProgramArgs {
    #[command(subcommand)]
    command: ProgramCommand,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Subcommand, Debug)]
enum ProgramCommand {
    /// Watch a real model reuse the KV of a prefix from memory and, after a restart, from disk
    #[command(after_help = demo::EXAMPLES)]
    Demo(demo::DemoArgs),
    /// The second process of the demonstration
    #[command(hide = true)]
    DemoResume,
    /// Measure copies between layouts against memcpy of the same bytes
    #[command(after_help = bench::EXAMPLES)]
    Bench(Box<bench::BenchArgs>),
    #[command(flatten)]
    Library(kvtile_cli::CliCommand),
}

impl kvtile_cli::CommandLine for ProgramArgs {
    type Failed = ProgramError;

    fn output(&self) -> &OutputArgs {
        &self.output
    }

    fn run(self) -> Result<(), ProgramError> {
        match self.command {
            ProgramCommand::Demo(args) => demo::run(&args),
            ProgramCommand::DemoResume => demo::resume(),
            ProgramCommand::Bench(args) => bench::run(&args),
            ProgramCommand::Library(command) => Ok(command.run(ProgramArgs::command())?),
        }
    }
}
