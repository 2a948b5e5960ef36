//! A report as one self-contained HTML page, without scripts.

mod goals;
mod heat;
mod tables;

use std::fmt::Write as _;

use crate::{
    class::CopyClass,
    contender::CopyMethod,
    lines::bytes,
    report::BenchReport,
    row::{BenchRow, SideMemory},
};

/// The style of pages with tables of ratios.
pub const BENCH_STYLE: &str = include_str!("style.css");

impl BenchReport {
    /// The page.
    #[must_use]
    pub fn html(&self) -> String {
        let mut page = String::new();
        // Writing to a string cannot fail.
        let _ = write!(
            page,
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <title>kvtile: copies between layouts</title>\n<style>\n{BENCH_STYLE}</style>\n</head>\n\
             <body>\n<h1>Copies between KV cache layouts, against <code>memcpy</code></h1>\n"
        );
        page.push_str(&self.introduction());
        page.push_str(&self.tiles());
        let matrix: Vec<&BenchRow> = self.rows.iter().filter(|row| in_matrix(row)).collect();
        if !matrix.is_empty() {
            page.push_str(
                "<h2>The matrix</h2>\n<p>Each number is kvtile's speed divided by the speed of one flat \
                 <code>memcpy</code> of the same bytes on one thread: 1.00 is as fast. A run is a stretch \
                 that is contiguous on both sides; the shorter the runs, the more work a copy is. Hold the \
                 pointer over a cell for GB/s and runs.</p>\n",
            );
            page.push_str(&heat::legend());
            page.push_str(&tables::matrix(&matrix));
        }
        page.push_str(&tables::compared(&self.rows));
        page.push_str(&tables::files(&self.rows));
        page.push_str(&tables::beside(self));
        page.push_str(&goals::section(self));
        page.push_str("</body>\n</html>\n");
        page
    }

    fn introduction(&self) -> String {
        let machine = &self.machine;
        let caches = machine.caches.map_or_else(String::new, |caches| {
            format!(
                "L1 {}, L2 {}, last level {}",
                bytes(caches.level1_bytes),
                bytes(caches.level2_bytes),
                bytes(caches.last_level_bytes)
            )
        });
        let virtual_machine = match machine.virtual_machine {
            true => ", virtual machine",
            false => "",
        };
        let facts = [
            (
                "processor",
                format!("{}, {} cores{virtual_machine}", machine.cpu, machine.cores),
            ),
            ("vector units", machine.vector_units.join(", ")),
            ("caches", caches),
            (
                "memory",
                format!(
                    "{}, pages of {}, huge pages of {}",
                    bytes(machine.memory_bytes),
                    bytes(machine.page_bytes),
                    machine.huge_pages
                ),
            ),
            ("kernel", machine.kernel.clone()),
            (
                "run",
                format!(
                    "kvtile {}, {}, {} s{}",
                    machine.kvtile,
                    machine.date,
                    self.how.seconds,
                    if self.how.quick { ", quick" } else { "" }
                ),
            ),
            (
                "blocks",
                format!("in {} order, seed {}", self.how.order, self.how.seed),
            ),
            ("checked", self.how.checked.clone()),
            ("left out", self.left_out.join("; ")),
        ];
        let mut list = "<dl class=\"facts\">\n".to_owned();
        for (name, fact) in facts.iter().filter(|(_, fact)| !fact.is_empty()) {
            let _ = writeln!(list, "<dt>{name}</dt><dd>{}</dd>", escaped(fact));
        }
        list.push_str("</dl>\n");
        list
    }

    /// Class by class: the median ratio to `memcpy` on one thread, and the slowest copy.
    fn tiles(&self) -> String {
        let mut tiles = "<div class=\"tiles\">\n".to_owned();
        for class in [
            CopyClass::Contiguous,
            CopyClass::Rows,
            CopyClass::Pieces,
            CopyClass::ShortRows,
            CopyClass::Elements,
        ] {
            let rows = self.rows.iter().filter(|row| row.class == class);
            let rows = rows.filter(|row| in_matrix(row) && row.threads == 1);
            let mut rows: Vec<&BenchRow> = rows.collect();
            rows.sort_by(|a, b| a.ratio.total_cmp(&b.ratio));
            let (Some(slowest), Some(median)) = (rows.first(), rows.get(rows.len() / 2)) else {
                continue;
            };
            let _ = writeln!(
                tiles,
                "<div class=\"tile\"><b>{:.2} × memcpy</b>{}<span>median of {} copies on one thread; \
                 slowest {:.2}: {}, {}</span></div>",
                median.ratio,
                class.title(),
                rows.len(),
                slowest.ratio,
                escaped(&slowest.pair()),
                escaped(&slowest.model),
            );
        }
        tiles.push_str("</div>\n");
        tiles
    }
}

/// Whether a row is a cell of the heat map.
fn in_matrix(row: &BenchRow) -> bool {
    let memory = |place| matches!(place, SideMemory::Memory | SideMemory::Cache);
    row.method == CopyMethod::Kvtile
        && memory(row.source_place)
        && memory(row.destination_place)
        && row.class != CopyClass::FixedCost
}

/// All figures of a row, as a tooltip.
fn tooltip(row: &BenchRow) -> String {
    escaped(&format!(
        "{}\n{}, {} on {} thread{}\n{:.2} GB/s, memcpy {:.2} GB/s, ratio {:.3}\n{}\nruns of {}, {} \
         of them; {} blocks, {} layers\n{} rounds, spread {:.0} %",
        row.pair(),
        row.model,
        row.method.name(),
        row.threads,
        if row.threads == 1 { "" } else { "s" },
        row.gb_per_s,
        row.memcpy_gb_per_s,
        row.ratio,
        row.class.title(),
        crate::lines::runs(row),
        row.runs,
        row.blocks,
        row.layers,
        row.rounds,
        row.spread * 100.0,
    ))
}

/// Text with the characters of markup escaped.
#[must_use]
pub fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\n' => safe.push_str("&#10;"),
            other => safe.push(other),
        }
    }
    safe
}
