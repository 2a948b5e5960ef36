//! `cargo bench -p kvtile-bench [-- --quick] [-- TEXT…]`: the matrix, or the rows whose text
//! contains every TEXT. `kvtile bench` has more options.

use std::process::ExitCode;

use kvtile_bench::{BenchProgress, BenchSettings};

/// One line for each measurement, on standard error.
struct LineProgress;

impl BenchProgress for LineProgress {
    fn next(&mut self, done: usize, total: usize, what: &str) {
        eprintln!("{done}/{total} {what}");
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // Cargo passes `--bench` for a benchmark and omits it for a test, which does nothing here.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return ExitCode::SUCCESS;
    }
    let texts = arguments
        .iter()
        .filter(|argument| !argument.starts_with("--"));
    let settings = BenchSettings {
        quick: arguments.iter().any(|argument| argument == "--quick"),
        compare: arguments.iter().any(|argument| argument == "--compare"),
        filters: texts.cloned().collect(),
        ..BenchSettings::default()
    };
    match kvtile_bench::run(&settings, &mut LineProgress) {
        Ok(report) => {
            println!("{}", report.text(str::to_owned));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
