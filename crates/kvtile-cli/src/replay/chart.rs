//! Curves of hit ratios over capacities, as SVG.

use std::fmt::Write as _;

use super::report::Report;
use crate::output::thousands;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 120.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 44.0;

/// Where values lie in the picture: capacities by their logarithm, ratios from 0 on.
struct Scale {
    first: f64,
    last: f64,
    top: f64,
}

impl Scale {
    fn x(&self, capacity: u32) -> f64 {
        let octaves = (self.last / self.first).log2();
        let part = match octaves > 0.0 {
            true => (f64::from(capacity) / self.first).log2() / octaves,
            false => 0.5,
        };
        LEFT + part * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, ratio: f64) -> f64 {
        HEIGHT - BOTTOM - ratio / self.top * (HEIGHT - TOP - BOTTOM)
    }
}

/// The curves of all policies and bounds.
pub(super) fn curves(report: &Report) -> String {
    let capacities = report.capacities();
    let (Some(&first), Some(&last)) = (capacities.first(), capacities.last()) else {
        return String::new();
    };
    let ratios = report.runs.iter().chain(&report.bounds);
    let highest = ratios.map(|run| run.block_hit_ratio).fold(0.01, f64::max);
    let step = [0.01, 0.02, 0.05, 0.1, 0.2]
        .into_iter()
        .find(|step| highest / step <= 8.0)
        .unwrap_or(0.2);
    let scale = Scale {
        first: f64::from(first),
        last: f64::from(last),
        top: (highest / step).ceil() * step,
    };
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
         aria-label=\"block hits over capacity\">\n"
    );
    axes(&mut svg, &scale, &capacities, step);
    // Names that would lie over each other are moved apart.
    let mut labels: Vec<(f64, usize, &str)> = Vec::new();
    for (number, name) in report.names().into_iter().enumerate() {
        let points: Vec<(u32, f64)> = capacities
            .iter()
            .filter_map(|&blocks| Some((blocks, report.run(name, blocks)?.block_hit_ratio)))
            .collect();
        let path: Vec<String> = points
            .iter()
            .map(|&(blocks, ratio)| format!("{:.1},{:.1}", scale.x(blocks), scale.y(ratio)))
            .collect();
        // Writing to a string cannot fail.
        let _ = writeln!(
            svg,
            "<polyline class=\"curve c{number}\" points=\"{}\"/>",
            path.join(" ")
        );
        for (blocks, ratio) in &points {
            let _ = writeln!(
                svg,
                "<circle class=\"dot c{number}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\"><title>{name}, {} \
                 blocks: {:.2} %</title></circle>",
                scale.x(*blocks),
                scale.y(*ratio),
                thousands(u64::from(*blocks)),
                ratio * 100.0,
            );
        }
        if let Some((_, ratio)) = points.last() {
            labels.push((scale.y(*ratio), number, name));
        }
    }
    labels.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut lowest = TOP - 15.0;
    for (y, number, name) in labels {
        lowest = f64::max(lowest + 15.0, y);
        let (x, y) = (WIDTH - RIGHT + 10.0, lowest + 4.0);
        let _ = writeln!(
            svg,
            "<text class=\"name c{number}\" x=\"{x}\" y=\"{y:.1}\">{name}</text>"
        );
    }
    svg.push_str("</svg>\n");
    svg
}

fn axes(svg: &mut String, scale: &Scale, capacities: &[u32], step: f64) {
    let mut ratio = 0.0;
    while ratio <= scale.top + step * 0.5 {
        let y = scale.y(ratio);
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/><text \
             class=\"tick\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{:.0} %</text>",
            WIDTH - RIGHT,
            LEFT - 8.0,
            y + 4.0,
            ratio * 100.0,
        );
        ratio += step;
    }
    for &blocks in capacities {
        let x = scale.x(blocks);
        let _ = writeln!(
            svg,
            "<text class=\"tick\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            HEIGHT - BOTTOM + 18.0,
            thousands(u64::from(blocks)),
        );
    }
    let _ = writeln!(
        svg,
        "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">capacity in blocks \
         (logarithmic)</text>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 6.0,
    );
}
