//! `kvtile replay --groups`: replays a trace on the cache over the groups of a model.

use std::{
    fmt::Write as _,
    num::NonZeroU64,
    path::{Path, PathBuf},
    time::Instant,
};

use clap::{Args, ValueEnum};
use kvtile::{
    blocks::policy::PolicyKind,
    identity::ModelIdentity,
    layout::ShownText,
    tiers::replay::{
        GroupedError, GroupedSettings, GroupedTotals, ReplayStops, Trace, replay_grouped,
    },
};
use serde::Serialize;

use super::report::TraceFacts;
use crate::{
    error::CliError,
    model_file, numbers,
    output::{self, Align, TextTable, count, thousands},
};

/// The options of a replay over groups.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Groups")]
pub(super) struct GroupsArgs {
    /// Replay on the cache over the groups of a model: the JSON of its identity (see `kvtile layout --help`)
    #[arg(long, value_name = "FILE", requires = "host_bytes",
          conflicts_with_all = ["dry", "nodes", "capacity", "block_bytes", "disk", "html", "prometheus"])]
    pub(super) groups: Option<PathBuf>,
    /// Bytes of host memory, or `unbounded`, with commas between them
    #[arg(long, value_name = "BYTES", value_delimiter = ',', requires = "groups", value_parser = host_size)]
    host_bytes: Vec<HostSize>,
    /// The stops that the engine stores [default: prompt,branch]
    #[arg(
        long,
        value_name = "STOPS",
        value_enum,
        value_delimiter = ',',
        requires = "groups"
    )]
    stops: Vec<StopName>,
    /// Store a stop every so many tokens as well
    #[arg(long, value_name = "TOKENS", requires = "groups", value_parser = numbers::within(1_u64, 1 << 32))]
    every: Option<u64>,
}

/// Stops, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum StopName {
    /// The last one before the last token of the prompt, and the end of the prompt
    Prompt,
    /// Where an earlier request branched off
    Branch,
    /// None but those of --every
    None,
}

/// Host memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HostSize {
    Bytes(u64),
    Unbounded,
}

impl HostSize {
    fn bytes(self) -> Option<u64> {
        match self {
            HostSize::Bytes(bytes) => Some(bytes),
            HostSize::Unbounded => None,
        }
    }

    fn text(self) -> String {
        match self {
            HostSize::Bytes(bytes) => count(bytes),
            HostSize::Unbounded => "unbounded".to_owned(),
        }
    }
}

fn host_size(text: &str) -> Result<HostSize, String> {
    match text.trim() {
        "unbounded" => Ok(HostSize::Unbounded),
        text => numbers::parse_bytes(text)
            .map(HostSize::Bytes)
            .map_err(|problem| format!("{problem}, or `unbounded`")),
    }
}

/// What the command's other options give a replay over groups.
pub(super) struct GroupsInput<'a> {
    pub(super) path: &'a Path,
    pub(super) policies: &'a [PolicyKind],
    pub(super) prefill_rate: u32,
    pub(super) json: bool,
}

/// The report.
#[derive(Debug, Serialize)]
struct GroupedReport {
    trace: TraceFacts,
    model: String,
    /// Prompt tokens that an engine computes in a second, from `--prefill-rate`.
    prefill_tokens_per_second: u32,
    runs: Vec<GroupedRun>,
}

/// One policy with one size of host memory.
#[derive(Debug, Serialize)]
struct GroupedRun {
    policy: &'static str,
    /// `null` for room for all pages.
    host_bytes: Option<u64>,
    requests: u64,
    hits: u64,
    tokens: u64,
    hit_tokens: u64,
    token_hit_ratio: f64,
    /// Tokens up to which all pages of full attention were there. Those beyond `hit_tokens` were computed again.
    spine_tokens: u64,
    /// Time to first token saved per request, on average, without the time of the loads.
    saved_seconds_per_request: f64,
    stops: u64,
    loaded_bytes: u64,
    stored_bytes: u64,
    groups: Vec<GroupFigures>,
    seconds: f64,
    #[serde(skip)]
    size: HostSize,
}

/// One group of a run.
#[derive(Debug, Serialize)]
struct GroupFigures {
    name: String,
    rule: String,
    page_size: u64,
    page_bytes: u64,
    host_pages: u64,
    loaded_pages: u64,
    stored_pages: u64,
    loaded_bytes: u64,
    stored_bytes: u64,
}

