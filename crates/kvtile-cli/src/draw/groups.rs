//! What a hit needs of the groups of a model: a bar of tokens for each group.

use super::{palette, svg::SvgPage, terminal};
use crate::output::Screen;

/// What a hit needs of a group: the end of its tokens, from a point on.
pub(crate) struct GroupNeeds {
    /// The name.
    pub(crate) name: String,
    /// The rule and the sizes.
    pub(crate) note: String,
    /// Whether anything is needed.
    pub(crate) is_needed: bool,
    /// Where the needed tokens begin, as a part of all.
    pub(crate) from: f64,
}

/// The column at which the needed tokens begin; at least one column is left for them.
fn first_column(needs: &GroupNeeds, columns: usize) -> usize {
    if !needs.is_needed {
        return columns;
    }
    let column = (needs.from * columns as f64).floor();
    // A part of a number of columns is within it.
    (0..columns)
        .rev()
        .find(|at| *at as f64 <= column)
        .unwrap_or(0)
}

/// One line for each group.
pub(crate) fn picture(groups: &[GroupNeeds], screen: Screen) -> String {
    let widest = groups.iter().map(|group| group.name.chars().count()).max();
    let names = widest.unwrap_or(0);
    let columns = screen.columns.saturating_sub(names + 4).max(8);
    let mut text = String::new();
    for (at, group) in groups.iter().enumerate() {
        let first = first_column(group, columns);
        let padding = " ".repeat(names - group.name.chars().count());
        let (colour, _) = terminal::colours_of(at);
        let needed = screen.ansi(&format!("38;5;{colour}"), &"█".repeat(columns - first));
        let absent = screen.dim(&"·".repeat(first));
        text.push_str(&format!("  {}{padding}  {absent}{needed}\n", group.name));
    }
    text
}

/// The same as SVG, with notes.
pub(crate) fn svg(title: &str, notes: &[String], groups: &[GroupNeeds]) -> String {
    let mut page = SvgPage::new();
    page.text("title", title);
    for note in notes {
        page.text("note", note);
    }
    for (at, group) in groups.iter().enumerate() {
        page.bar(at, group);
    }
    page.text(
        "note",
        "Tokens run from left to right; what is filled must be there for the hit.",
    );
    page.finish()
}

impl SvgPage {
    fn bar(&mut self, at: usize, group: &GroupNeeds) {
        let (colours, class) = palette::of_plane(Some(at));
        self.text("note", &format!("{}: {}", group.name, group.note));
        let (x, y, width, height) = self.bar_place();
        let from = if group.is_needed { group.from } else { 1.0 };
        // At least two pixels, so that a state is seen.
        let start = (from * width).min(width - 2.0);
        let stroke = colours.stroke;
        self.write(format_args!(
            "<rect class=\"{class} closed\" x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" rx=\"2\" \
             fill=\"{}\" stroke=\"{stroke}\"/>\n",
            colours.closed
        ));
        if group.is_needed {
            self.write(format_args!(
                "<rect class=\"{class} needed\" x=\"{:.1}\" y=\"{y}\" width=\"{:.1}\" height=\"{height}\" rx=\"2\" \
                 fill=\"{stroke}\" stroke=\"{stroke}\"/>\n",
                x + start,
                width - start
            ));
        }
    }
}
