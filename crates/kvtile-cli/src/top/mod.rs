//! `kvtile top`: what the caches of a server do, in a terminal.
//!
//! It sets no mode of the terminal, so an interrupt leaves the last picture and nothing to restore.

mod frame;

use std::{
    io::{self, Write},
    time::Duration,
};

use clap::Args;
use console::Term;
use kvtile_http::{FetchError, Observation};

use crate::{
    error::CliError,
    output::{self, Screen},
};

/// The end of `--help`.
pub(crate) const EXAMPLES: &str = "\
The server is that of a cache which is open elsewhere: `kvtile_http::serve` in Rust,
`kvtile.serve_http` in Python, the setting `http` of the vLLM connector. The same numbers are at
/metrics for Prometheus, and the page of the server shows them in a browser. Where the output is no
terminal, the frames follow one another.

Examples:
  kvtile top 9090                                  a server of this machine
  kvtile top http://node7:9090/ --every 5
  kvtile top 9090 --once                           one frame, for scripts
  kvtile top 9090 --once --json                    all numbers";

/// Arguments of `kvtile top`.
#[derive(Args, Debug)]
pub struct TopArgs {
    /// The server: http://HOST:PORT/, HOST:PORT, or the PORT of a server of this machine
    #[arg(value_name = "URL")]
    url: String,
    /// Print one frame and end
    #[arg(long)]
    once: bool,
    /// The time between two frames
    #[arg(long, value_name = "SECONDS", default_value_t = 1,
          value_parser = clap::value_parser!(u64).range(1..=3_600), conflicts_with = "once")]
    every: u64,
    /// The time limit of each answer
    #[arg(long, value_name = "SECONDS", default_value_t = 5,
          value_parser = clap::value_parser!(u64).range(1..=600))]
    within: u64,
    /// Print JSON, the whole of it for each frame
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(args: &TopArgs) -> Result<(), CliError> {
    let within = Duration::from_secs(args.within);
    let mut last = kvtile_http::fetch(&args.url, within)?;
    if args.once || output::is_kept() {
        return match args.json {
            true => output::print_json(&last),
            false => output::print(&text_of(args, (&last, None), None)),
        };
    }
    let mut canvas = Canvas::new();
    let mut before: Option<Observation> = None;
    let mut failed: Option<FetchError> = None;
    loop {
        if args.json {
            output::print_json(&last)?;
        } else if !canvas.show(&text_of(args, (&last, before.as_ref()), failed.as_ref()))? {
            return Ok(());
        }
        std::thread::sleep(Duration::from_secs(args.every));
        match kvtile_http::fetch(&args.url, within) {
            Ok(now) => {
                // A server that was started again counts from 0.
                let is_same = now.seconds >= last.seconds;
                before = Some(std::mem::replace(&mut last, now)).filter(|_| is_same);
                failed = None;
            }
            Err(error) => failed = Some(error),
        }
    }
}

fn text_of(
    args: &TopArgs,
    numbers: (&Observation, Option<&Observation>),
    failed: Option<&FetchError>,
) -> String {
    let screen = Screen::of_stdout();
    let mut text = frame::text(numbers, &args.url, screen);
    if let Some(error) = failed {
        let line = format!("no answer, the numbers are old: {error}");
        let line = kvtile::layout::ShownText(&line).to_string();
        text = format!("{}\n{text}", screen.bold(&line));
    }
    text
}

/// The place of the frames: a terminal shows each over the one before.
struct Canvas {
    term: Term,
    size: Option<(u16, u16)>,
}

impl Canvas {
    fn new() -> Canvas {
        Canvas {
            term: Term::stdout(),
            size: None,
        }
    }

    /// Shows a frame; false if the reader has closed the output.
    fn show(&mut self, text: &str) -> Result<bool, CliError> {
        let text = output::shown(text);
        let painted = match self.term.is_term().then(|| self.term.size()) {
            None => format!("{text}\n"),
            Some(size) => {
                // After a change of the size the terminal has moved the old lines.
                let clear = if self.size.replace(size) == Some(size) {
                    ""
                } else {
                    "\u{1b}[2J"
                };
                format!("{clear}{}", painted(&text, size))
            }
        };
        let mut stdout = io::stdout().lock();
        let written = stdout.write_all(painted.as_bytes());
        match written.and_then(|()| stdout.flush()) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// A frame for a terminal of `rows` rows and `columns` columns: each line is cut, and what the frame
/// before had beyond it is erased.
fn painted(text: &str, (rows, columns): (u16, u16)) -> String {
    let (rows, columns) = (usize::from(rows.max(2)), usize::from(columns.max(1)));
    let mut painted = "\u{1b}[H".to_owned();
    let lines: Vec<&str> = text.lines().collect();
    // The last row is free for the cursor.
    let shown = rows - 1;
    let hidden = lines.len().saturating_sub(shown);
    for (row, line) in lines.iter().take(shown).enumerate() {
        let more = format!("({} more lines: use a larger window or --once)", hidden + 1);
        let line = match hidden > 0 && row + 1 == shown {
            true => more.as_str(),
            false => line,
        };
        painted.push_str(&console::truncate_str(line, columns, ""));
        painted.push_str("\u{1b}[0m\u{1b}[K\n");
    }
    painted.push_str("\u{1b}[J");
    painted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_fits_its_terminal_and_erases_the_one_before() {
        let text = "one\n\u{1b}[1mtwo two\u{1b}[0m\nthree\nfour\n";
        let whole = painted(text, (10, 40));
        assert!(
            whole.starts_with("\u{1b}[Hone\u{1b}[0m\u{1b}[K\n"),
            "{whole:?}"
        );
        assert!(
            whole.ends_with("four\u{1b}[0m\u{1b}[K\n\u{1b}[J"),
            "{whole:?}"
        );
        let small = painted(text, (3, 10));
        assert_eq!(small.matches('\n').count(), 2);
        assert!(
            small.contains("(3 more li") && !small.contains("three"),
            "{small:?}"
        );
        let narrow = painted(text, (10, 3));
        assert!(narrow.contains("\u{1b}[1mtwo\u{1b}[0m"), "{narrow:?}");
        assert_eq!(painted(text, (0, 0)).matches('\n').count(), 1);
    }
}