/// Replays the trace with each policy and size of memory and prints the report.
pub(super) fn run(
    trace: &Trace,
    args: &GroupsArgs,
    (path, input): (&Path, &GroupsInput<'_>),
) -> Result<(), CliError> {
    let stops = stops(args)?;
    let model = model_file::read(path)?;
    let requests = trace.requests().len() as u64;
    let runs = input.policies.len() * args.host_bytes.len();
    let bar = output::progress(requests * runs as u64, "replaying");
    let mut report = GroupedReport {
        trace: TraceFacts::new(trace, input.path.display().to_string()),
        model: model.model().to_owned(),
        prefill_tokens_per_second: input.prefill_rate,
        runs: Vec::new(),
    };
    for &policy in input.policies {
        for &size in &args.host_bytes {
            let start = Instant::now();
            let settings = GroupedSettings {
                model: &model,
                host_bytes: size.bytes(),
                policy,
                stops,
            };
            let totals = replay_grouped(trace, &settings, &mut |_| bar.inc(1));
            let totals = totals.map_err(|error| refused(error, size, &model))?;
            let seconds = start.elapsed().as_secs_f64();
            let rate = input.prefill_rate;
            let run = GroupedRun::new((policy, size), totals, (seconds, rate));
            report.runs.push(run);
        }
    }
    bar.finish_and_clear();
    match input.json {
        true => output::print_json(&report),
        false => output::print(&report.text()),
    }
}

fn stops(args: &GroupsArgs) -> Result<ReplayStops, CliError> {
    let is_alone = args.stops.iter().all(|stop| *stop == StopName::None);
    if args.stops.contains(&StopName::None) && (args.every.is_none() || !is_alone) {
        return Err(CliError::Option {
            option: "--stops",
            value: "none".to_owned(),
            problem: "give it alone and with --every; without stops nothing is found".to_owned(),
        });
    }
    let has = |name| args.stops.is_empty() || args.stops.contains(&name);
    Ok(ReplayStops {
        prompt: has(StopName::Prompt),
        branch: has(StopName::Branch),
        every: args.every.and_then(NonZeroU64::new),
    })
}

/// The error of a replay over groups.
fn refused(error: GroupedError, size: HostSize, model: &ModelIdentity) -> CliError {
    match error {
        GroupedError::Tier(error) => CliError::Tier(error),
        GroupedError::Pages { .. } => CliError::Option {
            option: "--host-bytes",
            value: size.text(),
            problem: error.to_string(),
        },
        error => CliError::Option {
            option: "--groups",
            value: model.model().to_owned(),
            problem: error.to_string(),
        },
    }
}

impl GroupedRun {
    fn new(
        (policy, size): (PolicyKind, HostSize),
        totals: GroupedTotals,
        (seconds, rate): (f64, u32),
    ) -> GroupedRun {
        let saved = totals.hit_tokens as f64 / f64::from(rate);
        GroupedRun {
            policy: policy.name(),
            host_bytes: size.bytes(),
            requests: totals.requests,
            hits: totals.hits,
            tokens: totals.tokens,
            hit_tokens: totals.hit_tokens,
            token_hit_ratio: totals.token_hit_ratio(),
            spine_tokens: totals.spine_tokens,
            saved_seconds_per_request: saved / totals.requests.max(1) as f64,
            stops: totals.stops,
            loaded_bytes: totals.loaded_bytes(),
            stored_bytes: totals.stored_bytes(),
            seconds,
            size,
            groups: totals
                .groups
                .into_iter()
                .map(|group| GroupFigures {
                    rule: group.rule.to_string(),
                    page_size: group.page_size.get(),
                    page_bytes: group.page_bytes,
                    host_pages: group.host_pages,
                    loaded_pages: group.loaded_pages,
                    stored_pages: group.stored_pages,
                    loaded_bytes: group.loaded_pages.saturating_mul(group.page_bytes),
                    stored_bytes: group.stored_pages.saturating_mul(group.page_bytes),
                    name: group.name,
                })
                .collect(),
        }
    }
}

impl GroupedReport {
    /// As text for a terminal.
    fn text(&self) -> String {
        let mut text = self.trace.text();
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}\n", ShownText(&self.model));
        let mut table = TextTable::new([
            ("policy", Align::Left),
            ("host memory", Align::Right),
            ("tokens hit, %", Align::Right),
            ("full only, %", Align::Right),
            ("saved a request, s", Align::Right),
            ("stops", Align::Right),
            ("loaded", Align::Right),
            ("stored", Align::Right),
        ]);
        for run in &self.runs {
            let part =
                |tokens: u64| format!("{:.2}", tokens as f64 * 100.0 / run.tokens.max(1) as f64);
            table.row([
                run.policy.to_owned(),
                run.size.text(),
                part(run.hit_tokens),
                part(run.spine_tokens),
                format!("{:.3}", run.saved_seconds_per_request),
                thousands(run.stops),
                count(run.loaded_bytes),
                count(run.stored_bytes),
            ]);
        }
        text.push_str(&table.text());
        text.push_str("\nBy group\n");
        text.push_str(&self.groups_table());
        text.push_str(
            "\n`full only` counts the tokens whose pages of full attention were there. What is missing to it was computed \
             again\nbecause a window or a state had no stop there.\n",
        );
        text
    }

    fn groups_table(&self) -> String {
        let mut table = TextTable::new([
            ("policy", Align::Left),
            ("host memory", Align::Right),
            ("group", Align::Left),
            ("rule", Align::Left),
            ("page", Align::Right),
            ("pages in memory", Align::Right),
            ("loaded", Align::Right),
            ("stored", Align::Right),
        ]);
        for run in &self.runs {
            for group in &run.groups {
                table.row([
                    run.policy.to_owned(),
                    run.size.text(),
                    group.name.clone(),
                    group.rule.clone(),
                    count(group.page_bytes),
                    thousands(group.host_pages),
                    count(group.loaded_bytes),
                    count(group.stored_bytes),
                ]);
            }
        }
        table.text()
    }
}
