//! A run as one page that stands alone: no script, nothing from elsewhere.

use std::fmt::Write as _;

use kvtile_demo::demonstration::{DemoReport, RequestReport};

use super::{
    lines::time,
    summary,
    table::{self, Row},
};
use kvtile_cli::output::{PAGE_STYLE, count, escaped, thousands};

const STYLE: &str = include_str!("style.css");
/// The picture, in its own units.
const WIDTH: f64 = 860.0;
const LEFT: f64 = 190.0;
const RIGHT: f64 = 110.0;
const TOP: f64 = 18.0;
/// Height of a bar.
const BAR: f64 = 20.0;
/// Between the bars of a request.
const SPACE: f64 = 4.0;
/// What parts a request from the next.
const GAP: f64 = 18.0;

/// The page.
pub(super) fn page(report: &DemoReport) -> String {
    let (first, prompt) = (&report.first, &report.first.prompt);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta \
         name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>kvtile: three \
         requests, one prefix</title>\n<style>\n{PAGE_STYLE}{STYLE}</style>\n</head>\n<body>\n<h1>Three \
         requests, one prefix</h1>\n<p class=\"soft\">{} on {} threads. A handbook of {} tokens \
         in {} blocks of {} ({} each) stands before three questions. After the second one the \
         cache was closed, and another process answered the third.</p>\n",
        escaped(&first.model.title),
        first.model.threads,
        thousands(prompt.prefix_tokens as u64),
        prompt.prefix_blocks,
        prompt.page_size,
        count(prompt.block_bytes),
    );
    page.push_str("<h2>Time to first token</h2>\n");
    page.push_str(
        "<p class=\"legend\"><span><i class=\"key computed\"></i>prefix computed</span>\
         <span><i class=\"key host\"></i>prefix from host memory</span>\
         <span><i class=\"key disk\"></i>prefix from disk</span>\
         <span><i class=\"key rest\"></i>rest of the prompt computed</span></p>\n",
    );
    chart(&mut page, report);
    page.push_str("<h2>Where each prefix came from, and what it saved</h2>\n");
    requests(&mut page, report);
    for note in summary::notes(report) {
        let _ = writeln!(page, "<p class=\"soft\">{}</p>", escaped(note));
    }
    layouts(&mut page, report);
    answers(&mut page, report);
    let refusal = &report.refusal;
    let _ = write!(
        page,
        "<h2>The same folder, another model</h2>\n<p>With another RoPE base the folder is refused: \
         <code>{}</code> is {} in that model, {} in the folder.</p>\n</body>\n</html>\n",
        escaped(&refusal.field),
        escaped(&refusal.asked),
        escaped(&refusal.stored),
    );
    page
}

/// Bars of both ways to the first token, for each request.
fn chart(page: &mut String, report: &DemoReport) {
    let bars = report.requests.each_ref().map(|one| ways(one).len() as f64);
    let height = TOP + bars.iter().sum::<f64>() * (BAR + SPACE) + GAP * 3.0 + 28.0;
    let times = report.requests.iter().flat_map(|one| {
        let without = one.recompute.first_token_seconds;
        [one.served.first_token_seconds, without]
    });
    let longest = times.fold(1e-9, f64::max);
    let scale = |seconds: f64| seconds / longest * (WIDTH - LEFT - RIGHT);
    let _ = writeln!(
        page,
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"time to first token with \
         and without the cache\">"
    );
    let step = nice(longest / 5.0);
    let mut tick = 0.0;
    while tick <= longest {
        let x = LEFT + scale(tick);
        let _ = writeln!(
            page,
            "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{:.1}\"/><text \
             class=\"tick\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            height - 24.0,
            height - 8.0,
            axis(tick, step),
        );
        tick += step;
    }
    let mut y = TOP + 8.0;
    for request in &report.requests {
        let number = request.served.number;
        let _ = writeln!(
            page,
            "<text class=\"label strong\" x=\"16\" y=\"{:.1}\">request {number}</text>",
            y + 15.0,
        );
        for way in ways(request) {
            bar(page, &way, y, &scale);
            y += BAR + SPACE;
        }
        y += GAP;
    }
    page.push_str("</svg>\n");
}

/// One way to the first token of an answer.
struct Way {
    name: &'static str,
    /// Where the prefix came from, as a class and in words.
    source: (&'static str, &'static str),
    prefix_seconds: f64,
    seconds: f64,
}

/// Without the cache and with it; the first request found nothing and has one way only.
fn ways(request: &RequestReport) -> Vec<Way> {
    let (served, recompute) = (&request.served, &request.recompute);
    let without = Way {
        name: "without",
        source: ("computed", "computed"),
        prefix_seconds: recompute.prefix_seconds,
        seconds: recompute.first_token_seconds,
    };
    let source = match (served.prefix.host.blocks, served.prefix.disk.blocks) {
        (0, 0) => {
            let name = "empty cache";
            return vec![Way { name, ..without }];
        }
        (_, 0) => ("host", "from host memory"),
        _ => ("disk", "from disk"),
    };
    let with = Way {
        name: "with the cache",
        source,
        prefix_seconds: served.prefix.seconds,
        seconds: served.first_token_seconds,
    };
    vec![without, with]
}

