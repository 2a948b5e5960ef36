//! `kvtile replay`: a trace of requests through a cache, for several policies and capacities, beside
//! what no cache can beat.

mod chart;
mod page;
mod report;

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use clap::Args;
use kvtile::{
    blocks::{
        policy::{PolicyKind, PolicySettings},
        pool::POOL_BLOCKS_MAX,
    },
    tiers::{
        cache::CacheSettings,
        replay::{DryCache, RealCache, Totals, Trace, TraceLimits, belady, infinite, replay},
    },
};
use metrics_exporter_prometheus::PrometheusBuilder;

use self::report::{Bytes, Report, Run};
use crate::{
    error::CliError,
    files::{self, OutputFile},
    numbers, output,
};

/// What `--help` says at its end.
pub(crate) const EXAMPLES: &str = "\
A trace has one request a line, as JSON: timestamp (ms), input_length and output_length (tokens), and
hash_ids, one for each block of the prompt; an id stands for a block with everything before it.
Traces of this form were published with Mooncake (FAST 2025).

A hit is a leading block of a request that is stored before it; then all its blocks are used or
stored. `infinite` is a cache that keeps everything, `belady` the best that a cache of the capacity
could have done, had it known all requests. The time saved is that of computing the tokens that were
hit, at the rate given with --prefill-rate, per request.

Without --dry the requests go through the cache itself: --capacity blocks of --block-bytes bytes in
host memory, and a disk where --disk gives a folder. Every block that comes back is compared with what
was stored. Belady's bound is left out with a disk, which holds more than the capacity. The cache
stores a request's blocks together, so its hits may differ a little from those of --dry.

Examples:
  kvtile replay conversation.jsonl --dry
  kvtile replay conversation.jsonl --dry --policy gittins,lru --capacity 10000
  kvtile replay conversation.jsonl --dry --html page.html
  kvtile replay conversation.jsonl --policy gittins --capacity 2000 --disk folder --disk-bytes 500000000
  kvtile replay conversation.jsonl --policy gittins --capacity 2000 --prometheus metrics.txt
  kvtile replay conversation.jsonl --dry --json | jq '.runs[] | [.policy, .block_hit_ratio]'";

/// Arguments of `kvtile replay`.
#[derive(Args, Debug)]
pub struct ReplayArgs {
    /// The trace
    #[arg(value_name = "TRACE")]
    trace: PathBuf,
    /// Keep the books only, without bytes
    #[arg(long)]
    dry: bool,
    /// Bytes of a block, an even number
    #[arg(long, value_name = "BYTES", default_value_t = 65_536, conflicts_with = "dry",
          value_parser = numbers::bytes_within(2, 1 << 30))]
    block_bytes: u64,
    /// Folder for a disk tier; each run has a folder of its own in it
    #[arg(
        long,
        value_name = "FOLDER",
        conflicts_with = "dry",
        requires = "disk_bytes"
    )]
    disk: Option<PathBuf>,
    /// Bytes that the disk tier of a run has at most
    #[arg(long, value_name = "BYTES", requires = "disk", value_parser = numbers::parse_bytes)]
    disk_bytes: Option<u64>,
    /// Policies, with commas between them or the option several times [default: gittins,lru,arc,s3-fifo]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    policy: Vec<String>,
    /// Blocks that the cache holds, with commas between them or the option several times
    #[arg(long, value_name = "BLOCKS", value_delimiter = ',',
          default_values_t = [1000, 2000, 5000, 10_000, 20_000, 30_000],
          value_parser = numbers::within(1_u32, capacity_max()))]
    capacity: Vec<u32>,
    /// Tokens of a block of the trace
    #[arg(long, value_name = "TOKENS", default_value_t = 512,
          value_parser = numbers::within(1_u32, 1 << 20))]
    page_size: u32,
    /// Tokens of prompts that an engine computes in a second, for the time saved
    #[arg(long, value_name = "TOKENS", default_value_t = 10_000,
          value_parser = numbers::within(1_u32, u32::MAX))]
    prefill_rate: u32,
    /// Write a page with the curves
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    html: Option<PathBuf>,
    /// Print JSON
    #[arg(long, help_heading = "Output")]
    json: bool,
    /// Write what the cache counted, as Prometheus reads it; of one policy with one capacity
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with = "dry",
        help_heading = "Output"
    )]
    prometheus: Option<PathBuf>,
}

/// Most blocks of a cache.
fn capacity_max() -> u32 {
    u32::try_from(POOL_BLOCKS_MAX).unwrap_or(u32::MAX)
}

/// Replays, and shows what came out.
pub(crate) fn run(args: &ReplayArgs) -> Result<(), CliError> {
    let policies = policies(&args.policy)?;
    if let Some(folder) = &args.disk {
        check_new(folder)?;
    }
    let mut capacities = args.capacity.clone();
    capacities.sort_unstable();
    capacities.dedup();
    if let Some(path) = &args.prometheus {
        check_one(path, policies.len() * capacities.len())?;
    }
    let html = OutputFile::open_some(args.html.as_ref())?;
    let mut counts = OutputFile::open_some(args.prometheus.as_ref())?;
    let mut files = html.iter().chain(&counts);
    let standard = files.any(OutputFile::is_standard);
    let trace = read(args)?;
    let report = measure(&trace, &policies, &capacities, (args, &mut counts))?;
    if let Some(file) = html {
        file.finish(&page::page(&report))?;
    }
    if standard {
        return Ok(());
    }
    if args.json {
        return output::print_json(&report);
    }
    output::print(&report.text())
}

