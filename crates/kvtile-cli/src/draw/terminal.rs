//! Pictures in the terminal: colours where they are seen, lines everywhere.

use kvtile::layout::Location;

use super::{
    icicle::{CellShade, DrawnCell, cells},
    runs::SampledRun,
    tree::NestingNode,
};
use crate::output::Screen;

/// Background colours of planes, light on and off, of the 256 of terminals.
const PLANES: [(u8, u8); 6] = [
    (31, 24),
    (166, 130),
    (65, 22),
    (97, 54),
    (30, 23),
    (131, 88),
];

/// Background where several planes lie.
const MIXED: (u8, u8) = (240, 236);

/// The nesting as rows of cells.
pub(crate) fn picture(node: &NestingNode, screen: Screen) -> String {
    let cells = cells(node, screen.columns.saturating_sub(3));
    let rows = cells.iter().map(|cell| cell.row + 1).max().unwrap_or(0);
    let mut text = String::new();
    for row in 0..rows {
        let mut of_row: Vec<&DrawnCell> = cells.iter().filter(|cell| cell.row == row).collect();
        of_row.sort_by_key(|cell| cell.column);
        let mut line = String::from("  ");
        let mut column = 0;
        let mut open = false;
        for cell in of_row {
            if cell.column > column {
                line.push_str(if open { "│" } else { " " });
                let gap = (cell.column - column).saturating_sub(1);
                line.push_str(&" ".repeat(gap));
            }
            line.push('│');
            line.push_str(&body(cell, screen));
            column = cell.column + cell.width;
            open = true;
        }
        if open {
            line.push('│');
        }
        text.push_str(&line);
        text.push('\n');
    }
    text
}

fn body(cell: &DrawnCell, screen: Screen) -> String {
    let width = cell.width.saturating_sub(1);
    let label = fitting(&cell.labels, width.saturating_sub(1));
    let used = label.chars().count() + 1;
    let filler = if cell.shade == CellShade::Run && !screen.colours {
        "·"
    } else {
        " "
    };
    let mut text = format!(" {label}");
    if used < width {
        text.push(' ');
        text.push_str(&filler.repeat(width - used - 1));
    }
    let text: String = text.chars().take(width).collect();
    let (bright, dark) = cell.plane.map_or(MIXED, colours_of);
    match cell.shade {
        CellShade::Open => screen.ansi(&format!("48;5;{bright};38;5;255;1"), &text),
        CellShade::Run => screen.ansi(&format!("48;5;{bright};38;5;255"), &text),
        CellShade::Closed => screen.ansi(&format!("48;5;{dark};38;5;252"), &text),
        CellShade::Elided => screen.ansi("48;5;234;38;5;245", &text),
    }
}

/// The colours of a plane, light on and off.
pub(super) fn colours_of(plane: usize) -> (u8, u8) {
    PLANES.get(plane % PLANES.len()).copied().unwrap_or(MIXED)
}

/// The longest label that fits; nothing where none does.
pub(super) fn fitting(labels: &[String], width: usize) -> &str {
    labels
        .iter()
        .find(|label| label.chars().count() <= width)
        .map_or("", String::as_str)
}

/// Foreground colours of runs, one after the other.
const RUNS: [u8; 8] = [39, 208, 77, 170, 45, 203, 220, 105];

/// Both sides of a sample of runs, each in the order of its memory.
pub(crate) fn strips(samples: &[SampledRun], screen: Screen) -> String {
    let side = |name: &str, place: fn(&SampledRun) -> Location| {
        let mut order: Vec<&SampledRun> = samples.iter().collect();
        order.sort_by_key(|run| place(run));
        let mut lines: Vec<String> = Vec::new();
        let mut end: Option<Location> = None;
        for run in order {
            let start = place(run);
            let same_region = end.is_some_and(|end| end.region == start.region);
            if !same_region {
                lines.push(format!("  {name:<12} region {:<3} ", start.region));
            }
            if let Some(line) = lines.last_mut() {
                let touches = end == Some(start);
                if same_region {
                    line.push_str(if touches { " " } else { " ·· " });
                }
                let colour = RUNS.get(run.index % RUNS.len());
                let attributes = format!("1;38;5;{}", colour.copied().unwrap_or(255));
                line.push_str(&screen.ansi(&attributes, &run.letter.to_string()));
            }
            end = Some(Location {
                offset: start.offset.saturating_add(run.bytes),
                ..start
            });
        }
        lines.join("\n")
    };
    format!(
        "{}\n{}\n",
        side("source", |run| run.source),
        side("destination", |run| run.destination)
    )
}
