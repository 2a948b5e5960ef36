//! A replay as one page that stands alone: no script, nothing from elsewhere.

use std::fmt::Write as _;

use super::{
    chart,
    report::{Report, Run},
};
use crate::output::{PAGE_STYLE, escaped, thousands};

const STYLE: &str = include_str!("style.css");

/// The page.
pub(super) fn page(report: &Report) -> String {
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
         request, stored before it. <code>belady</code>, where there is no disk beside the capacity, is the best \
         that a cache of the capacity could have done, had it known all requests; \
         <code>infinite</code> keeps everything. Hold the pointer over a dot for its value.</p>\n",
    );
    page.push_str(&chart::curves(report));
    table(&mut page, report, "%", |run| run.block_hit_ratio * 100.0, 2);
    page.push_str(
        "<h2>Token hits</h2>\n<p>The part of all tokens of prompts in such blocks.</p>\n",
    );
    table(&mut page, report, "%", |run| run.token_hit_ratio * 100.0, 2);
    // Writing to a string cannot fail.
    let _ = write!(
        page,
        "<h2>Time to first token saved</h2>\n<p>Estimated: the tokens that were hit at {} prompt \
         tokens a second, per request.</p>\n",
        thousands(u64::from(report.prefill_tokens_per_second)),
    );
    table(
        &mut page,
        report,
        "ms",
        |run| run.saved_seconds_per_request * 1e3,
        0,
    );
    page.push_str("<h2>Cost</h2>\n<p>Time for each reference to a block.</p>\n");
    table(
        &mut page,
        report,
        "ns",
        |run| 1e9 / run.block_references_per_second,
        0,
    );
    page.push_str("</body>\n</html>\n");
    page
}

fn table(
    page: &mut String,
    report: &Report,
    unit: &str,
    value: impl Fn(&Run) -> f64,
    decimals: usize,
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
        for &blocks in &capacities {
            match report.run(name, blocks) {
                Some(run) => {
                    let _ = write!(page, "<td>{:.decimals$}</td>", value(run));
                }
                None => page.push_str("<td>-</td>"),
            }
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</tbody>\n</table></div>\n");
}
