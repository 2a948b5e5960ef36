//! The report of a replay on nodes: rows for JSON, and text tables for a terminal.

use std::fmt::Write as _;

use kvtile::{
    layout::ShownText,
    tiers::replay::{ClusterTotals, ClusterWrites, Trace, infinite},
};
use serde::Serialize;

use super::{ClusterCase, ClusterInput, SharedSize, writes_text};
use crate::{
    output::{self, Align, TextTable, thousands},
    replay::report::TraceFacts,
};

/// The report.
#[derive(Debug, Serialize)]
pub(super) struct ClusterReport {
    trace: TraceFacts,
    /// Prompt tokens that a node computes in a second, from `--prefill-rate`.
    prefill_tokens_per_second: u32,
    /// Blocks of the disk of each node.
    disk_blocks: u32,
    /// Bytes of a block; `null` where neither `--block-bytes` nor `--model` gives them.
    block_bytes: Option<u64>,
    /// One run for each combination of the options.
    pub(super) runs: Vec<ClusterRun>,
    /// The hits of a cluster that evicts nothing and shares everything, of all blocks.
    infinite_block_hit_ratio: f64,
}

/// One combination of the options.
#[derive(Debug, Serialize)]
pub(super) struct ClusterRun {
    nodes: u32,
    route: &'static str,
    policy: &'static str,
    host_blocks: u32,
    /// Blocks of the shared tier; `null` for an unbounded one, 0 for none.
    shared_capacity_blocks: Option<u64>,
    bundle_blocks: u32,
    shared_writes: Option<String>,
    seconds: f64,
    requests: u64,
    blocks: u64,
    hit_blocks: u64,
    tokens: u64,
    hit_tokens: u64,
    block_hit_ratio: f64,
    token_hit_ratio: f64,
    hits: HitPlaces,
    moved_blocks: MovedAmounts,
    /// `null` where the bytes of a block are not known.
    moved_bytes: Option<MovedAmounts>,
    shared: SharedCounts,
    load: LoadFigures,
    #[serde(skip)]
    size: SharedSize,
}

/// Hits by place, as parts of all blocks.
#[derive(Debug, Serialize)]
struct HitPlaces {
    host: f64,
    disk: f64,
    shared: f64,
}

/// What moved between tiers, in blocks or in bytes.
#[derive(Debug, Serialize)]
struct MovedAmounts {
    host_to_disk: u64,
    disk_to_host: u64,
    host_to_shared: u64,
    shared_to_host: u64,
    total: u64,
    total_per_request: f64,
}

/// Counts of the shared tier. A value is a bundle.
#[derive(Debug, Serialize)]
struct SharedCounts {
    puts: u64,
    gets: u64,
    evicted: u64,
    values: u64,
    values_max: u64,
    /// `null` where the bytes of a block are not known.
    bytes: Option<u64>,
    bytes_max: Option<u64>,
}

/// The load of the nodes.
#[derive(Debug, Serialize)]
struct LoadFigures {
    /// Requests of the busiest node over the mean.
    requests_max_over_mean: f64,
    /// Computed prompt tokens of the node that computed the most over the mean.
    computed_max_over_mean: f64,
    /// Time that a request waits for earlier ones of its node, on average.
    queue_seconds_per_request: f64,
}

impl MovedAmounts {
    /// Amounts of blocks, each counted as `unit`.
    fn new(totals: &ClusterTotals, unit: u64) -> MovedAmounts {
        let of = |blocks: u64| blocks.saturating_mul(unit);
        let total = of(totals.moved_blocks());
        MovedAmounts {
            host_to_disk: of(totals.disk_written_blocks),
            disk_to_host: of(totals.disk_blocks),
            host_to_shared: of(totals.shared_written_blocks()),
            shared_to_host: of(totals.shared_read_blocks()),
            total,
            total_per_request: total as f64 / totals.all.requests.max(1) as f64,
        }
    }
}