/// Blocks of an earlier replay would be hits of this one.
fn check_new(folder: &Path) -> Result<(), CliError> {
    let found = match folder.read_dir() {
        Ok(mut names) => names.next().is_some(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
        Err(source) => {
            return Err(CliError::File {
                operation: "read",
                path: folder.to_owned(),
                source,
            });
        }
    };
    if !found {
        return Ok(());
    }
    Err(CliError::Option {
        option: "--disk",
        value: folder.display().to_string(),
        problem:
            "there is something in it; a replay starts with an empty disk, so give a new folder"
                .to_owned(),
    })
}

/// The counts of two caches in one file would be read as those of one.
fn check_one(path: &Path, runs: usize) -> Result<(), CliError> {
    if runs == 1 {
        return Ok(());
    }
    Err(CliError::Option {
        option: "--prometheus",
        value: path.display().to_string(),
        problem: format!(
            "these are the counts of one cache, and there are {runs}; give one --policy and one --capacity"
        ),
    })
}

fn policies(names: &[String]) -> Result<Vec<PolicyKind>, CliError> {
    if names.is_empty() {
        return Ok(PolicyKind::ALL.to_vec());
    }
    let mut policies = Vec::new();
    for name in names {
        let policy: PolicyKind = name.trim().parse().map_err(|_| CliError::Option {
            option: "--policy",
            value: name.clone(),
            problem: "no such policy; there are gittins, lru, arc and s3-fifo".to_owned(),
        })?;
        if !policies.contains(&policy) {
            policies.push(policy);
        }
    }
    Ok(policies)
}

fn read(args: &ReplayArgs) -> Result<Trace, CliError> {
    let file = files::open(&args.trace)?;
    let limits = TraceLimits {
        page_size: args.page_size,
        ..TraceLimits::default()
    };
    Trace::read(file, &limits).map_err(|source| CliError::Trace {
        path: args.trace.clone(),
        source,
    })
}

/// Through a pool whose blocks hold nothing.
fn dry(
    trace: &Trace,
    policy: PolicyKind,
    capacity: u32,
    progress: &mut dyn FnMut(u64),
) -> Result<Totals, CliError> {
    // More blocks than the trace have need no room.
    let distinct = u32::try_from(trace.distinct_blocks()).unwrap_or(u32::MAX);
    let settings = PolicySettings::from(policy);
    let mut cache = DryCache::new(&settings, capacity.min(distinct))?;
    Ok(replay(trace, &mut cache, progress)?)
}

/// Through the cache itself.
fn real(
    trace: &Trace,
    policy: PolicyKind,
    capacity: u32,
    (args, counts): (&ReplayArgs, &mut Option<OutputFile>),
    progress: &mut dyn FnMut(u64),
) -> Result<(Totals, Option<Bytes>), CliError> {
    let adjust = |settings: CacheSettings| {
        let settings = match (&args.disk, args.disk_bytes) {
            (Some(folder), Some(bytes)) => {
                settings.disk(folder.join(format!("{policy}-{capacity}")), bytes)
            }
            _ => settings,
        };
        settings.policies(policy, policy)
    };
    // A cache takes the recorder that is there when it opens.
    let recorder = PrometheusBuilder::new().build_recorder();
    let open = || RealCache::open(trace, (args.block_bytes, capacity), adjust);
    let mut cache = metrics::with_local_recorder(&recorder, open)?;
    let totals = replay(trace, &mut cache, progress)?;
    let bytes = Bytes {
        compared_blocks: cache.compared(),
        moves: cache.cache().stats().moves,
    };
    if let Some(file) = counts.take() {
        file.finish(&recorder.handle().render())?;
    }
    Ok((totals, Some(bytes)))
}

fn measure(
    trace: &Trace,
    policies: &[PolicyKind],
    capacities: &[u32],
    (args, counts): (&ReplayArgs, &mut Option<OutputFile>),
) -> Result<Report, CliError> {
    let requests = trace.requests().len() as u64;
    let runs = policies.len() * capacities.len();
    let bar = output::progress(requests * runs as u64, "replaying");
    let mut report = Report::new(trace, args.trace.display().to_string(), args.prefill_rate);
    for &policy in policies {
        for &capacity in capacities {
            let start = Instant::now();
            let mut told = 0;
            let mut progress = |done| {
                // The bar costs more than a request.
                if done - told >= 256 || done == requests {
                    bar.inc(done - told);
                    told = done;
                }
            };
            let (totals, real) = match args.dry {
                true => (dry(trace, policy, capacity, &mut progress)?, None),
                false => real(trace, policy, capacity, (args, &mut *counts), &mut progress)?,
            };
            let seconds = start.elapsed().as_secs_f64();
            let rate = args.prefill_rate;
            let run = Run::new(policy.name(), Some(capacity), &totals, seconds, rate);
            report.runs.push(run.with_bytes(real));
        }
    }
    bar.finish_and_clear();
    // With a disk a cache has more blocks than its host memory, and these bounds are none.
    let bounded = if args.disk.is_none() { capacities } else { &[] };
    for &capacity in bounded {
        let start = Instant::now();
        let totals = belady(trace, capacity as usize);
        let seconds = start.elapsed().as_secs_f64();
        report.bounds.push(Run::new(
            "belady",
            Some(capacity),
            &totals,
            seconds,
            args.prefill_rate,
        ));
    }
    let start = Instant::now();
    let totals = infinite(trace);
    let seconds = start.elapsed().as_secs_f64();
    report.bounds.push(Run::new(
        "infinite",
        None,
        &totals,
        seconds,
        args.prefill_rate,
    ));
    Ok(report)
}
