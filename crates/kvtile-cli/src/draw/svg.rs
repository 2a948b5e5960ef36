//! Pictures as SVG: self-contained, without scripts, light or dark as the reader prefers, light in print.

use std::fmt::Write as _;

use kvtile::layout::Location;

use super::{
    icicle::{CellShade, DrawnCell, cells},
    palette,
    runs::SampledRun,
    terminal::fitting,
    tree::NestingNode,
};

/// Columns of the icicle.
const COLUMNS: usize = 132;

/// Width of a column in pixels; a character of the labels is a little narrower.
const COLUMN: usize = 8;

/// Height of a row in pixels.
const ROW: usize = 34;

/// Space around everything.
const MARGIN: usize = 24;

/// A document under construction, from top to bottom.
pub(super) struct SvgPage {
    body: String,
    y: usize,
}

impl SvgPage {
    pub(super) fn new() -> SvgPage {
        SvgPage {
            body: String::new(),
            y: MARGIN,
        }
    }

    pub(super) fn text(&mut self, class: &str, text: &str) {
        self.y += if class == "title" { 22 } else { 18 };
        let y = self.y;
        self.write(format_args!(
            "<text class=\"{class}\" x=\"{MARGIN}\" y=\"{y}\">{}</text>\n",
            escape(text)
        ));
    }

    /// Makes room for a bar as wide as the page: its left and upper edge, width and height.
    pub(super) fn bar_place(&mut self) -> (f64, f64, f64, f64) {
        let (top, height) = (self.y + 8, ROW - 12);
        self.y = top + height + 6;
        (
            MARGIN as f64,
            top as f64,
            (COLUMNS * COLUMN) as f64,
            height as f64,
        )
    }

    /// The rows of a nesting; the cells of a row touch those that they are the inside of.
    fn icicle(&mut self, node: &NestingNode) {
        self.y += 14;
        let cells = cells(node, COLUMNS);
        let rows = cells.iter().map(|cell| cell.row + 1).max().unwrap_or(0);
        for cell in &cells {
            self.cell(cell);
        }
        self.y += rows * ROW + 8;
    }

    fn cell(&mut self, cell: &DrawnCell) {
        let (colours, plane) = palette::of_plane(cell.plane);
        let (fill, shade, dash) = match cell.shade {
            CellShade::Open | CellShade::Run => (colours.open, "open", ""),
            CellShade::Closed => (colours.closed, "closed", ""),
            CellShade::Elided => (palette::PAGE, "elided", " stroke-dasharray=\"3 3\""),
        };
        let stroke = colours.stroke;
        let (x, y) = (MARGIN + cell.column * COLUMN, self.y + cell.row * ROW);
        let width = cell.width * COLUMN;
        self.write(format_args!(
            "<rect class=\"{plane} {shade}\" x=\"{x}\" y=\"{y}\" width=\"{width}\" \
             height=\"{ROW}\" rx=\"2\" fill=\"{fill}\" stroke=\"{stroke}\"{dash}/>\n"
        ));
        let label = fitting(&cell.labels, cell.width.saturating_sub(1));
        let class = match cell.shade {
            CellShade::Open => "open",
            CellShade::Run => "run",
            CellShade::Closed | CellShade::Elided => "other",
        };
        self.write(format_args!(
            "<text class=\"{plane} {class}\" x=\"{}\" y=\"{}\" fill=\"{stroke}\">{}</text>\n",
            x + width / 2,
            y + ROW / 2 + 5,
            escape(label)
        ));
    }

    /// Both sides of a sample of runs, joined by curves.
    fn correspondence(&mut self, samples: &[SampledRun]) {
        self.text("note", "Some runs, as they lie in the source:");
        let top = self.y + 10;
        let bottom = top + 150;
        let sources = self.strip(samples, top, |run| run.source);
        let destinations = self.strip(samples, bottom, |run| run.destination);
        let centre = |places: &[(usize, usize, usize)], index: usize| {
            let place = places.iter().find(|(of, _, _)| *of == index);
            place.map_or(0, |(_, x, width)| x + width / 2)
        };
        for run in samples {
            let (a, b) = (
                centre(&sources, run.index),
                centre(&destinations, run.index),
            );
            let (from, to) = (top + 30, bottom);
            let middle = usize::midpoint(from, to);
            let (colour, class) = palette::of_run(run.index);
            self.write(format_args!(
                "<path class=\"{class}\" d=\"M{a} {from} C{a} {middle} {b} {middle} {b} {to}\" fill=\"none\" \
                 stroke=\"{colour}\" stroke-width=\"1.6\" opacity=\"0.75\"/>\n"
            ));
        }
        self.y = bottom + 32;
        self.text(
            "note",
            "and in the destination. Other bytes lie in the gaps.",
        );
    }

