//! Shared stores against the tools that reach the same server or device without kvtile, in turns in
//! one run: S3 against the bare client `object_store`, Redis against `redis-benchmark`, a folder
//! against `fio`. `cargo x bench-sharing` installs the servers and runs this.
//!
//! | module | contents |
//! | --- | --- |
//! | `bucket` | S3 on SeaweedFS: the bare client, the store, and the tier over it |
//! | `tier` | host memory, and blocks of the tier |
//! | `redis` | `GET` on Redis |
//! | `folder` | files on the disk of a folder |
//! | `latency` | percentiles of single operations of the tier |
//! | `packing` | what compression costs |
//! | `clients` | threads that call a store, and sinks |
//! | `turns`, `report` | rounds, shares and the table |
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a benchmark ends at its first error"
)]

mod bucket;
mod clients;
mod folder;
mod latency;
mod packing;
mod redis;
mod report;
mod tier;
mod turns;

use std::{
    env,
    path::PathBuf,
    process::{Command, ExitCode},
};

use kvtile_testservers::kinds::{ACCESS_KEY, InstalledServers, SECRET_KEY};

use self::report::SharingReport;

/// The options of the benchmark.
pub(crate) struct SharingOptions {
    rounds: usize,
    part: Option<String>,
    json: Option<PathBuf>,
    /// Where values and the servers' data are, for all parts.
    folder: PathBuf,
}

const USAGE: &str = "the options are --rounds N (default 7), --part bucket|redis|folder|latency|compression, --folder \
                     FOLDER (default: the folder of temporary files) and --json FILE";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    // Cargo passes `--bench` for a benchmark and omits it for a test, which does nothing here.
    let Some(at) = arguments.iter().position(|argument| argument == "--bench") else {
        return ExitCode::SUCCESS;
    };
    let mut words = arguments.clone();
    words.remove(at);
    let options = match options(&words) {
        Ok(options) => options,
        Err(problem) => {
            eprintln!("{problem}; {USAGE}");
            return ExitCode::FAILURE;
        }
    };
    let Some(environment) = env::var_os("KVTILE_SERVERS") else {
        eprintln!("`cargo x bench-sharing` installs the servers and runs this");
        return ExitCode::FAILURE;
    };
    if !env::var("AWS_ACCESS_KEY_ID").is_ok_and(|key| key == ACCESS_KEY) {
        // The clients read their credentials from the environment of the process.
        let mut again = Command::new(env::current_exe().unwrap());
        again
            .args(&arguments)
            .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
        return match again.status().unwrap().success() {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        };
    }
    let servers = InstalledServers {
        environment: environment.into(),
        path: env::var_os("PATH").unwrap_or_default(),
    };
    measure(&servers, &options);
    ExitCode::SUCCESS
}

fn options(words: &[String]) -> Result<SharingOptions, String> {
    let mut options = SharingOptions {
        rounds: 7,
        part: None,
        json: None,
        folder: env::temp_dir(),
    };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| format!("{word} has no value"))?;
        match word.as_str() {
            "--rounds" => {
                options.rounds = value
                    .parse()
                    .ok()
                    .filter(|rounds| (1..=1000).contains(rounds))
                    .ok_or_else(|| format!("{value} is no number of rounds from 1 to 1000"))?;
            }
            "--part" if PARTS.iter().any(|(name, _)| name == value) => {
                options.part = Some(value.clone());
            }
            "--json" => options.json = Some(value.into()),
            "--folder" => options.folder = value.into(),
            _ => return Err(format!("{word} {value} is unknown")),
        }
    }
    Ok(options)
}

/// Measures one part and adds its rows.
type MeasurePart = fn(&InstalledServers, &SharingOptions, &mut SharingReport);

const PARTS: [(&str, MeasurePart); 5] = [
    ("bucket", bucket::measure),
    ("redis", redis::measure),
    ("folder", folder::measure),
    ("latency", latency::measure),
    ("compression", packing::measure),
];

fn measure(servers: &InstalledServers, options: &SharingOptions) {
    let mut report = SharingReport::new(options.rounds);
    for (name, part) in PARTS {
        if options.part.as_deref().is_none_or(|only| only == name) {
            part(servers, options, &mut report);
        }
    }
    report.print();
    if let Some(file) = &options.json {
        std::fs::write(file, report.json()).unwrap();
    }
}
