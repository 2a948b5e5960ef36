//! `kvtile events replay`.

use std::{
    io::{BufRead, Read},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use clap::Args;
use kvtile_events_wire::{PublisherSettings, RecordedBatch, WirePublisher};
use serde::Serialize;

use super::{EventCounts, report};
use crate::{
    error::CliError,
    files, numbers,
    output::{self, thousands},
};

/// Bytes of the longest line of a recording.
const LINE_BYTES_MAX: u64 = 256 << 20;

/// How long the end waits for subscribers that read slowly.
const CLOSE_WITHIN: Duration = Duration::from_secs(10);

/// Arguments of `kvtile events replay`.
#[derive(Args, Debug)]
pub(crate) struct ReplayEventsArgs {
    /// The recording
    #[arg(value_name = "FILE")]
    recording: PathBuf,
    /// Where to publish: tcp://HOST:PORT; port 0 is any free one
    #[arg(long, value_name = "ENDPOINT")]
    bind: String,
    /// Where to answer requests of past batches
    #[arg(long, value_name = "ENDPOINT")]
    replay_bind: Option<String>,
    /// How many times as fast as it was recorded, or `max`
    #[arg(long, value_name = "TIMES", default_value = "1", value_parser = speed)]
    speed: ReplaySpeed,
    /// Subscribers to wait for before the first batch
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = numbers::index)]
    wait: u64,
    /// Seconds to wait for subscribers
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = numbers::count)]
    wait_seconds: u64,
    /// Seconds to answer requests of past batches after the last batch
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = numbers::index)]
    stay: u64,
    /// Print JSON
    #[arg(long, help_heading = "Output")]
    json: bool,
}

/// The speed of a replay.
#[derive(Clone, Copy, Debug, PartialEq)]
enum ReplaySpeed {
    /// So many times that of the recording.
    Times(f64),
    /// Without waiting.
    Max,
}

fn speed(text: &str) -> Result<ReplaySpeed, String> {
    if text == "max" {
        return Ok(ReplaySpeed::Max);
    }
    let times = text.parse::<f64>().ok();
    let times = times.filter(|times| (0.001..=1e6).contains(times));
    let times = times.map(ReplaySpeed::Times);
    times.ok_or_else(|| "give a number of 0.001 to 1000000, or `max`".to_owned())
}

/// The report of a replay.
#[derive(Debug, Default, Serialize)]
struct EventsReplayReport {
    #[serde(flatten)]
    counts: EventCounts,
    subscribers: usize,
    /// Messages that a slow subscriber lost.
    dropped_messages: u64,
    /// Whether all messages were written at the end.
    all_written: bool,
}

/// Runs the command.
pub(super) fn run(args: &ReplayEventsArgs) -> Result<(), CliError> {
    let mut source = files::open(&args.recording)?;
    let mut settings = PublisherSettings::new(&args.bind);
    settings.replay_endpoint = args.replay_bind.clone();
    let publisher = WirePublisher::bind(&settings)?;
    if !output::is_quiet() {
        let replays = publisher.replay_address();
        let replays = replays.map_or(String::new(), |at| format!(", replays on tcp://{at}"));
        output::print_error(&format!(
            "publishing on tcp://{}{replays}\n",
            publisher.address()
        ));
    }
    wait_for_subscribers(&publisher, args)?;
    let start = Instant::now();
    let mut replayed = EventsReplayReport::default();
    let mut first_ms = None;
    for line in 1_usize.. {
        let Some(text) = next_line(&mut source, &args.recording)? else {
            break;
        };
        if text.trim().is_empty() {
            continue;
        }
        let recorded = RecordedBatch::read(line, &text)?;
        let from = *first_ms.get_or_insert(recorded.received_ms);
        if let ReplaySpeed::Times(times) = args.speed {
            let due = Duration::from_millis(recorded.received_ms.saturating_sub(from));
            let due = start + due.div_f64(times);
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        let received = &recorded.received;
        publisher.publish_as(&received.topic, received.sequence, &received.batch);
        replayed.counts.add(&received.batch);
    }
    replayed.subscribers = publisher.subscribers();
    thread::sleep(Duration::from_secs(args.stay));
    replayed.dropped_messages = publisher.dropped();
    replayed.all_written = publisher.close(CLOSE_WITHIN);
    let text = format!(
        "{}\n{} subscribers at the end; {} messages lost by slow ones\n",
        replayed.counts.text(),
        thousands(replayed.subscribers as u64),
        thousands(replayed.dropped_messages),
    );
    report(args.json, &replayed, &text)
}

/// Waits until enough subscribers are there.
fn wait_for_subscribers(
    publisher: &WirePublisher,
    args: &ReplayEventsArgs,
) -> Result<(), CliError> {
    let end = Instant::now() + Duration::from_secs(args.wait_seconds);
    loop {
        let found = publisher.subscribers() as u64;
        if found >= args.wait {
            return Ok(());
        }
        if Instant::now() >= end {
            return Err(CliError::NoSubscribers {
                wanted: args.wait,
                found,
                seconds: args.wait_seconds,
            });
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// The next line; `None` at the end.
fn next_line(source: &mut impl BufRead, path: &Path) -> Result<Option<String>, CliError> {
    let mut text = String::new();
    let read = source.take(LINE_BYTES_MAX).read_line(&mut text);
    let bytes = read.map_err(|source| CliError::File {
        operation: "read",
        path: path.to_owned(),
        source,
    })?;
    Ok((bytes > 0).then_some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_are_numbers_or_max() {
        assert_eq!(speed("2.5"), Ok(ReplaySpeed::Times(2.5)));
        assert_eq!(speed("max"), Ok(ReplaySpeed::Max));
        for text in ["", "0", "-1", "nan", "inf", "fast", "1e9"] {
            assert!(speed(text).is_err(), "{text}");
        }
    }
}
