//! `kvtile events`: records the KV cache events of an engine, and publishes a recording.

mod record;
mod replay;

use clap::{Args, Subcommand};
use kvtile_events_wire::WireBatch;
use serde::Serialize;

pub(crate) use self::{record::RecordArgs, replay::ReplayEventsArgs};
use crate::{
    error::CliError,
    output::{self, thousands},
};

/// The text at the end of `--help`.
pub(crate) const EXAMPLES: &str = "\
Engines such as vLLM publish which blocks they store and remove (`--kv-events-config`), over ZeroMQ.
`record` writes these events to a file, one batch a line, as JSON. `replay` publishes the file again
in the engine's form, so that a router can be developed and tested without engines.

Examples:
  kvtile events record tcp://127.0.0.1:5557 --out events.jsonl --seconds 60
  kvtile events record tcp://host:5557 --replay tcp://host:5558 --topic kv-events --out events.jsonl
  kvtile events replay events.jsonl --bind tcp://127.0.0.1:5557 --replay-bind tcp://127.0.0.1:5558
  kvtile events replay events.jsonl --bind 'tcp://*:5557' --speed 10 --wait 2
  kvtile events replay events.jsonl --bind tcp://127.0.0.1:5557 --speed max --json";

/// Arguments of `kvtile events`.
#[derive(Args, Debug)]
pub struct EventsArgs {
    #[command(subcommand)]
    command: EventsCommand,
}

#[derive(Subcommand, Debug)]
enum EventsCommand {
    /// Subscribe to the events of an engine and write them to a file
    Record(RecordArgs),
    /// Publish recorded events as the engine did
    Replay(ReplayEventsArgs),
}

/// Runs the command.
pub(crate) fn run(args: &EventsArgs) -> Result<(), CliError> {
    match &args.command {
        EventsCommand::Record(args) => record::run(args),
        EventsCommand::Replay(args) => replay::run(args),
    }
}

/// Counts of events.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct EventCounts {
    batches: u64,
    events: u64,
    stored_blocks: u64,
    removed_blocks: u64,
    clears: u64,
    /// Events of kinds that this version does not know.
    other_events: u64,
}

impl EventCounts {
    fn add(&mut self, batch: &WireBatch) {
        self.batches += 1;
        for event in &batch.events {
            self.events += 1;
            let blocks = event.blocks() as u64;
            match event.kind() {
                "BlockStored" => self.stored_blocks += blocks,
                "BlockRemoved" => self.removed_blocks += blocks,
                "AllBlocksCleared" => self.clears += 1,
                _ => self.other_events += 1,
            }
        }
    }

    fn text(&self) -> String {
        format!(
            "{} batches, {} events: {} blocks stored, {} removed, {} times all cleared, {} of other kinds",
            thousands(self.batches),
            thousands(self.events),
            thousands(self.stored_blocks),
            thousands(self.removed_blocks),
            thousands(self.clears),
            thousands(self.other_events),
        )
    }
}

/// Prints a report as JSON or as text.
fn report(json: bool, report: &impl Serialize, text: &str) -> Result<(), CliError> {
    match json {
        true => output::print_json(report),
        false => output::print(text),
    }
}
