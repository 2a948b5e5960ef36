//! Sweeps of the shared store of `kvtile serve`, on a thread of their own.

use std::{
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError, Sender},
    },
    time::Duration,
};

use clap::Args;
use kvtile::shared::{
    store::SharedStore,
    sweep::{SweepSettings, sweep},
};

use crate::{
    error::{CliError, with_causes},
    numbers,
    output::{self, thousands},
};

/// Seconds between two sweeps.
const EVERY: u64 = 300;

/// The options of sweeps.
#[derive(Args, Debug)]
pub(super) struct SweepOptions {
    /// Keep the shared store below this size: sweeps remove its oldest values down to 90 % of it
    #[arg(long, value_name = "BYTES", value_parser = numbers::parse_bytes, requires = "shared")]
    shared_capacity: Option<u64>,
    /// Sweeps remove values that were written or renewed longer ago than this
    #[arg(long, value_name = "SECONDS", requires = "shared",
          value_parser = clap::value_parser!(u64).range(1..))]
    shared_older_than: Option<u64>,
    /// The time between two sweeps (300 without it)
    #[arg(long, value_name = "SECONDS", requires = "shared",
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    sweep_every: Option<u64>,
}

/// A thread that sweeps until it is dropped. A sweep in progress then ends by itself.
#[derive(Debug)]
pub(super) struct Sweeper {
    /// Dropped at the end.
    _stop: Sender<()>,
}

impl Sweeper {
    /// Starts the thread, if sweeps have something to remove.
    pub(super) fn start(
        options: &SweepOptions,
        store: Option<&Arc<dyn SharedStore>>,
    ) -> Result<Option<Sweeper>, CliError> {
        let (capacity, age) = (options.shared_capacity, options.shared_older_than);
        let (Some(store), true) = (store, capacity.is_some() || age.is_some()) else {
            return match options.sweep_every {
                None => Ok(None),
                Some(every) => Err(CliError::Option {
                    option: "--sweep-every",
                    value: every.to_string(),
                    problem: "sweeps need --shared-capacity or --shared-older-than".to_owned(),
                }),
            };
        };
        let settings = SweepSettings::new(capacity).age_max(age.map(Duration::from_secs));
        let every = Duration::from_secs(options.sweep_every.unwrap_or(EVERY));
        let store = Arc::clone(store);
        let (stop, stopped) = mpsc::channel::<()>();
        let thread = std::thread::Builder::new().name("kvtile-sweep".to_owned());
        thread
            .spawn(move || {
                // What an earlier daemon left above the capacity does not wait for the first pause.
                loop {
                    output::print_error(&swept(&*store, &settings));
                    if stopped.recv_timeout(every) != Err(RecvTimeoutError::Timeout) {
                        break;
                    }
                }
            })
            .map_err(CliError::Output)?;
        Ok(Some(Sweeper { _stop: stop }))
    }
}

/// Sweeps once. Returns a line where it removed something or failed.
fn swept(store: &dyn SharedStore, settings: &SweepSettings) -> String {
    match sweep(store, settings) {
        Ok(report) if report.removed + report.leftovers == 0 => String::new(),
        Ok(report) => format!(
            "{}: a sweep removed {} of {} values, {} of {}, and {} leftovers\n",
            store.name(),
            thousands(report.removed),
            thousands(report.bundles),
            output::bytes(report.removed_bytes),
            output::bytes(report.bytes),
            thousands(report.leftovers)
        ),
        // A store that is down now may be up for the next sweep.
        Err(error) => {
            let problem = format!("{}: a sweep failed: {error}", store.name());
            with_causes(problem, &error) + "\n"
        }
    }
}
