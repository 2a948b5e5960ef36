//! Plain tables: each column as wide as its widest cell, two spaces apart. Cells may contain text
//! from files, so the table escapes characters that a terminal obeys, including line breaks.

use console::measure_text_width;
use kvtile::layout::ShownText;

/// The alignment of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Left.
    Left,
    /// Right.
    Right,
}

/// A table under construction.
#[derive(Debug)]
pub struct TextTable {
    aligns: Vec<Align>,
    rows: Vec<Vec<String>>,
    indent: usize,
}

impl TextTable {
    /// A table with this first row.
    pub fn new<const N: usize>(header: [(&str, Align); N]) -> TextTable {
        TextTable {
            aligns: header.iter().map(|(_, align)| *align).collect(),
            rows: vec![header.iter().map(|(text, _)| (*text).to_owned()).collect()],
            indent: 2,
        }
    }

    /// A table with these columns, whose number depends on the data.
    pub fn columns(header: impl IntoIterator<Item = (String, Align)>) -> TextTable {
        let (names, aligns) = header.into_iter().unzip();
        TextTable {
            aligns,
            rows: vec![names],
            indent: 2,
        }
    }

    /// A table without a header.
    pub fn bare<const N: usize>(aligns: [Align; N]) -> TextTable {
        TextTable {
            aligns: aligns.to_vec(),
            rows: Vec::new(),
            indent: 2,
        }
    }

    /// Adds a row.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.cells(cells);
    }

    /// Adds a row whose number of cells depends on the data.
    pub fn cells(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells = cells.into_iter();
        let shown = cells.map(|cell| ShownText(&cell).to_string());
        self.rows.push(shown.collect());
    }

    /// The table as lines.
    pub fn text(&self) -> String {
        let widths: Vec<usize> = (0..self.aligns.len())
            .map(|column| {
                let cells = self.rows.iter().filter_map(|row| row.get(column));
                cells
                    .map(|cell| measure_text_width(cell))
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = " ".repeat(self.indent);
            for ((cell, align), width) in row.iter().zip(&self.aligns).zip(&widths) {
                let padding = " ".repeat(width.saturating_sub(measure_text_width(cell)));
                match align {
                    Align::Left => line.extend([cell, padding.as_str(), "  "]),
                    Align::Right => line.extend([padding.as_str(), cell, "  "]),
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = TextTable::new([("name", Align::Left), ("bytes", Align::Right)]);
        table.row(["a long name".to_owned(), "7".to_owned()]);
        let expected = "  name         bytes\n  a long name      7\n";
        assert_eq!(table.text(), expected);
    }
}