impl ClusterRun {
    pub(super) fn new(
        case: &ClusterCase,
        totals: &ClusterTotals,
        block_bytes: Option<u64>,
        seconds: f64,
    ) -> ClusterRun {
        let settings = &case.settings;
        let all = &totals.all;
        let part = |blocks: u64| blocks as f64 / all.blocks.max(1) as f64;
        let value_bytes =
            block_bytes.map(|bytes| bytes.saturating_mul(u64::from(totals.bundle_blocks)));
        let stored = |values: u64| value_bytes.map(|bytes| bytes.saturating_mul(values));
        let queued = totals.queued_tokens as f64 / f64::from(settings.tokens_per_second);
        ClusterRun {
            nodes: settings.nodes,
            route: case.route.name(),
            policy: settings.policy.kind.name(),
            host_blocks: settings.host_blocks,
            shared_capacity_blocks: match case.shared {
                SharedSize::None => Some(0),
                SharedSize::Blocks(blocks) => Some(blocks),
                SharedSize::Unbounded => None,
            },
            bundle_blocks: totals.bundle_blocks,
            shared_writes: settings.shared.map(|shared| writes_text(shared.writes)),
            seconds,
            requests: all.requests,
            blocks: all.blocks,
            hit_blocks: all.hit_blocks,
            tokens: all.tokens,
            hit_tokens: all.hit_tokens,
            block_hit_ratio: all.block_hit_ratio(),
            token_hit_ratio: all.token_hit_ratio(),
            hits: HitPlaces {
                host: part(totals.host_blocks),
                disk: part(totals.disk_blocks),
                shared: part(totals.shared_blocks),
            },
            moved_blocks: MovedAmounts::new(totals, 1),
            moved_bytes: block_bytes.map(|bytes| MovedAmounts::new(totals, bytes)),
            shared: SharedCounts {
                puts: totals.shared_puts,
                gets: totals.shared_gets,
                evicted: totals.shared_evicted,
                values: totals.shared_values,
                values_max: totals.shared_values_max,
                bytes: stored(totals.shared_values),
                bytes_max: stored(totals.shared_values_max),
            },
            load: LoadFigures {
                requests_max_over_mean: totals.request_imbalance(),
                computed_max_over_mean: totals.computed_imbalance(),
                queue_seconds_per_request: queued / all.requests.max(1) as f64,
            },
            size: case.shared,
        }
    }

    /// The values of the options that take lists.
    fn options(&self) -> [(&'static str, String); 7] {
        let unshared = self.size == SharedSize::None;
        let shown = |text: String| if unshared { "-".to_owned() } else { text };
        let writes = self.shared_writes.clone();
        let writes = writes.unwrap_or_else(|| writes_text(ClusterWrites::First));
        [
            ("policy", self.policy.to_owned()),
            ("host", thousands(u64::from(self.host_blocks))),
            ("route", self.route.to_owned()),
            ("shared", self.size.text()),
            ("bundle", shown(self.bundle_blocks.to_string())),
            ("writes", shown(writes)),
            ("nodes", thousands(u64::from(self.nodes))),
        ]
    }
}

impl ClusterReport {
    pub(super) fn new(
        trace: &Trace,
        input: &ClusterInput<'_>,
        disk_blocks: u32,
        block_bytes: Option<u64>,
    ) -> ClusterReport {
        ClusterReport {
            trace: TraceFacts::new(trace, input.path.display().to_string()),
            prefill_tokens_per_second: input.prefill_rate,
            disk_blocks,
            block_bytes,
            runs: Vec::new(),
            infinite_block_hit_ratio: infinite(trace).block_hit_ratio(),
        }
    }

    /// As text for a terminal.
    pub(super) fn text(&self) -> String {
        let mut text = self.trace.text();
        let bytes = self.block_bytes.map(output::count);
        let bytes = bytes.map_or(String::new(), |bytes| format!(", blocks of {bytes}"));
        let disk = thousands(u64::from(self.disk_blocks));
        // Writing to a string cannot fail.
        let _ = writeln!(text, "Each node: disk of {disk} blocks{bytes}");
        let first = self.runs.first().map(ClusterRun::options);
        for (at, (name, value)) in first.into_iter().flatten().enumerate() {
            if !self.varies(at) {
                let _ = writeln!(text, "{name}: {}", ShownText(&value));
            }
        }
        let most = self.infinite_block_hit_ratio * 100.0;
        let _ = writeln!(
            text,
            "\nHits, % of all blocks; with nothing evicted and everything shared {most:.2}"
        );
        text.push_str(&self.table(&["all", "host", "disk", "shared", "tokens"], hit_cells));
        text.push_str(&self.tiers_text());
        let rate = thousands(u64::from(self.prefill_tokens_per_second));
        let _ = writeln!(
            text,
            "\nLoad: the busiest node over the mean; seconds that a request waits, at {rate} tokens a second and node"
        );
        text.push_str(&self.table(&["requests", "computed", "waits"], load_cells));
        text
    }