    /// One side of a sample in the order of its memory; returns the number, left edge and width of each run.
    fn strip(
        &mut self,
        samples: &[SampledRun],
        y: usize,
        place: fn(&SampledRun) -> Location,
    ) -> Vec<(usize, usize, usize)> {
        let mut order: Vec<&SampledRun> = samples.iter().collect();
        order.sort_by_key(|run| place(run));
        let gap = 12;
        let room = COLUMNS * COLUMN;
        let many = samples.len().max(1);
        let width = ((room - many * gap) / many).min(72);
        let mut places = Vec::new();
        let mut x = MARGIN;
        let mut end: Option<Location> = None;
        for run in order {
            let start = place(run);
            if end.is_some_and(|end| end != start) {
                x += gap;
            }
            let (colour, class) = palette::of_run(run.index);
            self.write(format_args!(
                "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"30\" \
                 fill=\"{colour}\" fill-opacity=\"0.16\" stroke=\"{colour}\"/>\n\
                 <text class=\"{class} run\" x=\"{}\" y=\"{}\" fill=\"{colour}\">{}</text>\n",
                x + width / 2,
                y + 20,
                run.letter
            ));
            places.push((run.index, x, width));
            x += width;
            end = Some(Location {
                offset: start.offset.saturating_add(run.bytes),
                ..start
            });
        }
        places
    }

    pub(super) fn write(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = self.body.write_fmt(text);
    }

    pub(super) fn finish(self) -> String {
        let (width, height) = (COLUMNS * COLUMN + 2 * MARGIN, self.y + MARGIN);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\" style=\"max-width: 100%; height: auto\">\n<style>\ntext {{ font-family: ui-monospace, \
             'DejaVu Sans Mono', Menlo, Consolas, monospace; font-size: 12px; text-anchor: middle; }}\n\
             .title {{ font-size: 18px; font-weight: 700; text-anchor: start; fill: #1a202c; }}\n\
             .note {{ font-size: 12.5px; text-anchor: start; fill: #4a5568; }}\n\
             .open {{ font-weight: 700; }}\n{}</style>\n\
             <rect class=\"page\" width=\"{width}\" height=\"{height}\" fill=\"{}\"/>\n{}</svg>\n",
            palette::dark_rules(),
            palette::PAGE,
            self.body
        )
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// One side of a drawing: its heading, notes below it, and its nesting.
pub(crate) struct DrawingSide<'a> {
    /// The heading.
    pub(crate) title: String,
    /// Lines below it.
    pub(crate) notes: Vec<String>,
    /// The nesting.
    pub(crate) node: &'a NestingNode,
}

impl DrawingSide<'_> {
    /// The same with its role before the heading.
    pub(crate) fn titled(mut self, role: &str) -> Self {
        self.title = format!("{role}: {}", self.title);
        self
    }
}

/// A layout.
pub(crate) fn layout_svg(side: &DrawingSide<'_>) -> String {
    let mut page = SvgPage::new();
    draw(&mut page, side);
    page.text("note", READING);
    page.finish()
}

/// Source, destination, and a sample of the runs between them.
pub(crate) fn plan_svg(
    source: &DrawingSide<'_>,
    destination: &DrawingSide<'_>,
    (notes, samples): (&[String], &[SampledRun]),
) -> String {
    let mut page = SvgPage::new();
    draw(&mut page, source);
    page.y += 10;
    draw(&mut page, destination);
    page.text("note", READING);
    page.y += 16;
    page.text("title", "The plan");
    for note in notes {
        page.text("note", note);
    }
    page.correspondence(samples);
    page.finish()
}

/// How to read an icicle.
const READING: &str = "Memory runs from left to right; every row shows what the first cell of the \
                       row above holds.";

fn draw(page: &mut SvgPage, side: &DrawingSide<'_>) {
    page.text("title", &side.title);
    for note in &side.notes {
        page.text("note", note);
    }
    page.icicle(side.node);
}
