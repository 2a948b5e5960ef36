//! `kvtile cache sweep`: what the store of a shared tier has, and removals of its oldest values.

use std::time::Duration;

use clap::Args;
use kvtile::{
    shared::{
        store::{Deadline, SharedStore, SharedStoreError},
        sweep::{SweepReport, SweepSettings, sweep},
    },
    tiers::TierError,
};
use serde_json::json;

use crate::{
    error::{CliError, with_causes},
    numbers,
    output::{self, thousands},
};

/// The end of `--help`.
pub(super) const EXAMPLES: &str = "\
A store is the path of a folder, s3://BUCKET/PREFIX, gs://…, az://…, redis://HOST:PORT/DB or unix:///SOCKET.
Caches remove nothing from it. Without --capacity and --older-than a sweep only counts, and removes the
files of writers that died more than an hour ago. Caches may use the store meanwhile; a removed value is
a miss. Values that are not kvtile's are never touched.

Examples:
  kvtile cache sweep /mnt/kv                                          count
  kvtile cache sweep s3://models/kv --capacity 2TB                    down to 90 % of it, the oldest first
  kvtile cache sweep redis://127.0.0.1:6379/0 --older-than 604800
  kvtile cache sweep /mnt/kv --capacity 500GB --every 300             again and again, until it is stopped";

#[derive(Args, Debug)]
pub(super) struct SweepArgs {
    /// The store: a folder or a URL
    #[arg(value_name = "STORE")]
    store: String,
    /// Remove the oldest values if all of them take more than this
    #[arg(long, value_name = "BYTES", value_parser = numbers::parse_bytes)]
    capacity: Option<u64>,
    /// The share of the capacity that a sweep leaves, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 90, requires = "capacity",
          value_parser = clap::value_parser!(u8).range(1..=100))]
    to: u8,
    /// Remove values that were written or renewed longer ago than this
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    older_than: Option<u64>,
    /// Sweep again after this time, until the program is stopped
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    every: Option<u64>,
    /// The time limit of opening the store and of each of its calls
    #[arg(long, value_name = "SECONDS", default_value_t = 60,
          value_parser = clap::value_parser!(u64).range(1..=3_600))]
    within: u64,
    /// Print JSON, one line for each sweep
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &SweepArgs) -> Result<(), CliError> {
    let within = Duration::from_secs(args.within);
    let store = kvtile_shared_open::open_store(&args.store, Deadline::within(within));
    let store = store.map_err(of_store)?;
    let settings = SweepSettings::new(args.capacity)
        .low_mark(f64::from(args.to) / 100.0)
        .age_max(args.older_than.map(Duration::from_secs))
        .call_within(within);
    loop {
        let swept = sweep(&*store, &settings);
        let Some(every) = args.every else {
            return report(args, &*store, &swept.map_err(of_store)?);
        };
        match swept {
            Ok(swept) => report(args, &*store, &swept)?,
            // A store that is down now may be up for the next sweep.
            Err(error) => {
                let problem = format!("{}: {error}", store.name());
                output::print_error(&(with_causes(problem, &error) + "\n"));
            }
        }
        std::thread::sleep(Duration::from_secs(every));
    }
}

pub(super) fn of_store(error: SharedStoreError) -> CliError {
    CliError::Tier(TierError::outside(error))
}

fn report(args: &SweepArgs, store: &dyn SharedStore, swept: &SweepReport) -> Result<(), CliError> {
    if args.json {
        return output::print_json(&json!({
            "store": store.name(),
            "values": swept.bundles,
            "bytes": swept.bytes,
            "removed": swept.removed,
            "removed_bytes": swept.removed_bytes,
            "foreign": swept.foreign,
            "leftovers": swept.leftovers,
        }));
    }
    let mut text = format!(
        "{}: {} values of kvtile, {}\n",
        store.name(),
        thousands(swept.bundles),
        output::bytes(swept.bytes)
    );
    if args.capacity.is_some() || args.older_than.is_some() {
        text.push_str(&format!(
            "removed {} of them, {}\n",
            thousands(swept.removed),
            output::bytes(swept.removed_bytes)
        ));
    }
    for (number, what) in [
        (swept.foreign, "other values, which stay"),
        (swept.leftovers, "leftovers of writers that died, removed"),
    ] {
        if number > 0 {
            text.push_str(&format!("{} {what}\n", thousands(number)));
        }
    }
    output::print(&text)
}
