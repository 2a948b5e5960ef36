//! The end of the demonstration: the requests side by side, the refusal, and remarks on the
//! figures.

use kvtile_demo::demonstration::DemoReport;

use super::table;
use kvtile_cli::output::{Align, Screen, TextTable};

/// Columns of a remark.
const WIDTH: usize = 74;

/// Table, refusal and remarks.
pub(super) fn text(report: &DemoReport, screen: Screen) -> String {
    let (equal, compared) = (report.tokens_equal, report.tokens_compared);
    let equal = format!(
        "\n  {} ({compared} of {compared}, greedy, against runs from an empty sequence)\n",
        screen.bold(if equal {
            "tokens equal: yes"
        } else {
            "tokens equal: no"
        }),
    );
    let title = "Source of each prefix, in blocks (tokens), and the time it saved";
    [
        format!("\n{}\n", screen.bold(title)),
        requests(report),
        equal,
        refusal(report, screen),
        remarks(report, screen),
    ]
    .concat()
}

fn requests(report: &DemoReport) -> String {
    let mut table = TextTable::new([
        ("", Align::Left),
        ("request 1", Align::Right),
        ("request 2", Align::Right),
        ("3, after restart", Align::Right),
    ]);
    for row in table::groups(report).into_iter().flatten() {
        let [one, two, three] = row.cells;
        table.row([row.name.to_owned(), one, two, three]);
    }
    table.text()
}

fn refusal(report: &DemoReport, screen: Screen) -> String {
    let refusal = &report.refusal;
    format!(
        "\n{}\n  refused: {} is {} in that model, {} in the folder\n",
        screen.bold("The same folder, the same model with another RoPE base"),
        refusal.field,
        refusal.asked,
        refusal.stored,
    )
}

/// The remarks on the figures.
pub(super) fn notes(report: &DemoReport) -> Vec<&'static str> {
    let mut notes = vec![
        "The time for a prefix counts from the arrival of the request: hashing its tokens, the \
         lookup, and loading or computing. Beside it is what the same tokens took when this run \
         computed them from an empty sequence, without the cache.",
        "The last tokens of a prompt are always computed: they fill no block, and logits are not \
         stored. Blocks are read from disk with direct I/O, past the page cache, where the file \
         system has it.",
    ];
    if report.first.model.tiny {
        notes.push("The model was the tiny one: its words are noise, all else is real.");
    }
    notes
}

fn remarks(report: &DemoReport, screen: Screen) -> String {
    let mut text = String::new();
    for note in notes(report) {
        text.push('\n');
        for line in wrapped(note) {
            text.push_str(&screen.dim(&format!("  {line}\n")));
        }
    }
    if let Some(folder) = &report.kept {
        let cache = report.first.open.folder.display();
        let again = folder.join("resume.json");
        text.push_str(&format!("\n  kept: {cache}\n"));
        text.push_str(&format!("  look into it:      kvtile cache stat {cache}\n"));
        text.push_str(&format!(
            "  check its blocks:  kvtile cache verify {cache}\n"
        ));
        text.push_str(&format!(
            "  continue again:    kvtile demo-resume < {}\n",
            again.display()
        ));
    }
    text
}

/// The text in lines that are at most as long as the table.
fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.len() + 1 + word.len() <= WIDTH => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}
