//! The chart of the page: bars of the time to first token, and a zoomed view of the loaded prefixes, which are
//! often too short to be seen beside a computed one.

use std::fmt::Write as _;

use kvtile_demo::demonstration::{DemoReport, RequestReport};

use super::lines::time;

/// Pixels above the first request.
const TOP: f64 = 26.0;
/// Height of a bar.
const BAR: f64 = 20.0;
/// Pixels between the bars of a request.
const SPACE: f64 = 4.0;
/// Height of the line with a request's number.
const HEADING: f64 = 20.0;
/// Pixels between requests.
const GAP: f64 = 10.0;
/// Height of the labels of an axis.
const AXIS: f64 = 28.0;
/// Shortest bar, in pixels, so that every part is visible.
const PART_MIN: f64 = 2.0;

/// One way to the first token of an answer.
struct FirstTokenWay {
    name: &'static str,
    /// The source of the prefix, as a class of the style sheet and in words.
    source: (&'static str, &'static str),
    prefix_seconds: f64,
    seconds: f64,
}

/// Where the bars of a panel lie, in pixels of the picture.
#[derive(Clone, Copy)]
struct ChartPanel {
    /// The left edge of the bars.
    left: f64,
    /// The width of the longest bar.
    width: f64,
    top: f64,
    /// Seconds of the longest bar.
    longest: f64,
    /// Ticks of the axis, about.
    ticks: f64,
    rows: PanelRows,
}

/// The rows of a panel.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PanelRows {
    /// All ways of all requests.
    All,
    /// Loaded prefixes, each in the row that it has beside them.
    LoadedInPlace,
    /// Loaded prefixes, one below the other.
    Loaded,
}

impl PanelRows {
    fn has_place_for(self, way: &FirstTokenWay) -> bool {
        self != PanelRows::Loaded || way.is_loaded()
    }
}

impl ChartPanel {
    fn x(&self, seconds: f64) -> f64 {
        self.left + seconds / self.longest * self.width
    }
}

/// The chart: one picture for wide screens, with the zoomed view beside the bars, and one for narrow screens,
/// with the zoomed view below them.
pub(super) fn chart(report: &DemoReport) -> String {
    let requests = report
        .requests
        .each_ref()
        .map(|request| (request.served.number, ways(request)));
    let all = || requests.iter().flat_map(|(_, ways)| ways);
    let longest = all().map(|way| way.seconds).fold(1e-9, f64::max);
    let loaded = all().filter(|way| way.is_loaded());
    let longest_load = loaded.map(|way| way.prefix_seconds).fold(0.0, f64::max);
    let panel = |left, width| ChartPanel {
        left,
        width,
        top: TOP,
        longest,
        ticks: 5.0,
        rows: PanelRows::All,
    };
    let zoomed = |left, width, top, rows| {
        (longest_load > 0.0).then_some(ChartPanel {
            left,
            width,
            top,
            longest: longest_load,
            ticks: 3.0,
            rows,
        })
    };
    let height = TOP + rows_height(&requests, PanelRows::All) + AXIS;
    let beside = zoomed(600.0, 176.0, TOP, PanelRows::LoadedInPlace);
    let wide = picture(
        ("wide", 860.0, height),
        panel(116.0, 380.0),
        beside,
        &requests,
    );
    let below = zoomed(104.0, 252.0, height + TOP, PanelRows::Loaded);
    let more = below.map_or(0.0, |_| {
        TOP + rows_height(&requests, PanelRows::Loaded) + AXIS
    });
    let size = ("narrow", 440.0, height + more);
    wide + &picture(size, panel(104.0, 262.0), below, &requests)
}

/// The height of the rows of a panel.
fn rows_height(requests: &[(usize, Vec<FirstTokenWay>); 3], rows: PanelRows) -> f64 {
    let of = |(_, ways): &(usize, Vec<FirstTokenWay>)| {
        let count = ways.iter().filter(|way| rows.has_place_for(way)).count();
        if count == 0 {
            0.0
        } else {
            HEADING + GAP + count as f64 * (BAR + SPACE)
        }
    };
    requests.iter().map(of).sum()
}