    /// The tables of what moved between tiers and of the shared tier, where there is one.
    fn tiers_text(&self) -> String {
        let mut text = String::new();
        if self.runs.iter().any(|run| run.moved_blocks.total > 0) {
            let unit = if self.block_bytes.is_some() {
                "MB"
            } else {
                "blocks"
            };
            // Writing to a string cannot fail.
            let _ = writeln!(text, "\nMoved, {unit} a request, and in all");
            let header = [
                "to disk",
                "from disk",
                "to shared",
                "from shared",
                "sum",
                "in all",
            ];
            text.push_str(&self.table(&header, moved_cells));
        }
        if self.runs.iter().any(|run| run.size != SharedSize::None) {
            text.push_str("\nThe shared tier, in values of one bundle each\n");
            let header = ["puts", "gets", "evicted", "stored", "most", "bytes at most"];
            text.push_str(&self.table(&header, shared_cells));
        }
        text
    }

    /// Whether the runs differ in the option at this place.
    fn varies(&self, at: usize) -> bool {
        let value = |run: &ClusterRun| run.options().into_iter().nth(at);
        let mut values = self.runs.iter().map(value);
        let first = values.next();
        values.any(|value| Some(value) != first)
    }

    /// One row for each run: the options that vary, and cells.
    fn table<const N: usize>(
        &self,
        header: &[&str; N],
        cells: impl Fn(&ClusterRun) -> [String; N],
    ) -> String {
        let options = self.runs.first().map(ClusterRun::options);
        let names = options.into_iter().flatten().map(|(name, _)| name);
        let names = names.enumerate().filter(|(at, _)| self.varies(*at));
        let shown: Vec<(usize, &str)> = names.collect();
        let names = shown.iter().map(|(_, name)| *name).chain(*header);
        let mut table = TextTable::columns(names.map(|name| (name.to_owned(), Align::Right)));
        for run in &self.runs {
            let options = run.options();
            let options = shown.iter().filter_map(|(at, _)| options.get(*at));
            let options = options.map(|(_, value)| value.clone());
            table.cells(options.chain(cells(run)));
        }
        table.text()
    }
}

fn hit_cells(run: &ClusterRun) -> [String; 5] {
    let ratios = [
        run.block_hit_ratio,
        run.hits.host,
        run.hits.disk,
        run.hits.shared,
        run.token_hit_ratio,
    ];
    ratios.map(|ratio| format!("{:.2}", ratio * 100.0))
}

fn moved_cells(run: &ClusterRun) -> [String; 6] {
    let (moved, unit) = match &run.moved_bytes {
        Some(bytes) => (bytes, 1e6),
        None => (&run.moved_blocks, 1.0),
    };
    let each = |amount: u64| {
        let each = amount as f64 / run.requests.max(1) as f64 / unit;
        format!("{each:.2}")
    };
    let all = match &run.moved_bytes {
        Some(bytes) => output::count(bytes.total),
        None => thousands(moved.total),
    };
    [
        each(moved.host_to_disk),
        each(moved.disk_to_host),
        each(moved.host_to_shared),
        each(moved.shared_to_host),
        each(moved.total),
        all,
    ]
}

fn shared_cells(run: &ClusterRun) -> [String; 6] {
    let shared = &run.shared;
    [
        thousands(shared.puts),
        thousands(shared.gets),
        thousands(shared.evicted),
        thousands(shared.values),
        thousands(shared.values_max),
        shared
            .bytes_max
            .map_or_else(|| "-".to_owned(), output::count),
    ]
}

fn load_cells(run: &ClusterRun) -> [String; 3] {
    let load = &run.load;
    [
        format!("{:.2}", load.requests_max_over_mean),
        format!("{:.2}", load.computed_max_over_mean),
        format!("{:.3}", load.queue_seconds_per_request),
    ]
}
