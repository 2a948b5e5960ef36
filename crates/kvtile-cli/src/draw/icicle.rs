//! From a nesting to rectangles: each row zooms into the first cell of the row above.
//!
//! ```text
//! layer 0                                          1 … 31
//! block 0                                1 … 127
//! head 0                       1 … 7
//! k            v
//! ```
//!
//! One geometry for the terminal and for SVG, in columns of a character each.

use super::tree::{DigitLabel, NestingNode, NestingPart};
use crate::output::{count, thousands};

/// One cell of the picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DrawnCell {
    /// Row, from the top.
    pub(crate) row: usize,
    /// First column.
    pub(crate) column: usize,
    /// Columns.
    pub(crate) width: usize,
    /// The one plane whose bytes lie here; `None` for several.
    pub(crate) plane: Option<usize>,
    /// What distinguishes neighbours.
    pub(crate) shade: CellShade,
    /// What may stand in the cell, the longest text first.
    pub(crate) labels: Vec<String>,
}

/// The role of a cell in its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CellShade {
    /// The first value, which the next row shows the inside of.
    Open,
    /// Another value of the same digit.
    Closed,
    /// Values that are left out.
    Elided,
    /// Units in a row: there is nothing below.
    Run,
}

/// The cells of `node` in `columns` columns.
pub(crate) fn cells(node: &NestingNode, columns: usize) -> Vec<DrawnCell> {
    let mut cells = Vec::new();
    place(
        node,
        CellPlace {
            row: 0,
            column: 0,
            width: columns,
        },
        &mut cells,
    );
    cells
}

#[derive(Clone, Copy)]
struct CellPlace {
    row: usize,
    column: usize,
    width: usize,
}

impl CellPlace {
    fn below(self) -> CellPlace {
        CellPlace {
            row: self.row + 1,
            ..self
        }
    }
}

fn place(node: &NestingNode, at: CellPlace, cells: &mut Vec<DrawnCell>) {
    let planes = node.planes();
    let plane = match planes.as_slice() {
        [one] => Some(*one),
        _ => None,
    };
    match node {
        NestingNode::Repeat {
            digit,
            extent,
            step,
            of,
        } => {
            let what = match step.regions {
                0 => "",
                _ => "region 0: ",
            };
            let unused = node.unused();
            repeat((*digit, what), *extent, (of, unused), (at, plane), cells);
        }
        NestingNode::Parts(parts) => side_by_side(parts, at, cells),
        NestingNode::Run {
            digit,
            units,
            bytes,
            ..
        } => cells.push(DrawnCell {
            row: at.row,
            column: at.column,
            width: at.width,
            plane,
            shade: CellShade::Run,
            labels: run_labels(*digit, *units, *bytes),
        }),
    }
}

fn run_labels(digit: Option<DigitLabel>, units: u64, bytes: u64) -> Vec<String> {
    let bytes = count(bytes);
    let Some(label) = digit else {
        return vec![format!("1 unit, {bytes}"), bytes, "·".to_owned()];
    };
    let (name, last) = (label.name(), label.value(units.saturating_sub(1)));
    let first = label.value(0);
    let letter = label.axis;
    vec![
        format!("{name} {first} … {last} in a row: {bytes}"),
        format!("{name} {first}…{last}: {bytes}"),
        format!("{letter}{first}…{last} {bytes}"),
        format!("{letter}{first}…{last}"),
        bytes,
        letter.to_string(),
    ]
}

/// The first value wide, a second where there is room, and the last one narrow.
fn repeat(
    (digit, what): (DigitLabel, &str),
    extent: u64,
    (of, unused): (&NestingNode, u64),
    (at, plane): (CellPlace, Option<usize>),
    cells: &mut Vec<DrawnCell>,
) {
    let last = digit.value(extent.saturating_sub(1));
    let mut others = Vec::new();
    if extent > 1 {
        let second = digit.value(1);
        if extent == 2 {
            others.push((CellShade::Closed, last));
        } else if extent == 3 || at.width < 24 {
            others.push((CellShade::Elided, format!("…{last}")));
        } else {
            others.push((CellShade::Closed, second));
            others.push((CellShade::Elided, "…".to_owned()));
            others.push((CellShade::Closed, last));
        }
    }
    let width_of = |text: &str| text.chars().count() + 2;
    let taken: usize = others.iter().map(|(_, text)| width_of(text)).sum();
    // Where there is no room for neighbours, the first value has to do.
    let fits = taken + 6 <= at.width;
    let first_width = if fits { at.width - taken } else { at.width };
    let (axis, value) = (digit.axis.long_name(), digit.value(0));
    let total = thousands(extent.saturating_mul(digit.low));
    cells.push(DrawnCell {
        row: at.row,
        column: at.column,
        width: first_width,
        plane,
        shade: CellShade::Open,
        labels: vec![
            format!("{what}{axis} {value} of {total}"),
            format!("{axis} {value} of {total}"),
            format!("{axis} {value}"),
            format!("{}{value}", digit.axis),
            digit.axis.to_string(),
        ],
    });
    let mut column = at.column + first_width;
    for (shade, text) in others.into_iter().filter(|_| fits) {
        let width = width_of(&text);
        cells.push(DrawnCell {
            row: at.row,
            column,
            width,
            plane,
            shade,
            labels: vec![text],
        });
        column += width;
    }
    let inside = CellPlace {
        width: first_width,
        ..at.below()
    };
    place(of, beside_unused(unused, inside, cells), cells);
}

/// What is left of a place beside the bytes in it that nothing lies in.
fn beside_unused(unused: u64, at: CellPlace, cells: &mut Vec<DrawnCell>) -> CellPlace {
    let label = format!("{} unused", count(unused));
    let width = label.chars().count() + 2;
    if unused == 0 || at.width < 2 * width {
        return at;
    }
    let left = at.width - width;
    cells.push(DrawnCell {
        row: at.row,
        column: at.column + left,
        width,
        plane: None,
        shade: CellShade::Elided,
        labels: vec![label],
    });
    CellPlace { width: left, ..at }
}

fn side_by_side(parts: &[NestingPart], at: CellPlace, cells: &mut Vec<DrawnCell>) {
    let many = parts.len().max(1);
    let mut column = at.column;
    for (index, part) in parts.iter().enumerate() {
        let end = at.column + at.width * (index + 1) / many;
        let width = end.saturating_sub(column);
        let plane = match part.planes.as_slice() {
            [one] => Some(*one),
            _ => None,
        };
        cells.push(DrawnCell {
            row: at.row,
            column,
            width,
            plane,
            shade: CellShade::Open,
            labels: vec![format!("plane {}", part.name), part.name.clone()],
        });
        let inside = CellPlace {
            column,
            width,
            ..at.below()
        };
        place(&part.node, inside, cells);
        column = end;
    }
}
