//! The comparison of the requests, for the terminal and for the page.

use kvtile_demo::demonstration::{DemoReport, PrefixPart, RequestReport};

use super::lines::time;
use kvtile_cli::output::thousands;

/// A row: its name, and the cell of each request.
pub(super) struct RequestRow {
    pub(super) name: &'static str,
    pub(super) cells: [String; 3],
}

/// All rows, in groups.
pub(super) fn groups(report: &DemoReport) -> [Vec<RequestRow>; 4] {
    let row = |name, cell: &dyn Fn(&RequestReport) -> String| RequestRow {
        name,
        cells: report.requests.each_ref().map(cell),
    };
    let cached = |request: &RequestReport, text: String| match request.tokens_compared {
        0 => "-".to_owned(),
        _ => text,
    };
    [
        vec![
            row("process", &|one| one.served.process_id.to_string()),
            row("prefix recomputed", &|one| {
                part(one.served.prefix.recomputed)
            }),
            row("from host memory", &|one| part(one.served.prefix.host)),
            row("from disk", &|one| part(one.served.prefix.disk)),
            row("into", &|one| one.served.prefix.layout.clone()),
        ],
        vec![
            row("time for the prefix", &|one| {
                time(one.served.prefix.seconds)
            }),
            row("recomputing it took", &|one| {
                time(one.recompute.prefix_seconds)
            }),
            row("saved", &|one| cached(one, time(one.saved_seconds))),
            row("speed", &|one| {
                let speed = one.served.prefix.bytes_per_second();
                speed.map_or("-".to_owned(), |speed| format!("{:.2} GB/s", speed / 1e9))
            }),
        ],
        vec![
            row("tokens computed", &|one| {
                let tokens = one.served.prefix.recomputed.tokens + one.served.rest_tokens;
                thousands(tokens as u64)
            }),
            row("time to first token", &|one| {
                time(one.served.first_token_seconds)
            }),
            row("without the cache", &|one| {
                time(one.recompute.first_token_seconds)
            }),
            row("times faster", &|one| {
                cached(one, format!("{:.1}", one.first_token_ratio))
            }),
        ],
        vec![row("equal tokens", &|one| {
            let equal = one.first_difference.unwrap_or(one.tokens_compared);
            cached(one, format!("{equal} of {}", one.tokens_compared))
        })],
    ]
}

/// `81 (1,296)`: blocks and their tokens.
fn part(part: PrefixPart) -> String {
    match part.blocks {
        0 => "-".to_owned(),
        blocks => {
            let (blocks, tokens) = (blocks as u64, part.tokens as u64);
            format!("{} ({})", thousands(blocks), thousands(tokens))
        }
    }
}
