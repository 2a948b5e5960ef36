//! The sweep: a chart for each direction, and a table for each number of runs.

use std::fmt::Write as _;

use super::{
    chart::{ChartLine, chart},
    note, shaded, size,
};
use crate::{
    figures::{CheckFigure, CopyDirection, MeasuredRoute},
    phase::CheckPhase,
    report::GpuCheckReport,
};

const WAYS: [CopyDirection; 2] = [CopyDirection::HostToDevice, CopyDirection::DeviceToHost];

type RouteLine = (MeasuredRoute, Option<u32>);

fn cells(report: &GpuCheckReport, way: CopyDirection) -> impl Iterator<Item = &CheckFigure> {
    report
        .figures
        .iter()
        .filter(move |figure| figure.phase == CheckPhase::Sweep && figure.direction == Some(way))
}

fn line_of(figure: &CheckFigure) -> Option<RouteLine> {
    Some((figure.route?, figure.blocks))
}

fn name((route, blocks): RouteLine) -> String {
    match blocks {
        Some(1) => format!("{}, 1 block", route.name()),
        Some(blocks) => format!("{}, {blocks} blocks", route.name()),
        None => route.name().to_owned(),
    }
}

/// The whole section; nothing without figures.
pub(super) fn section(report: &GpuCheckReport) -> String {
    let (mut charts, mut grids) = (String::new(), String::new());
    for way in WAYS {
        let mut pieces: Vec<u64> = cells(report, way).filter_map(|cell| cell.pieces).collect();
        pieces.sort_unstable();
        pieces.dedup();
        // The number of runs with the most sizes is drawn.
        let sizes = |count: u64| {
            cells(report, way)
                .filter(|cell| cell.pieces == Some(count))
                .count()
        };
        let drawn = pieces.iter().copied().max_by_key(|count| sizes(*count));
        if let Some(count) = drawn {
            let _ = writeln!(
                charts,
                "<figure><figcaption>{}: {count} runs, ratio to the ceiling by bytes of a run</figcaption>{}</figure>",
                way.name(),
                chart(&lines(report, way, count))
            );
        }
        for count in pieces.into_iter().rev() {
            grids.push_str(&grid(report, way, count));
        }
    }
    if grids.is_empty() {
        return grids;
    }
    format!(
        "<h2>Runs between dense blocks of the host and scattered ones of the device</h2>\n<p>Each number is a rate \
         divided by the ceiling of the same run; hold the pointer over a cell for GB/s, time and spread.</p>\n\
         <div class=\"charts\">{charts}</div>\n{grids}"
    )
}

/// The lines of the chart: kernels with four blocks alone.
fn lines(report: &GpuCheckReport, way: CopyDirection, pieces: u64) -> Vec<ChartLine> {
    let mut known: Vec<RouteLine> = cells(report, way).filter_map(line_of).collect();
    known.sort_unstable();
    known.dedup();
    known.retain(|(_, blocks)| blocks.is_none_or(|blocks| blocks == 4));
    let line = |wanted: RouteLine| {
        let of_line = cells(report, way)
            .filter(|cell| cell.pieces == Some(pieces) && line_of(cell) == Some(wanted));
        let mut points: Vec<(u64, f64)> = of_line
            .filter_map(|cell| Some((cell.run_bytes?, cell.ratio?)))
            .collect();
        points.sort_by_key(|(run, _)| *run);
        ChartLine {
            name: name(wanted),
            style: style(wanted.0),
            points,
        }
    };
    known.into_iter().map(line).collect()
}

/// A colour for each route, the same in all charts.
fn style(route: MeasuredRoute) -> usize {
    match route {
        MeasuredRoute::Loop => 0,
        MeasuredRoute::Batch => 1,
        MeasuredRoute::BatchAny => 2,
        MeasuredRoute::Staged => 3,
        MeasuredRoute::Copy | MeasuredRoute::Kernel => 4,
    }
}

/// Ratios by route and size of runs.
fn grid(report: &GpuCheckReport, way: CopyDirection, pieces: u64) -> String {
    let of_grid = || cells(report, way).filter(move |cell| cell.pieces == Some(pieces));
    let mut runs: Vec<u64> = of_grid().filter_map(|cell| cell.run_bytes).collect();
    runs.sort_unstable();
    runs.dedup();
    let mut known: Vec<RouteLine> = of_grid().filter_map(line_of).collect();
    known.sort_unstable();
    known.dedup();
    let mut table = format!(
        "<h3>{}, {pieces} runs</h3>\n<div class=\"scroll\"><table>\n<thead><tr><th></th>",
        way.name()
    );
    for run in &runs {
        let _ = write!(table, "<th>{}</th>", size(*run));
    }
    table.push_str("</tr></thead>\n<tbody>\n");
    for wanted in known {
        let _ = write!(table, "<tr><th class=\"word\">{}</th>", name(wanted));
        for run in &runs {
            let mut found = of_grid();
            let found =
                found.find(|cell| cell.run_bytes == Some(*run) && line_of(cell) == Some(wanted));
            let ratio = found.and_then(|cell| cell.ratio);
            table.push_str(&shaded(ratio, &found.map_or_else(String::new, note)));
        }
        table.push_str("</tr>\n");
    }
    table.push_str("</tbody></table></div>\n");
    table
}
