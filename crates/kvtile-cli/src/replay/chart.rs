//! Curves of hit ratios over capacities, as SVG. The axes come from the data: capacities are logarithmic
//! where they span a decade, and the ratios start at 0 only where the lowest of them is near it.

use std::fmt::Write as _;

use super::report::ReplayReport;
use crate::output::thousands;

/// Pixels from one row of text to the next.
const TEXT_ROW: f64 = 15.0;

/// Parts of the ratio axis, at most.
const PARTS_MAX: f64 = 8.0;

/// The size of a picture and the margins around its curves, in pixels.
#[derive(Clone, Copy)]
struct ChartFrame {
    class: &'static str,
    width: f64,
    height: f64,
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

/// The picture for wide screens.
const WIDE: ChartFrame = ChartFrame {
    class: "wide",
    width: 860.0,
    height: 420.0,
    left: 60.0,
    right: 84.0,
    top: 16.0,
    bottom: 46.0,
};

/// The picture for screens as narrow as a telephone's.
const NARROW: ChartFrame = ChartFrame {
    class: "narrow",
    width: 440.0,
    height: 380.0,
    left: 52.0,
    right: 68.0,
    ..WIDE
};

/// Where values lie in a picture.
struct ChartScale {
    frame: ChartFrame,
    /// The smallest and the largest capacity.
    first: f64,
    last: f64,
    logarithmic: bool,
    /// The ratios at the bottom and at the top, and from one line of the grid to the next.
    low: f64,
    high: f64,
    step: f64,
}

impl ChartScale {
    fn new(frame: ChartFrame, capacities: &[u32], ratios: &[f64]) -> Option<ChartScale> {
        let (first, last) = (
            f64::from(*capacities.first()?),
            f64::from(*capacities.last()?),
        );
        let lowest = ratios.iter().copied().fold(1.0, f64::min);
        let highest = ratios.iter().copied().fold(0.001, f64::max);
        // Above half of the highest ratio, an axis from 0 on would press the curves together.
        let from = if lowest > highest / 2.0 { lowest } else { 0.0 };
        let steps = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2];
        let fits = |step: &f64| (highest - from) / step <= PARTS_MAX;
        let step = steps.into_iter().find(fits).unwrap_or(0.2);
        // Steps of a thousandth are not exact: a ratio on a line of the grid must not miss it.
        let low = (from / step + 1e-6).floor() * step;
        let high = (highest / step - 1e-6).ceil() * step;
        Some(ChartScale {
            frame,
            first,
            last,
            logarithmic: last / first >= 10.0,
            low,
            high: high.max(low + step),
            step,
        })
    }

    fn x(&self, capacity: u32) -> f64 {
        let along = |value: f64| {
            if self.logarithmic {
                value.log2()
            } else {
                value
            }
        };
        let (first, last) = (along(self.first), along(self.last));
        let part = match last > first {
            true => (along(f64::from(capacity)) - first) / (last - first),
            false => 0.5,
        };
        let ChartFrame {
            width, left, right, ..
        } = self.frame;
        left + part * (width - left - right)
    }

    fn y(&self, ratio: f64) -> f64 {
        let ChartFrame {
            height,
            top,
            bottom,
            ..
        } = self.frame;
        let part = (ratio - self.low) / (self.high - self.low);
        height - bottom - part * (height - top - bottom)
    }
}

/// The curves of all policies and bounds: one picture for wide screens and one for narrow ones.
pub(super) fn curves(report: &ReplayReport) -> String {
    [WIDE, NARROW].map(|frame| picture(report, frame)).concat()
}

fn picture(report: &ReplayReport, frame: ChartFrame) -> String {
    let capacities = report.capacities();
    let rows = report.runs.iter().chain(&report.bounds);
    let ratios: Vec<f64> = rows.map(|run| run.block_hit_ratio).collect();
    let Some(scale) = ChartScale::new(frame, &capacities, &ratios) else {
        return String::new();
    };
    let (class, width, height) = (frame.class, frame.width, frame.height);
    let mut svg = format!(
        "<svg class=\"{class}\" viewBox=\"0 0 {width} {height}\" role=\"img\" \
         aria-label=\"block hits over capacity\">\n"
    );
    axes(&mut svg, &scale, &capacities);
    let mut labels = Vec::new();
    for (number, name) in report.names().into_iter().enumerate() {
        let of = |&blocks: &u32| Some((blocks, report.run(name, blocks)?.block_hit_ratio));
        let points: Vec<(u32, f64)> = capacities.iter().filter_map(of).collect();
        curve(&mut svg, &scale, (number, name), &points);
        if let Some((_, ratio)) = points.last() {
            let sum: f64 = points.iter().map(|(_, ratio)| ratio).sum();
            labels.push((scale.y(*ratio), sum, number, name));
        }
    }
    // Names are in the order in which their curves end, and of those that end together in the order of
    // their hits. They keep a row of text apart.
    labels.sort_by(|a, b| a.0.total_cmp(&b.0).then(b.1.total_cmp(&a.1)));
    let mut lowest = frame.top - TEXT_ROW;
    for (y, _, number, name) in labels {
        lowest = f64::max(lowest + TEXT_ROW, y);
        let (x, y) = (frame.width - frame.right + 10.0, lowest + 4.0);
        // Writing to a string cannot fail.
        let _ = writeln!(
            svg,
            "<text class=\"name c{number}\" x=\"{x}\" y=\"{y:.1}\">{name}</text>"
        );
    }
    svg.push_str("</svg>\n");
    svg
}

