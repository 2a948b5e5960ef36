//! `kvtile replay`: replays a trace of requests on a cache for several policies and capacities, and compares
//! the hits with bounds that no policy can exceed. With `--nodes` it replays on several caches and a shared tier, with
//! `--groups` on the cache over the groups of a model.

mod capacities;
mod chart;
mod cluster;
mod groups;
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
        replay::{DryCache, RealCache, ReplayTotals, Trace, TraceLimits, belady, infinite, replay},
    },
};
use metrics_exporter_prometheus::PrometheusBuilder;

use self::{
    cluster::ClusterInput,
    groups::GroupsInput,
    report::{ReplayReport, ReplayRun, ReplayedBytes},
};
use crate::{
    error::CliError,
    files::{self, OutputFile},
    numbers, output, policy,
};

/// The text at the end of `--help`.
pub(crate) const EXAMPLES: &str = "\
A trace has one request a line, as JSON: timestamp (ms), input_length and output_length (tokens), and
hash_ids, one for each block of the prompt; an id stands for a block with everything before it.
Traces of this form were published with Mooncake (FAST 2025).

A hit is a leading block of a request that the cache holds before the request; then the request uses or
stores all its blocks. `infinite` is a cache that evicts nothing. `belady` is the most that a cache of the
capacity can hit if it knows all requests in advance. The time saved is the time to compute the tokens
that were hit, at the rate of --prefill-rate, per request.

Without --capacity the capacities come from the trace: 1, 2 and 5 times a power of ten from a fortieth of
its distinct blocks on, and all of its blocks; without --dry only those within 2 GiB of host memory.

Without --dry the requests go through the cache itself: --capacity blocks of --block-bytes bytes in
host memory, and a disk where --disk gives a folder. Every block that is loaded is compared with the
bytes that were stored. Belady's bound is left out with a disk, which holds more than the capacity.

With --nodes the requests are routed to nodes, each with --capacity blocks of host memory and
--disk-blocks of disk, which gets what host memory evicts. Blocks that a node does not hold come from
the shared tier, in whole bundles, or are computed. --route prefix-load routes to the node with the
longest prefix whose queue is at most 1.25 times the mean queue plus the tokens that the prefix saves;
a node computes --prefill-rate tokens a second. --shared-writes uses:N writes a bundle once N requests
on the node have used all of it; cached-uses:N counts only while its blocks are in host memory. The
default policy is gittins. Every option that takes a list adds rows.

With --groups the requests go through the cache over the groups of a model, with pages of a few bytes in
place of the model's; --host-bytes are those of the model, and the groups divide them as in the cache. A
hit is the longest stop before the last token of the prompt. The engine stores the last stop of each
prompt, and where an earlier request branched off; --every adds stops. The default
policy is gittins.

Examples:
  kvtile replay conversation.jsonl --dry
  kvtile replay conversation.jsonl --dry --policy gittins,lru --capacity 10000
  kvtile replay conversation.jsonl --dry --html page.html
  kvtile replay conversation.jsonl --policy gittins --capacity 2000 --disk folder --disk-bytes 500000000
  kvtile replay conversation.jsonl --policy gittins --capacity 2000 --prometheus metrics.txt
  kvtile replay conversation.jsonl --nodes 1,8,64 --capacity 1000 --shared 0,20000,unbounded
  kvtile replay conversation.jsonl --nodes 8 --capacity 5000 --route prefix-load --shared unbounded \
    --bundle 1,2,4,8 --model llama-3.1-8b
  kvtile replay conversation.jsonl --groups model.json --host-bytes 64GiB,256GiB,unbounded
  kvtile replay conversation.jsonl --dry --json | jq '.runs[] | [.policy, .block_hit_ratio]'";

