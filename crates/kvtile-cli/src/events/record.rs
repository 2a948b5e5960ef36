//! `kvtile events record`.

use std::{
    fs::OpenOptions,
    io::Write,
    path::PathBuf,
    time::{Duration, Instant, SystemTime},
};

use clap::Args;
use kvtile_events_wire::{RecordedBatch, SubscriberSettings, WireSubscriber};
use serde::Serialize;

use super::{EventCounts, report};
use crate::{error::CliError, numbers, output::thousands};

/// How long a wait for a batch lasts, where nothing else limits it.
const TURN: Duration = Duration::from_secs(1);

/// Arguments of `kvtile events record`.
#[derive(Args, Debug)]
pub(crate) struct RecordArgs {
    /// The engine's PUB socket: tcp://HOST:PORT
    #[arg(value_name = "ENDPOINT")]
    endpoint: String,
    /// The file to write, which must not exist; each batch is written when it comes
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// The engine's ROUTER socket, for past and missed batches
    #[arg(long, value_name = "ENDPOINT")]
    replay: Option<String>,
    /// The beginning of the topics to record [default: all]
    #[arg(
        long,
        value_name = "TOPIC",
        default_value = "",
        hide_default_value = true
    )]
    topic: String,
    /// End after this number of batches
    #[arg(long, value_name = "N", value_parser = numbers::count)]
    batches: Option<u64>,
    /// End after this number of seconds [default: with Ctrl-C]
    #[arg(long, value_name = "SECONDS", value_parser = numbers::count)]
    seconds: Option<u64>,
    /// Print JSON
    #[arg(long, help_heading = "Output")]
    json: bool,
}

/// The report of a recording.
#[derive(Debug, Default, Serialize)]
struct RecordingReport {
    #[serde(flatten)]
    counts: EventCounts,
    /// Batches that did not come.
    missed_batches: u64,
    /// Messages that were no batches.
    damaged_messages: u64,
    /// How often the publisher began anew.
    restarts: u64,
}

/// Runs the command.
pub(super) fn run(args: &RecordArgs) -> Result<(), CliError> {
    let mut settings = SubscriberSettings::new(&args.endpoint);
    settings.replay_endpoint = args.replay.clone();
    settings.topic = args.topic.clone();
    let mut subscriber = WireSubscriber::connect(&settings)?;
    let failed = |source| CliError::File {
        operation: "write",
        path: args.out.clone(),
        source,
    };
    let mut file = OpenOptions::new();
    let mut file = file
        .write(true)
        .create_new(true)
        .open(&args.out)
        .map_err(failed)?;
    let end = args
        .seconds
        .map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut recording = RecordingReport::default();
    while args
        .batches
        .is_none_or(|batches| recording.counts.batches < batches)
    {
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            break;
        }
        let Some(received) = subscriber.next(left.unwrap_or(TURN).min(TURN)) else {
            continue;
        };
        recording.counts.add(&received.batch);
        recording.missed_batches += received.missed;
        recording.restarts += u64::from(received.is_restart);
        let recorded = RecordedBatch {
            received_ms: now_ms(),
            received,
        };
        let mut line = recorded.to_line()?;
        line.push('\n');
        file.write_all(line.as_bytes()).map_err(failed)?;
    }
    recording.damaged_messages = subscriber.damaged();
    let text = format!(
        "{}\n{} batches missed, {} messages that were no batches, {} restarts of the publisher\n",
        recording.counts.text(),
        thousands(recording.missed_batches),
        thousands(recording.damaged_messages),
        thousands(recording.restarts),
    );
    report(args.json, &recording, &text)
}

/// Milliseconds since 1970.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let since = since.unwrap_or_default().as_millis();
    u64::try_from(since).unwrap_or(u64::MAX)
}
