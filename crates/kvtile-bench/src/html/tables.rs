//! The tables of the page: the matrix, other ways to copy, files, and single figures.

use std::fmt::Write as _;

use super::{escaped, heat, tooltip};
use crate::{
    class::CopyClass,
    contender::CopyMethod,
    lines::{CellLine, bytes, runs, size},
    matrix::PairPurpose,
    report::BenchReport,
    row::BenchRow,
};

/// A column of the heat map.
type HeatColumn<'a> = (&'a str, String, u32);

/// The heat map: pairs by model, size and threads.
pub(super) fn matrix(rows: &[&BenchRow]) -> String {
    let mut columns: Vec<HeatColumn<'_>> = Vec::new();
    let column = |row: &BenchRow| (row.model.clone(), nominal(row), row.threads);
    for model in unique(rows.iter().map(|row| row.model.as_str())) {
        let mine = || rows.iter().filter(|row| row.model == model);
        let mut sizes: Vec<(u64, String)> =
            mine().map(|row| (rounded(row), nominal(row))).collect();
        sizes.sort();
        sizes.dedup();
        for size in unique(sizes.iter().map(|(_, size)| size.as_str())) {
            let mut threads: Vec<u32> = mine()
                .filter(|row| nominal(row) == size)
                .map(|row| row.threads)
                .collect();
            threads.sort_unstable();
            threads.dedup();
            columns.extend(threads.iter().map(|&n| (model, size.to_owned(), n)));
        }
    }
    let mut table = format!("<div class=\"scroll\"><table>\n{}<tbody>\n", head(&columns));
    let mut purposes: Vec<PairPurpose> = rows.iter().map(|row| row.purpose).collect();
    purposes.sort();
    purposes.dedup();
    for purpose in purposes {
        let mine: Vec<&BenchRow> = rows
            .iter()
            .copied()
            .filter(|r| r.purpose == purpose)
            .collect();
        let _ = writeln!(
            table,
            "<tr><th class=\"group\" colspan=\"{}\">{}</th></tr>",
            columns.len() + 1,
            purpose.title()
        );
        let pairs: Vec<String> = mine.iter().map(|row| row.pair()).collect();
        for pair in unique(pairs.iter().map(String::as_str)) {
            let _ = write!(
                table,
                "<tr><th class=\"word\" scope=\"row\">{}</th>",
                escaped(pair)
            );
            for (model, size, threads) in &columns {
                let key = ((*model).to_owned(), size.clone(), *threads);
                let row = mine
                    .iter()
                    .find(|row| row.pair() == pair && column(row) == key);
                table.push_str(&row.map_or_else(empty, |row| cell(row)));
            }
            table.push_str("</tr>\n");
        }
    }
    table.push_str("</tbody>\n</table></div>\n");
    table
}

/// Sizes are as near to a power of two as whole blocks allow.
fn rounded(row: &BenchRow) -> u64 {
    row.bytes.next_power_of_two()
}

fn nominal(row: &BenchRow) -> String {
    match size(row).as_str() {
        "in cache" => "in cache".to_owned(),
        _ => bytes(rounded(row)),
    }
}