/// Arguments of `kvtile replay`.
#[derive(Args, Debug)]
pub struct ReplayArgs {
    /// The trace, a file of JSON lines
    #[arg(value_name = "TRACE")]
    trace: PathBuf,
    /// Run the block pool alone, without bytes
    #[arg(long)]
    dry: bool,
    /// Bytes of a block, an even number [default: 65536, and with --nodes unknown]
    #[arg(long, value_name = "BYTES", conflicts_with = "dry",
          value_parser = numbers::bytes_within(2, 1 << 30))]
    block_bytes: Option<u64>,
    /// Folder for a disk tier; each run has a folder of its own in it
    #[arg(
        long,
        value_name = "FOLDER",
        conflicts_with = "dry",
        requires = "disk_bytes"
    )]
    disk: Option<PathBuf>,
    /// Largest size of the disk tier of a run
    #[arg(long, value_name = "BYTES", requires = "disk", value_parser = numbers::parse_bytes)]
    disk_bytes: Option<u64>,
    /// Policies, with commas between them or the option several times [default: gittins,lru,arc,s3-fifo]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    policy: Vec<String>,
    /// Blocks that the cache holds, with commas between them or the option several times [default: from a
    /// fortieth to all distinct blocks of the trace]
    #[arg(long, value_name = "BLOCKS", value_delimiter = ',',
          value_parser = numbers::within(1_u32, capacity_max()))]
    capacity: Vec<u32>,
    /// Tokens of a block of the trace [default: those that the trace gives, or 512]
    #[arg(long, value_name = "TOKENS", value_parser = numbers::within(1_u32, 1 << 20))]
    page_size: Option<u32>,
    /// Prompt tokens that an engine computes in a second, for the time saved
    #[arg(long, value_name = "TOKENS", default_value_t = 10_000,
          value_parser = numbers::within(1_u32, u32::MAX))]
    prefill_rate: u32,
    #[command(flatten)]
    cluster: cluster::ClusterArgs,
    #[command(flatten)]
    groups: groups::GroupsArgs,
    /// Write a page with the curves
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    html: Option<PathBuf>,
    /// Print JSON
    #[arg(long, help_heading = "Output")]
    json: bool,
    /// Write the cache's metrics in Prometheus text format; takes one policy and one capacity
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with = "dry",
        help_heading = "Output"
    )]
    prometheus: Option<PathBuf>,
}

/// Bytes of a block where a replay moves bytes.
fn block_bytes(args: &ReplayArgs) -> u64 {
    args.block_bytes.unwrap_or(65_536)
}

/// Most blocks of a cache.
fn capacity_max() -> u32 {
    u32::try_from(POOL_BLOCKS_MAX).unwrap_or(u32::MAX)
}

/// Replays the trace and prints or writes the report.
pub(crate) fn run(args: &ReplayArgs) -> Result<(), CliError> {
    let policies = policies(&args.policy)?;
    if let Some(folder) = &args.disk {
        check_new(folder)?;
    }
    let mut capacities = args.capacity.clone();
    capacities.sort_unstable();
    capacities.dedup();
    if !args.cluster.nodes.is_empty() {
        return on_nodes(args, &policies, &capacities);
    }
    if let Some(path) = &args.groups.groups {
        return over_groups(args, path, &policies);
    }
    if let Some(path) = &args.prometheus {
        check_one_cache(path, policies.len() == 1 && capacities.len() == 1)?;
    }
    let html = OutputFile::open_some(args.html.as_ref())?;
    let mut counts = OutputFile::open_some(args.prometheus.as_ref())?;
    let mut files = html.iter().chain(&counts);
    let standard = files.any(OutputFile::is_standard);
    let trace = read(args)?;
    if capacities.is_empty() {
        let block_bytes = (!args.dry).then(|| block_bytes(args));
        capacities = capacities::of_trace(trace.distinct_blocks(), capacity_max(), block_bytes);
    }
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

/// Replays on the cache over groups.
fn over_groups(args: &ReplayArgs, path: &Path, policies: &[PolicyKind]) -> Result<(), CliError> {
    let default = [PolicyKind::default()];
    let input = GroupsInput {
        path: &args.trace,
        policies: match args.policy.is_empty() {
            true => &default,
            false => policies,
        },
        prefill_rate: args.prefill_rate,
        json: args.json,
    };
    groups::run(&read(args)?, &args.groups, (path, &input))
}

/// Replays on several nodes.
fn on_nodes(
    args: &ReplayArgs,
    policies: &[PolicyKind],
    capacities: &[u32],
) -> Result<(), CliError> {
    let default = [PolicyKind::default()];
    let input = ClusterInput {
        path: &args.trace,
        policies: match args.policy.is_empty() {
            true => &default,
            false => policies,
        },
        capacities,
        block_bytes: args.block_bytes,
        prefill_rate: args.prefill_rate,
        json: args.json,
    };
    cluster::run(&read(args)?, &args.cluster, &input)
}

/// Refuses a disk folder with files in it: blocks of an earlier replay would be hits of this one.
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
            "the folder is not empty; a replay starts with an empty disk, so give a new folder"
                .to_owned(),
    })
}

