//! The report of a replay: rows for JSON, and text tables for a terminal.

use std::fmt::Write as _;

use kvtile::layout::ShownText;
use kvtile::tiers::{
    metrics::MoveStats,
    replay::{ReplayTotals, Trace},
};
use serde::Serialize;

use crate::output::thousands;

/// The report.
#[derive(Debug, Serialize)]
pub(super) struct ReplayReport {
    pub(super) trace: TraceFacts,
    /// Prompt tokens that an engine computes in a second, from `--prefill-rate`.
    pub(super) prefill_tokens_per_second: u32,
    /// One run for each policy and capacity.
    pub(super) runs: Vec<ReplayRun>,
    /// Bounds that no policy can exceed.
    pub(super) bounds: Vec<ReplayRun>,
}

/// Figures of the trace.
#[derive(Debug, Serialize)]
pub(super) struct TraceFacts {
    pub(super) name: String,
    pub(super) requests: u64,
    pub(super) block_references: u64,
    pub(super) distinct_blocks: u64,
    pub(super) page_size: u32,
}

/// One policy, or bound, at one capacity.
#[derive(Debug, Serialize)]
pub(super) struct ReplayRun {
    pub(super) policy: String,
    /// `null` for a cache that evicts nothing.
    pub(super) capacity_blocks: Option<u32>,
    pub(super) block_hit_ratio: f64,
    pub(super) token_hit_ratio: f64,
    pub(super) requests: u64,
    pub(super) seconds: f64,
    pub(super) blocks: u64,
    pub(super) hit_blocks: u64,
    pub(super) tokens: u64,
    pub(super) hit_tokens: u64,
    pub(super) block_references_per_second: f64,
    /// Time to first token saved per request, on average.
    pub(super) saved_seconds_per_request: f64,
    /// Blocks compared and moved; absent in a dry run.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub(super) bytes: Option<ReplayedBytes>,
}

/// Blocks that a run on the cache itself compared and moved.
#[derive(Debug, Serialize)]
pub(super) struct ReplayedBytes {
    /// Blocks that were loaded and compared with the bytes that were stored.
    pub(super) compared_blocks: u64,
    /// Moves from tier to tier.
    pub(super) moves: Vec<MoveStats>,
}

impl TraceFacts {
    pub(super) fn new(trace: &Trace, name: String) -> TraceFacts {
        TraceFacts {
            name,
            requests: trace.requests().len() as u64,
            block_references: trace.references() as u64,
            distinct_blocks: trace.distinct_blocks() as u64,
            page_size: trace.page_size(),
        }
    }

    /// A line for a terminal.
    pub(super) fn text(&self) -> String {
        format!(
            "{}: {} requests, {} references to {} blocks of {} tokens\n",
            ShownText(&self.name),
            thousands(self.requests),
            thousands(self.block_references),
            thousands(self.distinct_blocks),
            self.page_size,
        )
    }
}

impl ReplayRun {
    pub(super) fn new(
        policy: &str,
        capacity: Option<u32>,
        totals: &ReplayTotals,
        seconds: f64,
        rate: u32,
    ) -> ReplayRun {
        let saved = totals.hit_tokens as f64 / f64::from(rate);
        ReplayRun {
            policy: policy.to_owned(),
            capacity_blocks: capacity,
            block_hit_ratio: totals.block_hit_ratio(),
            token_hit_ratio: totals.token_hit_ratio(),
            requests: totals.requests,
            seconds,
            blocks: totals.blocks,
            hit_blocks: totals.hit_blocks,
            tokens: totals.tokens,
            hit_tokens: totals.hit_tokens,
            block_references_per_second: totals.blocks as f64 / seconds.max(1e-9),
            saved_seconds_per_request: saved / totals.requests.max(1) as f64,
            bytes: None,
        }
    }

    pub(super) fn with_bytes(mut self, bytes: Option<ReplayedBytes>) -> ReplayRun {
        self.bytes = bytes;
        self
    }
}

