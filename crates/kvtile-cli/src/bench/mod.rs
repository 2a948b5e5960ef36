//! `kvtile bench`: copies between layouts against `memcpy` of the same bytes in the same run.
//!
//! Every row is measured in rounds. In a round, one flat `memcpy`, one in chunks of the plan's
//! runs and the transfer take turns, each round starting with another of them; the medians of the
//! rounds are compared. Blocks are in a fresh random order each round, and blocks of the
//! destination are poisoned before and compared after.

mod measure;
mod random;
mod reference;
mod rows;

use std::path::PathBuf;

use clap::Args;
use kvtile::memory::machine::Machine;
use serde::Serialize;

use self::{
    measure::{Measured, measure},
    reference::Reference,
    rows::rows,
};
use crate::{
    error::CliError,
    output::{self, Align, Screen, Table, count},
    shape_args::ShapeArgs,
};

/// What `--help` says at its end.
pub(crate) const EXAMPLES: &str = "\
GB/s are payload bytes over time, each byte counted once, in 10^9. The ratio is to one flat memcpy
of as many bytes; `chunked` is to a memcpy in chunks as long as the plan's runs, whose sources lie
apart as they do in a cache with a region for each layer.

Examples:
  kvtile bench                                          the usual rows, less than a minute
  kvtile bench --quick --filter file                    only rows with files
  kvtile bench 'L|KBNHC' BHLKNC --bytes 1GiB --rounds 9
  kvtile bench vllm:LBHNC/cpu/bf16/vec BLKNHC --model qwen3-8b
  kvtile bench --folder /mnt/nvme --filter file --json";

/// Model of the usual rows.
const MODEL: &str = "llama-3.1-8b";

/// Arguments of `kvtile bench`.
#[derive(Args, Debug)]
pub(crate) struct BenchArgs {
    /// Layout that is read, in place of the usual rows
    #[arg(value_name = "SOURCE", requires = "destination")]
    source: Option<String>,
    /// Layout that is written
    #[arg(value_name = "DESTINATION")]
    destination: Option<String>,
    /// Bytes to move in each row, for instance 64MiB [default: 256MiB, 64MiB with --quick]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    bytes: Option<u64>,
    /// Rounds of which the median counts [default: 5, 3 with --quick]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    /// Fewer bytes and rounds
    #[arg(long)]
    quick: bool,
    /// Only rows whose text has this in it
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Folder for the files that rows with files write and remove [default: /var/tmp]
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
    /// Seed of block orders and contents
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    shape: ShapeArgs,
    /// Print JSON
    #[arg(long, help_heading = "Output")]
    json: bool,
}

/// What is needed to measure a row.
#[derive(Clone, Copy, Debug)]
struct Settings {
    bytes: u64,
    rounds: u32,
    seed: u64,
}

/// Everything, as a report.
#[derive(Serialize)]
struct Report {
    version: &'static str,
    rounds: u32,
    seed: u64,
    rows: Vec<Measured>,
}

/// Measures and shows the rows.
pub(crate) fn run(args: &BenchArgs) -> Result<(), CliError> {
    let usual = if args.quick { 64 << 20 } else { 256 << 20 };
    let settings = Settings {
        bytes: args.bytes.unwrap_or(usual),
        rounds: args.rounds.unwrap_or(if args.quick { 3 } else { 5 }),
        seed: args.seed,
    };
    check_memory(settings.bytes)?;
    let mut shape = args.shape.clone();
    let free = shape.planes.is_empty() && shape.heads.is_none() && shape.head_size.is_none();
    if shape.model.is_none() && free && args.source.as_deref().is_none_or(|s| !s.contains(':')) {
        shape.model = Some(MODEL.to_owned());
    }
    let pair = args.source.as_deref().zip(args.destination.as_deref());
    let rows = rows(pair, args.filter.as_deref())?;
    let folder = args.folder.clone().unwrap_or_else(|| "/var/tmp".into());
    let bar = output::progress(rows.len() as u64 * u64::from(settings.rounds), "measuring");
    let mut reference = Reference::new();
    let mut measured = Vec::new();
    for row in &rows {
        bar.set_message(row.label());
        measured.push(measure(
            row,
            &shape,
            settings,
            (&folder, &mut reference, &bar),
        )?);
    }
    bar.finish_and_clear();
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        rounds: settings.rounds,
        seed: settings.seed,
        rows: measured,
    };
    if args.json {
        return output::print_json(&report);
    }
    output::print(&text(&report, Screen::of_stdout()))
}