/// Refuses a file of metrics for several caches: a reader would take their sums for those of one.
fn check_one_cache(path: &Path, one: bool) -> Result<(), CliError> {
    if one {
        return Ok(());
    }
    Err(CliError::Option {
        option: "--prometheus",
        value: path.display().to_string(),
        problem: "the file holds the metrics of one cache; give one --policy and one --capacity"
            .to_owned(),
    })
}

fn policies(names: &[String]) -> Result<Vec<PolicyKind>, CliError> {
    if names.is_empty() {
        return Ok(PolicyKind::ALL.to_vec());
    }
    let mut policies = Vec::new();
    for name in names {
        let policy = policy::parse(name).map_err(|problem| CliError::Option {
            option: "--policy",
            value: name.clone(),
            problem,
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

/// Replays on a block pool without bytes.
fn dry(
    trace: &Trace,
    policy: PolicyKind,
    capacity: u32,
    progress: &mut dyn FnMut(u64),
) -> Result<ReplayTotals, CliError> {
    // A pool never fills more blocks than the trace has.
    let distinct = u32::try_from(trace.distinct_blocks()).unwrap_or(u32::MAX);
    let settings = PolicySettings::from(policy);
    let mut cache = DryCache::new(&settings, capacity.min(distinct))?;
    Ok(replay(trace, &mut cache, progress)?)
}

/// Replays on the cache itself, with bytes.
fn real(
    trace: &Trace,
    policy: PolicyKind,
    capacity: u32,
    (args, counts): (&ReplayArgs, &mut Option<OutputFile>),
    progress: &mut dyn FnMut(u64),
) -> Result<(ReplayTotals, Option<ReplayedBytes>), CliError> {
    let adjust = |settings: CacheSettings| {
        let settings = match (&args.disk, args.disk_bytes) {
            (Some(folder), Some(bytes)) => {
                settings.disk(folder.join(format!("{policy}-{capacity}")), bytes)
            }
            _ => settings,
        };
        settings.policies(policy, policy)
    };
    // A cache keeps the recorder that is installed while it opens.
    let recorder = PrometheusBuilder::new().build_recorder();
    let open = || RealCache::open(trace, (block_bytes(args), capacity), adjust);
    let mut cache = metrics::with_local_recorder(&recorder, open)?;
    let totals = replay(trace, &mut cache, progress)?;
    let bytes = ReplayedBytes {
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
) -> Result<ReplayReport, CliError> {
    let requests = trace.requests().len() as u64;
    let runs = policies.len() * capacities.len();
    let bar = output::progress(requests * runs as u64, "replaying");
    let mut report = ReplayReport::new(trace, args.trace.display().to_string(), args.prefill_rate);
    for &policy in policies {
        for &capacity in capacities {
            let start = Instant::now();
            let mut shown = 0;
            let mut progress = |done| {
                // Drawing the bar costs more than a request.
                if done - shown >= 256 || done == requests {
                    bar.inc(done - shown);
                    shown = done;
                }
            };
            let (totals, real) = match args.dry {
                true => (dry(trace, policy, capacity, &mut progress)?, None),
                false => real(trace, policy, capacity, (args, &mut *counts), &mut progress)?,
            };
            let seconds = start.elapsed().as_secs_f64();
            let rate = args.prefill_rate;
            let run = ReplayRun::new(policy.name(), Some(capacity), &totals, seconds, rate);
            report.runs.push(run.with_bytes(real));
        }
    }
    bar.finish_and_clear();
    // With a disk a cache holds more blocks than its host memory, so Belady's bound does not apply.
    let bounded = if args.disk.is_none() { capacities } else { &[] };
    for &capacity in bounded {
        let start = Instant::now();
        let totals = belady(trace, capacity as usize);
        let seconds = start.elapsed().as_secs_f64();
        report.bounds.push(ReplayRun::new(
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
    report.bounds.push(ReplayRun::new(
        "infinite",
        None,
        &totals,
        seconds,
        args.prefill_rate,
    ));
    Ok(report)
}
