//! The report of a replay as one self-contained HTML page, without scripts.

use std::fmt::Write as _;

use super::{
    chart,
    report::{ReplayReport, ReplayRun},
};
use crate::output::{PAGE_STYLE, escaped, thousands};

const STYLE: &str = include_str!("style.css");

/// The page.
pub(super) fn page(report: &ReplayReport) -> String {
    let facts = &report.trace;
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta \
         name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>kvtile: a trace \
         replayed</title>\n<style>\n{PAGE_STYLE}{STYLE}</style>\n</head>\n<body>\n<h1>Hits of a cache of KV \
         blocks, by policy and capacity</h1>\n<p class=\"soft\"><code>{}</code>: {} requests, {} \
         references to {} blocks of {} tokens</p>\n",
        escaped(&facts.name),
        thousands(facts.requests),
        thousands(facts.block_references),
        thousands(facts.distinct_blocks),
        facts.page_size,
    );
    page.push_str(
        "<h2>Block hits</h2>\n<p>The part of all references to blocks that were leading blocks of a \
         request and were cached before it. <code>infinite</code> is a cache that evicts nothing; \
         <code>belady</code> is the most that a cache of the capacity can hit if it knows all requests in \
         advance (left out with a disk). Hold the pointer over a dot for its value. Bold: the best policy \
         of a capacity.</p>\n",
    );
    page.push_str(&chart::curves(report));
    let percent = |ratio: f64| ratio * 100.0;
    let hits = |run: &ReplayRun| percent(run.block_hit_ratio);
    table(&mut page, report, ("%", 2, BestValue::Highest), hits);
    page.push_str("<h2>Token hits</h2>\n<p>The part of all prompt tokens in such blocks.</p>\n");
    let hits = |run: &ReplayRun| percent(run.token_hit_ratio);
    table(&mut page, report, ("%", 2, BestValue::Highest), hits);
    // Writing to a string cannot fail.
    let _ = write!(
        page,
        "<h2>Time to first token saved</h2>\n<p>Estimated: the tokens that were hit at {} prompt \
         tokens a second, per request.</p>\n",
        thousands(u64::from(report.prefill_tokens_per_second)),
    );
    let saved = |run: &ReplayRun| run.saved_seconds_per_request * 1e3;
    table(&mut page, report, ("ms", 0, BestValue::Highest), saved);
    page.push_str(
        "<h2>Cost</h2>\n<p>Time of the replay for each reference to a block, the policy's learning \
         included.</p>\n",
    );
    let cost = |run: &ReplayRun| 1e9 / run.block_references_per_second;
    table(&mut page, report, ("ns", 0, BestValue::Lowest), cost);
    page.push_str("</body>\n</html>\n");
    page
}

/// Which value of a column is the best one.
#[derive(Clone, Copy)]
enum BestValue {
    Highest,
    Lowest,
}

/// The best value of the policies at a capacity, unless all are equal.
fn best(
    report: &ReplayReport,
    blocks: u32,
    best: BestValue,
    value: &dyn Fn(&ReplayRun) -> f64,
) -> Option<f64> {
    let runs = report.runs.iter();
    let values = runs
        .filter(|run| run.capacity_blocks == Some(blocks))
        .map(value);
    let values: Vec<f64> = values.collect();
    let first = *values.first()?;
    if values.iter().all(|&value| value == first) {
        return None;
    }
    values.into_iter().reduce(match best {
        BestValue::Highest => f64::max,
        BestValue::Lowest => f64::min,
    })
}

/// A table of one value, with a row for each policy and bound and a column for each capacity.
fn table(
    page: &mut String,
    report: &ReplayReport,
    (unit, decimals, order): (&str, usize, BestValue),
    value: impl Fn(&ReplayRun) -> f64,
) {
    let capacities = report.capacities();
    let _ = write!(
        page,
        "<div class=\"scroll\"><table>\n<thead><tr><th>{unit}</th>"
    );
    for &blocks in &capacities {
        let _ = write!(page, "<th>{}</th>", thousands(u64::from(blocks)));
    }
    page.push_str("</tr></thead>\n<tbody>\n");
    for (number, name) in report.names().into_iter().enumerate() {
        let _ = write!(page, "<tr><th><i class=\"key c{number}\"></i>{name}</th>");
        let bound = report.bounds.iter().any(|bound| bound.policy == name);
        for &blocks in &capacities {
            let Some(run) = report.run(name, blocks) else {
                page.push_str("<td>-</td>");
                continue;
            };
            let shown = format!("{:.decimals$}", value(run));
            let best = best(report, blocks, order, &value);
            let best = best.is_some_and(|best| format!("{best:.decimals$}") == shown);
            let class = if best && !bound {
                " class=\"best\""
            } else {
                ""
            };
            let _ = write!(page, "<td{class}>{shown}</td>");
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</tbody>\n</table></div>\n");
}
