//! Colours of drawings. Light ones are attributes of the shapes, so that programs without style sheets show
//! them; dark ones are rules of a style sheet for readers that prefer dark pages.

use std::fmt::Write as _;

/// The colours of a plane: the fill of an open cell, the fill of a closed cell, and the stroke.
#[derive(Clone, Copy, Debug)]
pub(super) struct PlaneColours {
    pub(super) open: &'static str,
    pub(super) closed: &'static str,
    pub(super) stroke: &'static str,
}

const fn plane(open: &'static str, closed: &'static str, stroke: &'static str) -> PlaneColours {
    PlaneColours {
        open,
        closed,
        stroke,
    }
}

const PLANES: [PlaneColours; 6] = [
    plane("#cfe3f7", "#e9f2fb", "#2b6cb0"),
    plane("#fde0c2", "#fef1e3", "#c05621"),
    plane("#cdebd3", "#e8f6eb", "#2f855a"),
    plane("#e3d7f5", "#f2ecfb", "#6b46c1"),
    plane("#c9ecec", "#e6f7f7", "#2c7a7b"),
    plane("#f8d3d3", "#fceaea", "#c53030"),
];

const PLANES_DARK: [PlaneColours; 6] = [
    plane("#1d3d5c", "#17293b", "#8cc0f0"),
    plane("#5a3316", "#382416", "#f2ac74"),
    plane("#1f4a31", "#183224", "#86d3a3"),
    plane("#40305f", "#2a2240", "#c3a8ef"),
    plane("#174a4b", "#15302f", "#7ed0d2"),
    plane("#5a2626", "#381d1d", "#f29a9a"),
];

/// The colours of cells that hold several planes.
const MIXED: PlaneColours = plane("#e2e6ea", "#f1f3f5", "#4a5568");
const MIXED_DARK: PlaneColours = plane("#343b44", "#262c33", "#c0c8d0");

/// Colours of runs, one after the other.
const RUNS: [&str; 8] = [
    "#2b6cb0", "#c05621", "#2f855a", "#6b46c1", "#2c7a7b", "#c53030", "#97730b", "#b83280",
];

const RUNS_DARK: [&str; 8] = [
    "#6cb0ee", "#f2ac74", "#7fd09c", "#b99df0", "#6fc9cb", "#f28b8b", "#d9b64f", "#ef8fc6",
];

/// The background of a page and of cells that are left out.
pub(super) const PAGE: &str = "#ffffff";

/// The colours and the class of a plane, or of several planes.
pub(super) fn of_plane(plane: Option<usize>) -> (PlaneColours, String) {
    let index = plane.map(|plane| plane % PLANES.len());
    let colours = index.and_then(|index| PLANES.get(index)).copied();
    let class = index.map_or_else(|| "mixed".to_owned(), |index| format!("p{index}"));
    (colours.unwrap_or(MIXED), class)
}

/// The colour and the class of a run.
pub(super) fn of_run(run: usize) -> (&'static str, String) {
    let index = run % RUNS.len();
    let colour = RUNS.get(index).copied().unwrap_or(MIXED.stroke);
    (colour, format!("r{index}"))
}

/// The rules of dark drawings.
pub(super) fn dark_rules() -> String {
    let mut rules = "@media (prefers-color-scheme: dark) {\n\
                     svg { background: #14171b; } .page, rect.elided { fill: #14171b; }\n\
                     .title { fill: #e4e8ec; } .note { fill: #98a2ae; }\n"
        .to_owned();
    let planes = PLANES_DARK.iter().enumerate();
    let planes = planes.map(|(index, colours)| (format!("p{index}"), colours));
    for (class, colours) in planes.chain([("mixed".to_owned(), &MIXED_DARK)]) {
        let PlaneColours {
            open,
            closed,
            stroke,
        } = colours;
        // Writing to a string cannot fail.
        let _ = writeln!(
            rules,
            "rect.{class} {{ stroke: {stroke}; }} rect.{class}.open {{ fill: {open}; }} \
             rect.{class}.closed {{ fill: {closed}; }} rect.{class}.needed {{ fill: {stroke}; }} text.{class} {{ fill: {stroke}; }}"
        );
    }
    for (index, colour) in RUNS_DARK.iter().enumerate() {
        let _ = writeln!(
            rules,
            "rect.r{index}, text.r{index} {{ fill: {colour}; }} rect.r{index}, path.r{index} {{ \
             stroke: {colour}; }}"
        );
    }
    rules.push_str("}\n");
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Relative luminance of WCAG 2.
    fn luminance(colour: &str) -> f64 {
        let channel = |at: usize| {
            let value = u8::from_str_radix(&colour[at..at + 2], 16).unwrap();
            let value = f64::from(value) / 255.0;
            match value <= 0.04045 {
                true => value / 12.92,
                false => ((value + 0.055) / 1.055).powf(2.4),
            }
        };
        0.2126 * channel(1) + 0.7152 * channel(3) + 0.0722 * channel(5)
    }

    fn contrast(a: &str, b: &str) -> f64 {
        let (a, b) = (luminance(a), luminance(b));
        (f64::max(a, b) + 0.05) / (f64::min(a, b) + 0.05)
    }

    #[test]
    fn labels_can_be_read_on_every_fill_in_light_and_dark() {
        let light = PLANES.iter().chain([&MIXED]).map(|colours| (colours, PAGE));
        let dark = PLANES_DARK.iter().chain([&MIXED_DARK]);
        for (colours, page) in light.chain(dark.map(|colours| (colours, "#14171b"))) {
            for fill in [colours.open, colours.closed, page] {
                let contrast = contrast(fill, colours.stroke);
                assert!(
                    contrast >= 3.0,
                    "{} on {fill}: {contrast:.1}",
                    colours.stroke
                );
            }
        }
        for (colours, page) in [(RUNS, PAGE), (RUNS_DARK, "#14171b")] {
            for colour in colours {
                assert!(contrast(colour, page) >= 3.0, "{colour} on {page}");
            }
        }
    }

    #[test]
    fn every_class_has_a_rule_for_dark_drawings() {
        let rules = dark_rules();
        for plane in (0..7).map(Some).chain([None]) {
            let (_, class) = of_plane(plane);
            assert!(rules.contains(&format!("text.{class} {{")), "{class}");
            assert!(rules.contains(&format!("rect.{class}.open {{")), "{class}");
        }
        for run in 0..9 {
            let (_, class) = of_run(run);
            assert!(rules.contains(&format!("path.{class} {{")), "{class}");
        }
    }
}