impl ReplayReport {
    pub(super) fn new(trace: &Trace, name: String, rate: u32) -> ReplayReport {
        ReplayReport {
            trace: TraceFacts::new(trace, name),
            prefill_tokens_per_second: rate,
            runs: Vec::new(),
            bounds: Vec::new(),
        }
    }

    /// The capacities, from small to large.
    pub(super) fn capacities(&self) -> Vec<u32> {
        let mut capacities: Vec<u32> = self.rows().filter_map(|run| run.capacity_blocks).collect();
        capacities.sort_unstable();
        capacities.dedup();
        capacities
    }

    /// The names of policies and bounds, in the order of their runs.
    pub(super) fn names(&self) -> Vec<&str> {
        let mut names = Vec::new();
        for run in self.rows() {
            if !names.contains(&run.policy.as_str()) {
                names.push(&run.policy);
            }
        }
        names
    }

    /// The run of a policy or bound at a capacity; a run without a capacity is that of every capacity.
    pub(super) fn run(&self, name: &str, capacity: u32) -> Option<&ReplayRun> {
        self.rows().find(|run| {
            run.policy == name && run.capacity_blocks.is_none_or(|blocks| blocks == capacity)
        })
    }

    fn rows(&self) -> impl Iterator<Item = &ReplayRun> {
        self.runs.iter().chain(&self.bounds)
    }

    /// As text for a terminal.
    pub(super) fn text(&self) -> String {
        let mut text = self.trace.text();
        text.push_str("\nBlock hits, %\n");
        text.push_str(&self.table(|run| format!("{:.2}", run.block_hit_ratio * 100.0)));
        text.push_str("\nToken hits, %\n");
        text.push_str(&self.table(|run| format!("{:.2}", run.token_hit_ratio * 100.0)));
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "\nEstimated time to first token saved, ms a request, at {} prompt tokens a second",
            thousands(u64::from(self.prefill_tokens_per_second))
        );
        text.push_str(&self.table(|run| format!("{:.0}", run.saved_seconds_per_request * 1e3)));
        text.push_str("\nTime, ns a block reference\n");
        text.push_str(&self.table(|run| format!("{:.0}", 1e9 / run.block_references_per_second)));
        text.push_str(&self.routes());
        text
    }

    /// The moves of runs on the cache itself.
    fn routes(&self) -> String {
        let mut text = String::new();
        for run in &self.runs {
            let (Some(bytes), Some(capacity)) = (&run.bytes, run.capacity_blocks) else {
                continue;
            };
            let capacity = thousands(u64::from(capacity));
            let compared = thousands(bytes.compared_blocks);
            let name = &run.policy;
            let _ = writeln!(
                text,
                "\n{name}, {capacity} blocks: {compared} blocks came back right"
            );
            for moved in &bytes.moves {
                let (source, destination) = (moved.source.name(), moved.destination.name());
                let blocks = thousands(moved.blocks);
                let megabytes = moved.bytes as f64 / 1e6;
                let rate = moved.bytes_per_second().unwrap_or_default() / 1e9;
                let _ = writeln!(
                    text,
                    "  {source:>6} to {destination:<6}  {blocks:>9} blocks  {megabytes:>10.1} MB  {rate:>6.2} GB/s"
                );
            }
        }
        text
    }

    /// One row for each policy and bound, one column for each capacity.
    fn table(&self, cell: impl Fn(&ReplayRun) -> String) -> String {
        let capacities = self.capacities();
        let header = capacities
            .iter()
            .map(|&blocks| thousands(u64::from(blocks)));
        let first: Vec<String> = std::iter::once("blocks".to_owned()).chain(header).collect();
        let mut rows = vec![first];
        for name in self.names() {
            let cells = capacities.iter().map(|&capacity| {
                let run = self.run(name, capacity);
                run.map_or_else(|| "-".to_owned(), &cell)
            });
            rows.push(std::iter::once(name.to_owned()).chain(cells).collect());
        }
        let mut text = String::new();
        for row in rows {
            let mut cells = row.iter();
            let name = cells.next().map_or("", String::as_str);
            let _ = write!(text, "  {name:<9}");
            for cell in cells {
                let _ = write!(text, "  {cell:>9}");
            }
            text.push('\n');
        }
        text
    }
}