fn bar(page: &mut String, way: &Way, y: f64, scale: &dyn Fn(f64) -> f64) {
    let (class, words) = way.source;
    let (prefix, rest) = (way.prefix_seconds, way.seconds - way.prefix_seconds);
    // A part that is there can be seen.
    let (length, behind) = (scale(prefix).max(2.0), scale(rest));
    let told = match class {
        "computed" => String::new(),
        _ => format!(", {} of it for the prefix {words}", time(prefix)),
    };
    let (text, middle) = (LEFT - 10.0, y + 15.0);
    let _ = writeln!(
        page,
        "<text class=\"tick\" x=\"{text}\" y=\"{middle:.1}\" text-anchor=\"end\">{}</text><rect \
         class=\"{class}\" x=\"{LEFT}\" y=\"{y:.1}\" width=\"{length:.1}\" \
         height=\"{BAR}\"><title>prefix {words}: {}</title></rect><rect class=\"rest\" x=\"{:.1}\" \
         y=\"{y:.1}\" width=\"{behind:.1}\" height=\"{BAR}\"><title>rest of the prompt: \
         {}</title></rect><text class=\"label\" x=\"{:.1}\" y=\"{middle:.1}\">{}{told}</text>",
        way.name,
        time(prefix),
        LEFT + length,
        time(rest),
        LEFT + length + behind + 8.0,
        time(way.seconds),
    );
}

/// The next of 1, 2 and 5 times a power of ten.
fn nice(seconds: f64) -> f64 {
    let power = 10_f64.powf(seconds.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0];
    let step = steps.into_iter().find(|step| step * power >= seconds);
    step.unwrap_or(10.0) * power
}

/// A tick, in the unit of the step.
fn axis(seconds: f64, step: f64) -> String {
    match step {
        s if s >= 1.0 => format!("{seconds:.0} s"),
        s if s >= 0.1 => format!("{seconds:.1} s"),
        _ => format!("{:.0} ms", seconds * 1e3),
    }
}

fn requests(page: &mut String, report: &DemoReport) {
    page.push_str(
        "<p>Of a prefix: blocks (tokens).</p>\n<div class=\"scroll\"><table>\n<thead><tr><th></th>\
         <th>request 1</th><th>request 2</th><th>request 3, after the restart</th></tr></thead>\n",
    );
    for group in table::groups(report) {
        page.push_str("<tbody>\n");
        for Row { name, cells } in group {
            let class = match name {
                "saved" | "times faster" => " class=\"strong\"",
                _ => "",
            };
            let _ = write!(page, "<tr{class}><th>{name}</th>");
            for cell in cells {
                let _ = write!(page, "<td>{}</td>", escaped(&cell));
            }
            page.push_str("</tr>\n");
        }
        page.push_str("</tbody>\n");
    }
    page.push_str("</table></div>\n");
}

/// Which layouts the blocks passed through.
fn layouts(page: &mut String, report: &DemoReport) {
    let first = &report.first;
    let [_, _, three] = &report.requests;
    let stored: usize = first.stored.iter().map(|stored| stored.blocks).sum();
    let seconds: f64 = first.stored.iter().map(|stored| stored.seconds).sum();
    let _ = write!(
        page,
        "<h2>On the way</h2>\n<p>{stored} blocks went from <code>{}</code>, the engine's, into \
         <code>{}</code> in host memory in {}, and {} ({}) from there to disk in {}, the waiting \
         for the disk included. The second process restored {} of them into <code>{}</code>, the \
         order of vLLM's CPU backend, and the checksum of each held.</p>\n",
        escaped(&first.allocate.layout),
        escaped(&first.open.layout),
        time(seconds),
        first.flushed.blocks,
        count(first.flushed.bytes),
        time(first.flushed.seconds),
        three.served.prefix.disk.blocks,
        escaped(&report.second.allocate.layout),
    );
}

fn answers(page: &mut String, report: &DemoReport) {
    let _ = write!(
        page,
        "<h2>Questions and answers</h2>\n<p>Tokens equal: {} ({} compared, greedy, with runs from an \
         empty sequence).</p>\n",
        if report.tokens_equal { "yes" } else { "no" },
        report.tokens_compared,
    );
    for request in &report.requests {
        let served = &request.served;
        let _ = write!(
            page,
            "<p>{}. {}</p>\n<blockquote>{}</blockquote>\n",
            served.number,
            escaped(&served.question),
            escaped(served.answer.text.trim()),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        for (longest, step) in [(4.2, 1.0), (0.9, 0.2), (13.0, 5.0), (0.04, 0.01)] {
            assert!((nice(longest / 5.0) - step).abs() < 1e-9, "{longest}");
        }
        assert_eq!(axis(0.02, 0.01), "20 ms");
        assert_eq!(axis(1.5, 0.5), "1.5 s");
    }
}
