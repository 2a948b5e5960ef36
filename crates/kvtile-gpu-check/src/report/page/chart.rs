//! A chart of ratios over sizes of runs, as SVG.

use std::fmt::Write as _;

use kvtile_bench::escaped;

use super::size;

const WIDTH: f64 = 520.0;
const HEIGHT: f64 = 250.0;
const LEFT: f64 = 36.0;
const RIGHT: f64 = 112.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 26.0;
/// Ratios above are drawn at the top.
const RATIO_MAX: f64 = 1.1;
/// The least distance of the names at the ends of lines.
const NAME_HEIGHT: f64 = 13.0;

/// A line: its name, and ratios by bytes of a run, in order.
pub(super) struct ChartLine {
    pub(super) name: String,
    /// The number of its colour.
    pub(super) style: usize,
    pub(super) points: Vec<(u64, f64)>,
}

/// The chart of some lines over all their sizes.
pub(super) fn chart(lines: &[ChartLine]) -> String {
    let mut sizes: Vec<u64> = lines
        .iter()
        .flat_map(|line| line.points.iter().map(|(size, _)| *size))
        .collect();
    sizes.sort_unstable();
    sizes.dedup();
    let steps = sizes.len().saturating_sub(1).max(1) as f64;
    let x = |run: u64| {
        let index = sizes.partition_point(|size| *size < run) as f64;
        LEFT + index / steps * (WIDTH - LEFT - RIGHT)
    };
    let y = |ratio: f64| {
        let part = ratio.clamp(0.0, RATIO_MAX) / RATIO_MAX;
        HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)
    };
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" role=\"img\">\n"
    );
    // Writing to a string cannot fail.
    for tick in [0.0, 0.25, 0.5, 0.75, 1.0] {
        let (at, end) = (y(tick), WIDTH - RIGHT);
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{end}\" y2=\"{at:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{tick:.2}</text>",
            LEFT - 5.0,
            at + 4.0
        );
    }
    for (index, run) in sizes.iter().enumerate() {
        // Every second size has room for its name.
        if index % 2 == 0 {
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                x(*run),
                HEIGHT - 8.0,
                size(*run)
            );
        }
    }
    for line in lines {
        let points = line.points.iter();
        let points = points.map(|(run, ratio)| format!("{:.1},{:.1}", x(*run), y(*ratio)));
        let points: Vec<String> = points.collect();
        let style = line.style;
        let _ = writeln!(
            svg,
            "<polyline class=\"line s{style}\" style=\"fill:none\" points=\"{}\"/>",
            points.join(" ")
        );
    }
    let ends = lines.iter().map(|line| line.points.last());
    let ends: Vec<f64> = ends
        .map(|end| end.map_or(0.0, |(_, ratio)| y(*ratio)))
        .collect();
    for (line, at) in lines.iter().zip(apart(&ends)) {
        let _ = writeln!(
            svg,
            "<text class=\"s{}\" style=\"stroke:none\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            line.style,
            WIDTH - RIGHT + 6.0,
            at + 4.0,
            escaped(&line.name)
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// The heights, moved as little as names need that stand one below the other, inside the chart.
fn apart(heights: &[f64]) -> Vec<f64> {
    let mut order: Vec<(usize, f64)> = heights.iter().copied().enumerate().collect();
    order.sort_by(|a, b| a.1.total_cmp(&b.1));
    let mut next = TOP;
    for (_, height) in &mut order {
        *height = height.max(next);
        next = *height + NAME_HEIGHT;
    }
    let mut last = HEIGHT - BOTTOM;
    for (_, height) in order.iter_mut().rev() {
        *height = height.min(last);
        last = *height - NAME_HEIGHT;
    }
    order.sort_by_key(|(index, _)| *index);
    order.into_iter().map(|(_, height)| height).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_overlap_and_keep_their_lines() {
        let moved = apart(&[50.0, 51.0, 120.0, 500.0, 499.0]);
        let mut sorted = moved.clone();
        sorted.sort_by(f64::total_cmp);
        for (a, b) in sorted.iter().zip(sorted.iter().skip(1)) {
            assert!(b - a >= NAME_HEIGHT - 1e-9, "{moved:?}");
        }
        assert_eq!(moved[0], 50.0);
        assert_eq!(moved[2], 120.0);
        assert!(moved.iter().all(|height| *height <= HEIGHT - BOTTOM));
    }
}