fn curve(
    svg: &mut String,
    scale: &ChartScale,
    (number, name): (usize, &str),
    points: &[(u32, f64)],
) {
    let place =
        |&(blocks, ratio): &(u32, f64)| format!("{:.1},{:.1}", scale.x(blocks), scale.y(ratio));
    let path: Vec<String> = points.iter().map(place).collect();
    let _ = writeln!(
        svg,
        "<polyline class=\"curve c{number}\" points=\"{}\"/>",
        path.join(" ")
    );
    for (blocks, ratio) in points {
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
}

fn axes(svg: &mut String, scale: &ChartScale, capacities: &[u32]) {
    let ChartFrame {
        width,
        height,
        left,
        right,
        bottom,
        ..
    } = scale.frame;
    let decimals = usize::from(scale.step < 0.01);
    let mut ratio = scale.low;
    while ratio <= scale.high + scale.step * 0.5 {
        let y = scale.y(ratio);
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{left}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/><text \
             class=\"tick\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{:.decimals$} %</text>",
            width - right,
            left - 8.0,
            y + 4.0,
            ratio * 100.0,
        );
        ratio += scale.step;
    }
    for blocks in ticks(scale, capacities) {
        let x = scale.x(blocks);
        let _ = writeln!(
            svg,
            "<text class=\"tick\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            height - bottom + 18.0,
            thousands(u64::from(blocks)),
        );
    }
    let kind = if scale.logarithmic {
        " (logarithmic)"
    } else {
        ""
    };
    let _ = writeln!(
        svg,
        "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">capacity in \
         blocks{kind}</text>",
        (left + width - right) / 2.0,
        height - 8.0,
    );
}

/// The capacities whose labels do not overlap, from the largest down.
fn ticks(scale: &ChartScale, capacities: &[u32]) -> Vec<u32> {
    let mut free = f64::INFINITY;
    let mut ticks = Vec::new();
    for &blocks in capacities.iter().rev() {
        let half = 4.0 * thousands(u64::from(blocks)).len() as f64;
        let x = scale.x(blocks);
        if x + half <= free {
            ticks.push(blocks);
            free = x - half - 6.0;
        }
    }
    ticks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scale(capacities: &[u32], ratios: &[f64]) -> ChartScale {
        ChartScale::new(WIDE, capacities, ratios).unwrap()
    }

    #[test]
    fn capacities_are_logarithmic_where_they_span_a_decade() {
        let decade = scale(&[100, 1_000, 10_000], &[0.1]);
        assert!(decade.logarithmic);
        let middle = (decade.x(100) + decade.x(10_000)) / 2.0;
        assert!((decade.x(1_000) - middle).abs() < 1e-9);
        let near = scale(&[200, 400, 600], &[0.1]);
        assert!(!near.logarithmic);
        assert!((near.x(400) - (near.x(200) + near.x(600)) / 2.0).abs() < 1e-9);
        // One capacity lies in the middle.
        let one = scale(&[7], &[0.1]);
        assert!((one.x(7) - (WIDE.left + WIDE.width - WIDE.right) / 2.0).abs() < 1e-9);
    }

    #[test]
    fn the_ratio_axis_begins_near_the_lowest_ratio_where_all_are_high() {
        let far = scale(&[1, 2], &[0.08, 0.33]);
        assert!(
            far.low == 0.0 && (far.high - 0.35).abs() < 1e-9,
            "{}",
            far.high
        );
        let near = scale(&[1, 2], &[0.402, 0.459]);
        assert!((near.low - 0.40).abs() < 1e-9 && (near.high - 0.46).abs() < 1e-9);
        assert!((near.step - 0.01).abs() < 1e-9);
        for ratios in [
            &[0.0, 0.0][..],
            &[1.0, 1.0],
            &[0.5, 0.5],
            &[0.6, 0.6],
            &[0.0, 1.0],
        ] {
            let scale = scale(&[1, 2], ratios);
            assert!(scale.high > scale.low, "{ratios:?}");
            for &ratio in ratios {
                let y = scale.y(ratio);
                let inside = WIDE.top - 1e-6..=WIDE.height - WIDE.bottom + 1e-6;
                assert!(inside.contains(&y), "{ratios:?}: {y}");
            }
        }
    }

    #[test]
    fn labels_of_capacities_do_not_overlap() {
        let capacities = [900, 950, 1_000, 2_000, 50_000, 52_000];
        let scale = ChartScale::new(NARROW, &capacities, &[0.2]).unwrap();
        let ticks = ticks(&scale, &capacities);
        assert_eq!(ticks, [52_000, 2_000, 1_000]);
    }
}