/// Model over size over threads.
fn head(columns: &[HeatColumn<'_>]) -> String {
    let mut lines = [
        "<tr><th></th>",
        "<tr class=\"sub\"><th></th>",
        "<tr class=\"sub\"><th></th>",
    ]
    .map(str::to_owned);
    let [models, sizes, threads] = &mut lines;
    for model in unique(columns.iter().map(|(model, _, _)| *model)) {
        let mine: Vec<_> = columns.iter().filter(|(m, _, _)| *m == model).collect();
        let _ = write!(
            models,
            "<th colspan=\"{}\">{}</th>",
            mine.len(),
            escaped(model)
        );
        for size in unique(mine.iter().map(|(_, size, _)| size.as_str())) {
            let count = mine.iter().filter(|(_, s, _)| s == size).count();
            let _ = write!(sizes, "<th colspan=\"{count}\">{size}</th>");
        }
        for (_, _, count) in &mine {
            let _ = write!(threads, "<th>×{count}</th>");
        }
    }
    let lines = lines.map(|line| line + "</tr>\n").concat();
    format!("<thead>\n{lines}</thead>\n")
}

fn cell(row: &BenchRow) -> String {
    format!(
        "<td class=\"{}\" title=\"{}\">{:.2}</td>",
        heat::class(row),
        tooltip(row),
        row.ratio
    )
}

/// The cell of another way to copy, in bold where it is faster than kvtile.
fn rival(row: &BenchRow, ours: Option<&BenchRow>) -> String {
    let faster = ours.is_some_and(|ours| row.ratio > ours.ratio);
    let faster = if faster { " faster" } else { "" };
    let (class, tooltip, ratio) = (heat::class(row), tooltip(row), row.ratio);
    format!("<td class=\"{class}{faster}\" title=\"{tooltip}\">{ratio:.2}</td>")
}

fn empty() -> String {
    "<td class=\"none\">·</td>".to_owned()
}

/// Other ways to copy beside kvtile, where the run measured them.
pub(super) fn compared(rows: &[BenchRow]) -> String {
    let plain = [
        CopyMethod::MemcpyLoop,
        CopyMethod::Ndarray,
        CopyMethod::Torch,
    ];
    let is_plain = |row: &&BenchRow| plain.contains(&row.method);
    if rows.iter().find(is_plain).is_none() {
        return String::new();
    }
    let lines = CellLine::of(rows.iter().filter(|row| row.class != CopyClass::File));
    let compared = lines.iter().filter(|line| line.rows.iter().any(is_plain));
    let mut table = "<h2>Against other ways to copy</h2>\n<p>The same blocks of the same memory in the \
                     same turns: a loop of <code>memcpy</code> for each block, layer and plane (or \
                     row, where pieces are smaller), <code>ndarray</code> views with permuted axes, \
                     and <code>torch.index_select</code> with \
                     <code>permute().contiguous()</code>, all on one thread. Torch has memory of \
                     its own and is measured against its own flat copy. Bold: faster than kvtile.</p>\n\
                     <div class=\"scroll\"><table>\n<thead><tr><th></th><th>model</th><th>bytes</th>\
                     <th>runs</th><th>kvtile</th><th>memcpy \
                     loop</th><th>ndarray</th><th>torch</th></tr></thead>\n<tbody>\n"
        .to_owned();
    for line in compared {
        let Some(first) = line.rows.first() else {
            continue;
        };
        let _ = write!(
            table,
            "<tr><th class=\"word\" scope=\"row\">{}</th><td class=\"left\">{}</td><td>{}</td>\
             <td>{}</td>",
            escaped(&first.pair()),
            escaped(&first.model),
            size(first),
            runs(first)
        );
        let ours = line.find(CopyMethod::Kvtile, 1);
        table.push_str(&ours.map_or_else(empty, cell));
        for method in plain {
            let row = line.find(method, 1);
            table.push_str(&row.map_or_else(empty, |row| rival(row, ours)));
        }
        table.push_str("</tr>\n");
    }
    table.push_str("</tbody>\n</table></div>\n");
    table
}

/// Rows with a file on one side.
pub(super) fn files(rows: &[BenchRow]) -> String {
    let files: Vec<&BenchRow> = rows
        .iter()
        .filter(|row| row.class == CopyClass::File)
        .collect();
    if files.is_empty() {
        return String::new();
    }
    let mut table = "<h2>Files</h2>\n<p>Direct files bypass the page cache and are compared with \
                     <code>fio</code> on a file of the same size, in pieces of 1 MiB, 8 in flight; \
                     the other files are written to the page cache or read from it.</p>\n\
                     <div class=\"scroll\"><table>\n<thead><tr><th></th><th>model</th><th>bytes</th>\
                     <th>GB/s</th><th>fio GB/s</th><th>of fio</th><th>of \
                     memcpy</th></tr></thead>\n<tbody>\n"
        .to_owned();
    for row in files
        .into_iter()
        .filter(|row| row.method == CopyMethod::Kvtile)
    {
        let figure =
            |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |v| format!("{v:.2}"));
        let _ = writeln!(
            table,
            "<tr><th class=\"word\" scope=\"row\">{}</th><td class=\"left\">{}</td><td>{}</td>\
             <td>{:.2}</td><td>{}</td><td>{}</td><td class=\"{}\" title=\"{}\">{:.2}</td></tr>",
            escaped(&row.pair()),
            escaped(&row.model),
            bytes(row.bytes),
            row.gb_per_s,
            figure(row.fio_gb_per_s),
            figure(row.fio_ratio),
            heat::class(row),
            tooltip(row),
            row.ratio
        );
    }
    table.push_str("</tbody>\n</table></div>\n");
    table
}

/// Figures outside the matrix: flat copies on several threads, fixed cost, first touch.
pub(super) fn beside(report: &BenchReport) -> String {
    let mut lines = String::new();
    for row in report
        .rows
        .iter()
        .filter(|row| row.class == CopyClass::Flat)
    {
        let _ = writeln!(
            lines,
            "<tr><td class=\"left\">one flat memcpy of {} on {} threads</td><td>{:.2} GB/s</td>\
             <td>{:.2} of one thread</td></tr>",
            bytes(row.bytes),
            row.threads,
            row.gb_per_s,
            row.ratio
        );
    }
    for row in report
        .rows
        .iter()
        .filter(|row| row.class == CopyClass::FixedCost)
    {
        let (Some(ours), Some(memcpy)) = (row.ns_per_transfer, row.memcpy_ns_per_transfer) else {
            continue;
        };
        let _ = writeln!(
            lines,
            "<tr><td class=\"left\">one block of one layer, {}, from call to completion</td>\
             <td>{ours:.0} ns</td><td>memcpy {memcpy:.0} ns</td></tr>",
            bytes(row.bytes)
        );
    }
    for pool in &report.first_touch {
        let _ = writeln!(
            lines,
            "<tr><td class=\"left\">a pool of {} ready, on {} threads</td><td>{:.2} s</td>\
             <td>the mapping alone {:.2} s; ratio {:.2}</td></tr>",
            bytes(pool.bytes),
            pool.threads,
            pool.seconds,
            pool.populate_seconds,
            pool.ratio
        );
    }
    match lines.is_empty() {
        true => String::new(),
        false => format!(
            "<h2>Beside the matrix</h2>\n<div class=\"scroll\"><table>\n{lines}</table></div>\n"
        ),
    }
}

/// Each once, in the order in which they first appear.
fn unique<'a>(texts: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen: Vec<&str> = Vec::new();
    for text in texts {
        if !seen.contains(&text) {
            seen.push(text);
        }
    }
    seen
}
