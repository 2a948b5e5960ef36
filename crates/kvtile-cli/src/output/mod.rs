//! The output of a command: text or JSON, written in one piece. A closed reader is no error.

mod bytes;
mod html;
mod progress;
mod said;
mod table;
mod terminal;

use std::io::{self, Write};

pub use bytes::{bytes, count, thousands};
use console::Term;
pub use html::{PAGE_STYLE, escaped};
pub use progress::progress;
pub(crate) use said::{begin, is_kept, take_result};
pub use said::{is_quiet, note};
use serde::Serialize;
pub use table::{Align, TextTable};

use crate::error::CliError;

/// Columns where neither the terminal nor `COLUMNS` gives a number.
const COLUMNS_DEFAULT: usize = 80;

/// Widest picture, in columns.
const COLUMNS_MAX: usize = 120;

/// The properties of the output.
#[derive(Clone, Copy, Debug)]
pub struct Screen {
    /// Usable columns.
    pub columns: usize,
    /// Whether the output shows colours.
    pub colours: bool,
}

impl Screen {
    /// Reads the terminal, `NO_COLOR` and `COLUMNS`.
    pub fn of_stdout() -> Screen {
        let term = Term::stdout();
        let asked = std::env::var("COLUMNS").ok().and_then(|c| c.parse().ok());
        let terminal = term.size_checked().map(|(_, columns)| usize::from(columns));
        let columns = asked.or(terminal).unwrap_or(COLUMNS_DEFAULT);
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Screen {
            columns: columns.clamp(40, COLUMNS_MAX),
            colours: !said::is_kept() && term.is_term() && !no_colour && console::colors_enabled(),
        }
    }

    /// `text` in bold, where the output shows it.
    pub fn bold(self, text: &str) -> String {
        self.ansi("1", text)
    }

    /// `text` dimmed, where the output shows it.
    pub fn dim(self, text: &str) -> String {
        self.ansi("2", text)
    }

    /// `text` with the given attributes, where the output shows them.
    pub fn ansi(self, attributes: &str, text: &str) -> String {
        if self.colours {
            format!("\u{1b}[{attributes}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }
}

/// Writes `text` to standard output. A closed reader (`| head`) is no error.
///
/// # Errors
/// The output cannot be written.
pub fn print(text: &str) -> Result<(), CliError> {
    let colours = Screen::of_stdout().colours;
    result(&terminal::for_terminal(text, colours))
}

/// `text` as [`print()`] shows it.
pub(crate) fn shown(text: &str) -> String {
    terminal::for_terminal(text, Screen::of_stdout().colours)
}

/// As [`print()`], for the report of a command that only checks: with `--quiet` it prints nothing,
/// because the exit code carries the result.
///
/// # Errors
/// The output cannot be written.
pub fn print_check(text: &str) -> Result<(), CliError> {
    match is_quiet() {
        true => Ok(()),
        false => print(text),
    }
}

/// Writes a line, or a prompt without a line break, to standard error.
pub fn print_error(text: &str) {
    let text = terminal::for_terminal(text, false);
    // A closed standard error leaves no place to report to.
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// Writes text for a program, unescaped.
///
/// # Errors
/// The output cannot be written.
pub(crate) fn print_script(text: &str) -> Result<(), CliError> {
    result(text)
}

/// Writes text of the result to its file or to standard output.
fn result(text: &str) -> Result<(), CliError> {
    match said::keep(text) {
        true => Ok(()),
        false => write_out(text),
    }
}

/// Writes text to standard output, even where the result has a file.
pub(crate) fn write_out(text: &str) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    let written = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// Writes `report` as indented JSON.
///
/// # Errors
/// The report cannot be serialised, or the output cannot be written.
pub fn print_json(report: &impl Serialize) -> Result<(), CliError> {
    let mut text = serde_json::to_string_pretty(report)?;
    text.push('\n');
    result(&terminal::json_for_terminal(&text))
}