/// Source, destination, and source and destination of `memcpy` are as large as the row.
fn check_memory(bytes: u64) -> Result<(), CliError> {
    let machine = Machine::probe();
    let available = machine.memory.known().map(|memory| memory.available_bytes);
    let limit = machine.control_group_limit.known().and_then(Option::as_ref);
    let available = limit
        .map(|limit| limit.limit_bytes)
        .into_iter()
        .chain(available)
        .min();
    let needed = bytes.saturating_mul(4);
    match available {
        Some(available) if needed > available => Err(CliError::Option {
            option: "--bytes",
            value: count(bytes),
            problem: format!(
                "a row needs four times as much memory and {} are available; give less",
                count(available)
            ),
        }),
        _ => Ok(()),
    }
}

fn text(report: &Report, screen: Screen) -> String {
    let mut table = Table::new([
        ("from", Align::Left),
        ("to", Align::Left),
        ("bytes", Align::Right),
        ("run", Align::Right),
        ("GB/s", Align::Right),
        ("memcpy", Align::Right),
        ("ratio", Align::Right),
        ("chunked", Align::Right),
    ]);
    for row in &report.rows {
        table.row([
            row.source.clone(),
            row.destination.clone(),
            count(row.bytes),
            run_text(row),
            format!("{:.2}", row.gb_per_s),
            format!("{:.2}", row.memcpy_gb_per_s),
            screen.bold(&format!("{:.2}", row.ratio)),
            format!("{:.2}", row.chunked_ratio),
        ]);
    }
    let models: Vec<&str> = report.rows.iter().map(|row| row.model.as_str()).collect();
    let model = models.first().copied().unwrap_or_default();
    format!(
        "{}\nBlocks of {model} in random order; medians of {} rounds; every row was checked.\n\
         ratio: to one flat memcpy of the same bytes; chunked: to a memcpy in chunks as long as \
         the runs.\n",
        table.text(),
        report.rounds
    )
}

/// `2 KiB`, or `2 B…4 KiB` where they differ.
fn run_text(row: &Measured) -> String {
    match (row.run_bytes_min, row.run_bytes) {
        (shortest, longest) if shortest == longest => count(longest),
        (shortest, longest) => format!("{}…{}", count(shortest), count(longest)),
    }
}

/// `64MiB`, `1GiB`, `1048576`.
fn parse_bytes(text: &str) -> Result<u64, String> {
    let problem = || "give bytes such as 1048576, 64MiB or 1GiB".to_owned();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text.get(digits.len()..).unwrap_or_default();
    let shift = match unit {
        "" | "B" => 0,
        "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        _ => return Err(problem()),
    };
    let count: u64 = digits.parse().map_err(|_| problem())?;
    let bytes = count.checked_mul(1 << shift).ok_or_else(problem)?;
    match bytes {
        0 => Err("0 bytes cannot be measured".to_owned()),
        bytes => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_given_with_binary_units() {
        assert_eq!(parse_bytes("64MiB"), Ok(64 << 20));
        assert_eq!(parse_bytes("1G"), Ok(1 << 30));
        assert_eq!(parse_bytes("4096"), Ok(4096));
        for text in ["", "0", "MiB", "1.5GiB", "-1", "99999999999GiB", "1MB"] {
            assert!(parse_bytes(text).is_err(), "{text:?}");
        }
    }
}