fn picture(
    (class, width, height): (&str, f64, f64),
    panel: ChartPanel,
    zoomed: Option<ChartPanel>,
    requests: &[(usize, Vec<FirstTokenWay>); 3],
) -> String {
    let mut svg = format!(
        "<svg class=\"{class}\" viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"time to first \
         token with and without the cache\">\n"
    );
    bars(&mut svg, &panel, requests);
    if let Some(zoomed) = zoomed {
        bars(&mut svg, &zoomed, requests);
        let times = panel.longest / panel.width * zoomed.width / zoomed.longest;
        // Writing to a string cannot fail.
        let _ = writeln!(
            svg,
            "<text class=\"tick zoom\" x=\"{:.1}\" y=\"{:.1}\">loaded prefixes alone, {times:.0}× larger</text>",
            zoomed.left,
            zoomed.top - 8.0,
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// The axis and the bars of a panel.
fn bars(svg: &mut String, panel: &ChartPanel, requests: &[(usize, Vec<FirstTokenWay>); 3]) {
    axis(svg, panel, panel.top + rows_height(requests, panel.rows));
    let mut y = panel.top;
    for (number, ways) in requests {
        let ways: Vec<_> = ways
            .iter()
            .filter(|way| panel.rows.has_place_for(way))
            .collect();
        if ways.is_empty() {
            continue;
        }
        if panel.rows != PanelRows::LoadedInPlace {
            heading(svg, *number, y);
        }
        y += HEADING;
        for way in ways {
            if panel.rows == PanelRows::All || way.is_loaded() {
                bar(svg, panel, way, y);
            }
            y += BAR + SPACE;
        }
        y += GAP;
    }
}

fn heading(svg: &mut String, number: usize, y: f64) {
    let _ = writeln!(
        svg,
        "<text class=\"label strong\" x=\"16\" y=\"{:.1}\">request {number}</text>",
        y + 14.0,
    );
}

fn axis(svg: &mut String, panel: &ChartPanel, bottom: f64) {
    let step = nice(panel.longest / panel.ticks);
    let mut tick = 0.0;
    while tick <= panel.longest * 1.0001 {
        let x = panel.x(tick);
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{bottom:.1}\"/><text \
             class=\"tick\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            panel.top,
            bottom + 16.0,
            tick_label(tick, step),
        );
        tick += step;
    }
}

fn bar(svg: &mut String, panel: &ChartPanel, way: &FirstTokenWay, y: f64) {
    let (class, words) = way.source;
    let source = match way.is_loaded() {
        true => format!("from {words}"),
        false => words.to_owned(),
    };
    let prefix = way.prefix_seconds;
    let length = (panel.x(prefix) - panel.left).max(PART_MIN);
    let middle = y + 15.0;
    let name = match panel.rows {
        PanelRows::All => way.name,
        PanelRows::Loaded => words,
        PanelRows::LoadedInPlace => "",
    };
    if !name.is_empty() {
        let _ = writeln!(
            svg,
            "<text class=\"tick\" x=\"{:.1}\" y=\"{middle:.1}\" text-anchor=\"end\">{}</text>",
            panel.left - 8.0,
            name,
        );
    }
    let _ = writeln!(
        svg,
        "<rect class=\"{class}\" x=\"{:.1}\" y=\"{y:.1}\" width=\"{length:.1}\" \
         height=\"{BAR}\"><title>prefix {source}: {}</title></rect>",
        panel.left,
        time(prefix),
    );
    let (mut end, mut seconds) = (panel.left + length, prefix);
    if panel.rows == PanelRows::All {
        let rest = way.seconds - prefix;
        let behind = panel.x(rest) - panel.left;
        let _ = writeln!(
            svg,
            "<rect class=\"rest\" x=\"{end:.1}\" y=\"{y:.1}\" width=\"{behind:.1}\" \
             height=\"{BAR}\"><title>rest of the prompt: {}</title></rect>",
            time(rest),
        );
        (end, seconds) = (end + behind, way.seconds);
    }
    let _ = writeln!(
        svg,
        "<text class=\"label\" x=\"{:.1}\" y=\"{middle:.1}\">{}</text>",
        end + 8.0,
        time(seconds),
    );
}

impl FirstTokenWay {
    /// Whether the prefix was loaded and not computed.
    fn is_loaded(&self) -> bool {
        self.source.0 != "computed"
    }
}

/// The ways of a request: without the cache and with it. The first request finds an empty cache and has one
/// way only.
fn ways(request: &RequestReport) -> Vec<FirstTokenWay> {
    let (served, recompute) = (&request.served, &request.recompute);
    let without = FirstTokenWay {
        name: "without",
        source: ("computed", "computed"),
        prefix_seconds: recompute.prefix_seconds,
        seconds: recompute.first_token_seconds,
    };
    let source = match (served.prefix.host.blocks, served.prefix.disk.blocks) {
        (0, 0) => {
            let name = "empty cache";
            return vec![FirstTokenWay { name, ..without }];
        }
        (_, 0) => ("host", "host memory"),
        _ => ("disk", "disk"),
    };
    let with = FirstTokenWay {
        name: "with the cache",
        source,
        prefix_seconds: served.prefix.seconds,
        seconds: served.first_token_seconds,
    };
    vec![without, with]
}

/// The next of 1, 2 and 5 times a power of ten.
fn nice(seconds: f64) -> f64 {
    let power = 10_f64.powf(seconds.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0];
    let step = steps.into_iter().find(|step| step * power >= seconds);
    step.unwrap_or(10.0) * power
}

/// The label of a tick, in the unit of the step.
fn tick_label(seconds: f64, step: f64) -> String {
    match step {
        s if s >= 1.0 => format!("{seconds:.0} s"),
        s if s >= 0.1 => format!("{seconds:.1} s"),
        s if s >= 0.001 => format!("{:.0} ms", seconds * 1e3),
        s if s >= 0.0001 => format!("{:.1} ms", seconds * 1e3),
        _ => format!("{:.0} µs", seconds * 1e6),
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
        assert_eq!(tick_label(0.02, 0.01), "20 ms");
        assert_eq!(tick_label(1.5, 0.5), "1.5 s");
        assert_eq!(tick_label(0.0004, 0.0002), "0.4 ms");
        assert_eq!(tick_label(0.00004, 0.00002), "40 µs");
    }
}
