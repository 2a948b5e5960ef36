//! `kvtile serve status`.

use std::{fmt::Write as _, path::PathBuf, time::Duration};

use clap::Args;
use kvtile_daemon::DaemonStatus;

use crate::{
    error::CliError,
    output::{self, thousands},
};

#[derive(Args, Debug)]
pub(super) struct StatusArgs {
    /// The socket of the daemon
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &StatusArgs) -> Result<(), CliError> {
    let status = DaemonStatus::of(&args.socket, Duration::from_secs(10))?;
    if args.json {
        return output::print_json(&status);
    }
    output::print(&text(&status))
}

fn text(status: &DaemonStatus) -> String {
    let mut text = format!(
        "process {}, version {}\n{} caches, {} clients\n",
        status.process,
        status.version,
        status.caches.len(),
        status.sessions.len()
    );
    for cache in &status.caches {
        let stats = &cache.stats;
        let hits: u64 = stats.hits.values().sum();
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "\n{}, revision {}: {} of {} blocks that were looked up were found",
            cache.name,
            cache.revision,
            thousands(hits),
            thousands(stats.lookup_blocks)
        );
        for tier in &cache.tiers {
            let of = |counts: &std::collections::BTreeMap<_, u64>| {
                counts.get(tier).copied().unwrap_or(0)
            };
            let (present, capacity) = (of(&stats.present), of(&stats.capacity));
            let capacity = match capacity {
                0 => String::new(),
                capacity => format!(" of {}", thousands(capacity)),
            };
            let _ = writeln!(
                text,
                "  {tier}: {}{capacity} blocks of {}, {} pinned",
                thousands(present),
                output::bytes(cache.block_bytes),
                thousands(of(&stats.pinned))
            );
        }
    }
    for session in &status.sessions {
        let _ = writeln!(
            text,
            "\nclient {}, {} (process {}): {}; {} matches, {} holds, {} requests in progress",
            session.session,
            session.name,
            session.process,
            session.cache,
            session.matches,
            session.holds,
            session.in_progress
        );
    }
    text
}
