//! A report as text for a terminal: class by class, with the goal of each.

use std::fmt::Write as _;

use crate::{
    class::CopyClass,
    contender::CopyMethod,
    lines::{CellLine, bytes, runs, size},
    report::BenchReport,
    row::BenchRow,
};

/// Above this number of lines, a class shows only those that miss a goal.
const LINES_MAX: usize = 60;

/// Marks `text` as important, for instance with a colour.
pub type Emphasis = fn(&str) -> String;

impl BenchReport {
    /// Tables of all classes. `emphasis` marks ratios that miss a goal.
    #[must_use]
    pub fn text(&self, emphasis: Emphasis) -> String {
        let mut text = String::new();
        let classes = [
            CopyClass::Contiguous,
            CopyClass::Rows,
            CopyClass::Pieces,
            CopyClass::ShortRows,
            CopyClass::Elements,
            CopyClass::File,
            CopyClass::FixedCost,
            CopyClass::Flat,
        ];
        for class in classes {
            let rows: Vec<&BenchRow> = self.rows.iter().filter(|row| row.class == class).collect();
            if !rows.is_empty() {
                text.push_str(&of_class(class, &rows, emphasis));
                text.push('\n');
            }
        }
        for pool in &self.first_touch {
            let _ = writeln!(
                text,
                "first touch\n  a pool of {} on {} threads: {:.2} s; the mapping alone {:.2} s; \
                 ratio {:.2}\n",
                bytes(pool.bytes),
                pool.threads,
                pool.seconds,
                pool.populate_seconds,
                pool.ratio
            );
        }
        for line in &self.left_out {
            let _ = writeln!(text, "left out: {line}");
        }
        let _ = writeln!(
            text,
            "Ratios to one flat memcpy of the same bytes on one thread, in turns with it; medians \
             of the rounds;\nblocks in {} order. Checked: {}.\n{}, {} cores, {}; kvtile {}; {} s.",
            self.how.order,
            self.how.checked,
            self.machine.cpu,
            self.machine.cores,
            self.machine.date,
            self.machine.kvtile,
            self.how.seconds,
        );
        text
    }
}

fn of_class(class: CopyClass, rows: &[&BenchRow], emphasis: Emphasis) -> String {
    let lines = CellLine::of(rows.iter().copied());
    let mut columns: Vec<(CopyMethod, u32)> =
        rows.iter().map(|row| (row.method, row.threads)).collect();
    columns.sort_unstable();
    columns.dedup();
    let missing = lines.iter().filter(|line| line.misses()).count();
    let with_goal = lines.iter().filter(|line| {
        let mut rows = line.rows.iter();
        rows.any(|row| row.method == CopyMethod::Kvtile && row.goal.is_some())
    });
    let mut text = class.title().to_owned();
    let goals = goals(rows);
    if !goals.is_empty() {
        let _ = write!(text, "; goal {goals}");
    }
    match (with_goal.count(), missing) {
        (0, _) => {}
        (_, 0) => text.push_str("; all reach it"),
        (all, missing) => {
            let _ = write!(text, "; {missing} of {all} miss it");
        }
    }
    let shown: Vec<&CellLine<'_>> = match lines.len() {
        0..=LINES_MAX => lines.iter().collect(),
        _ => lines.iter().filter(|line| line.misses()).collect(),
    };
    if shown.len() < lines.len() {
        let _ = write!(
            text,
            " ({} that reach it are hidden)",
            lines.len() - shown.len()
        );
    }
    text.push('\n');
    let head = ["", "model", "bytes", "run", "memcpy GB/s"].map(str::to_owned);
    let methods = columns.iter().map(|&(method, threads)| match threads {
        1 => method.name().to_owned(),
        n => format!("{} ×{n}", method.name()),
    });
    let mut table = vec![head.into_iter().chain(methods).collect::<Vec<String>>()];
    table.extend(shown.iter().filter_map(|line| cells(line, &columns)));
    text.push_str(&aligned(&table, emphasis));
    text
}

/// `0.95, in cache 0.90, on 2 threads 1.80`.
fn goals(rows: &[&BenchRow]) -> String {
    let mut goals: Vec<String> = Vec::new();
    for row in rows.iter().filter(|row| row.method == CopyMethod::Kvtile) {
        let Some(goal) = row.goal else { continue };
        let of = match (row.class, row.threads, size(row).as_str()) {
            (CopyClass::File, ..) => "of fio ".to_owned(),
            (_, 1, "in cache") => "in cache ".to_owned(),
            (_, 1, _) => String::new(),
            (_, n, _) => format!("on {n} threads "),
        };
        let goal = format!("{of}{goal:.2}");
        if !goals.contains(&goal) {
            goals.push(goal);
        }
    }
    goals.sort();
    goals.join(", ")
}

fn cells(line: &CellLine<'_>, columns: &[(CopyMethod, u32)]) -> Option<Vec<String>> {
    let first = line.rows.first()?;
    let mut cells = vec![
        first.pair(),
        first.model.clone(),
        size(first),
        runs(first),
        format!("{:.2}", first.memcpy_gb_per_s),
    ];
    cells.extend(
        columns
            .iter()
            .map(|&(method, threads)| line.find(method, threads).map_or_else(String::new, figure)),
    );
    Some(cells)
}

/// The ratio, with further figures of the class, and `!` where a goal is missed.
fn figure(row: &BenchRow) -> String {
    let mark = if row.misses() { "!" } else { "" };
    match (
        row.ns_per_transfer,
        row.memcpy_ns_per_transfer,
        row.fio_ratio,
    ) {
        (Some(ours), Some(memcpy), _) => format!("{ours:.0} ns, memcpy {memcpy:.0} ns{mark}"),
        (_, _, Some(fio)) => format!("{:.2}, of fio {fio:.2}{mark}", row.ratio),
        _ => format!("{:.2}{mark}", row.ratio),
    }
}

/// Pads columns to their widest cell: the first two are left-aligned, the rest right-aligned.
fn aligned(table: &[Vec<String>], emphasis: Emphasis) -> String {
    let columns = table.first().map_or(0, Vec::len);
    let width = |column: usize| {
        let cells = table.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in table {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let padding = " ".repeat(width - cell.chars().count());
            let shown = match cell.strip_suffix('!') {
                Some(_) => emphasis(cell),
                None => cell.clone(),
            };
            line.push_str("  ");
            match column {
                0 | 1 => line.extend([shown, padding]),
                _ => line.extend([padding, shown]),
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}
