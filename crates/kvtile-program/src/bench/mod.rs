//! `kvtile bench`: the arguments of the benchmark and the output of its report. `kvtile-bench`
//! measures.

mod args;
mod blocks;
mod disk;
mod groups;

use std::path::Path;

use args::OtherBench;
pub(crate) use args::{BenchArgs, EXAMPLES};
use indicatif::ProgressBar;
use kvtile::layout::ShownText;
use kvtile_bench::{BenchProgress, BenchReport};
use kvtile_cli::{
    files::{self, OutputFile},
    output::{self, Screen},
};
use serde_json::Value;

use crate::error::ProgramError;

/// Longest file of results, in bytes.
const RESULTS_BYTES_MAX: u64 = 1 << 30;

/// Measures, or reads stored results, and prints the report.
pub(crate) fn run(args: &BenchArgs) -> Result<(), ProgramError> {
    match args.other() {
        Some(OtherBench::Blocks(args)) => return blocks::run(args),
        Some(OtherBench::Groups(args)) => return groups::run(args),
        Some(OtherBench::Disk(args)) => return disk::run(args),
        None => {}
    }
    let page = args.page().map(OutputFile::open).transpose()?;
    let standard = page.as_ref().is_some_and(OutputFile::is_standard);
    let report = match args.stored() {
        Some(path) => read(path)?,
        None => {
            let settings = args.settings()?;
            let mut bar = BenchBar(output::progress(0, "measuring"));
            let measured = kvtile_bench::run(&settings, &mut bar);
            bar.0.finish_and_clear();
            measured?
        }
    };
    if let Some(file) = page {
        file.finish(&report.html())?;
    }
    if standard {
        return Ok(());
    }
    if args.json() {
        return Ok(output::print_json(&report)?);
    }
    let emphasis: fn(&str) -> String = match Screen::of_stdout().colours {
        true => |text| format!("\u{1b}[33;1m{text}\u{1b}[0m"),
        false => str::to_owned,
    };
    Ok(output::print(&report.text(emphasis))?)
}

fn read(path: &Path) -> Result<BenchReport, ProgramError> {
    let text = files::read(path, RESULTS_BYTES_MAX)?;
    // For text that is no JSON, `BenchReport::parse` gives the error.
    let parsed = serde_json::from_str(&text);
    let text = parsed.map_or(text, |value| shown(value).to_string());
    Ok(BenchReport::parse(&text)?)
}

/// The results with all texts escaped for display.
fn shown(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(ShownText(&text).to_string()),
        Value::Array(values) => Value::Array(values.into_iter().map(shown).collect()),
        Value::Object(fields) => {
            let fields = fields.into_iter();
            Value::Object(fields.map(|(name, value)| (name, shown(value))).collect())
        }
        other => other,
    }
}

/// The progress bar on standard error.
struct BenchBar(ProgressBar);

impl BenchProgress for BenchBar {
    fn next(&mut self, done: usize, total: usize, what: &str) {
        self.0.set_length(total as u64);
        self.0.set_position(done as u64);
        self.0.set_message(what.to_owned());
    }
}
