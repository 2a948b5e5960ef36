//! The command line as a whole.

use std::ffi::OsString;

use clap::{Parser, Subcommand};

use crate::{bench, cache, demo, doctor, error::CliError, inspect, layout, plan, replay};

const ABOUT: &str = "KV cache layouts: explain, plan, measure and inspect";

const LONG_ABOUT: &str = "\
kvtile keeps the key/value cache of language models in blocks, in any layout and any memory, and \
moves the blocks between layouts at the speed of the memory. This program explains layouts, shows \
how blocks get from one to another, measures that on this machine, and looks into saved caches.";

const EXAMPLES: &str = "\
Start here:
  kvtile demo                                   a real model, two processes, three layouts
  kvtile layout 'L|BH(kCN,vNC)'                 what a layout is, drawn
  kvtile layout list vllm                       layouts of real engines
  kvtile plan 'L|KBNHC' BHLKNC                  how blocks get from one to the other
  kvtile bench --quick                          how fast, against memcpy on this machine
  kvtile inspect cache.kvtile                   what a saved cache holds, and whether it is whole
  kvtile replay trace.jsonl --dry               which policy would have kept what was asked for
  kvtile cache stat DIR                         what the folder of a disk tier holds
  kvtile doctor                                 what this machine offers, and what to change

Words contain | and parentheses: quote them in a shell. Every command has --help with examples and
--json for programs. Exit codes: 0 done, 1 failed or refused, 2 a request that makes no sense.";

/// The program's arguments.
#[derive(Parser, Debug)]
#[command(name = "kvtile", version, about = ABOUT, long_about = LONG_ABOUT)]
#[command(after_help = EXAMPLES, arg_required_else_help = true, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Watch a real model find the KV of a prefix in memory and, after a restart, on disk
    #[command(after_help = demo::EXAMPLES)]
    Demo(demo::DemoArgs),
    /// The second process of the demonstration
    #[command(hide = true)]
    DemoResume,
    /// Explain a layout and draw it; list the known ones
    #[command(after_help = layout::EXAMPLES)]
    Layout(Box<layout::LayoutArgs>),
    /// Show how blocks get from one layout to another
    #[command(after_help = plan::EXAMPLES)]
    Plan(Box<plan::PlanArgs>),
    /// Measure copies between layouts against memcpy of the same bytes
    #[command(after_help = bench::EXAMPLES)]
    Bench(Box<bench::BenchArgs>),
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
}

impl Cli {
    /// Does what was asked. `restart` is what starts the program in another process.
    pub(crate) fn run(&self, restart: &[OsString]) -> Result<(), CliError> {
        match &self.command {
            Command::Demo(args) => demo::run(args, restart),
            Command::DemoResume => demo::resume(),
            Command::Layout(args) => layout::run(args),
            Command::Plan(args) => plan::run(args),
            Command::Bench(args) => bench::run(args),
            Command::Inspect(args) => inspect::run(args),
            Command::Replay(args) => replay::run(args),
            Command::Cache(args) => cache::run(args),
            Command::Doctor(args) => doctor::run(args),
        }
    }
}
