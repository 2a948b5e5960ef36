//! The report of a run as one self-contained HTML page, without scripts.

use std::fmt::Write as _;

use kvtile_demo::demonstration::DemoReport;

use super::{
    chart,
    lines::time,
    summary,
    table::{self, RequestRow},
};
use kvtile_cli::output::{PAGE_STYLE, count, escaped, thousands};

const STYLE: &str = include_str!("style.css");
/// The page.
pub(super) fn page(report: &DemoReport) -> String {
    let (first, prompt) = (&report.first, &report.first.prompt);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta \
         name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>kvtile: three \
         requests, one prefix</title>\n<style>\n{PAGE_STYLE}{STYLE}</style>\n</head>\n<body>\n<h1>Three \
         requests, one prefix</h1>\n<p class=\"soft\">{} on {} threads. A handbook of {} tokens \
         in {} blocks of {} ({} each) precedes three questions. After the second question the \
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
    page.push_str(&chart::chart(report));
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

fn requests(page: &mut String, report: &DemoReport) {
    page.push_str(
        "<p>Of a prefix: blocks (tokens).</p>\n<div class=\"scroll\"><table>\n<thead><tr><th></th>\
         <th>request 1</th><th>request 2</th><th>request 3, after the restart</th></tr></thead>\n",
    );
    for group in table::groups(report) {
        page.push_str("<tbody>\n");
        for RequestRow { name, cells } in group {
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

/// The layouts that the blocks passed through.
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
