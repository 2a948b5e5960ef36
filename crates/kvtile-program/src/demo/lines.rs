//! The text output of the demonstration: steps in columns, and answers that arrive in pieces.

use kvtile_cli::output::{Screen, count};

/// Columns of the step's name.
const LABEL: usize = 14;
/// Columns of the description.
const WHAT: usize = 43;
/// Columns of the bytes.
const BYTES: usize = 10;
/// Columns of the time.
const TIME: usize = 10;
/// Columns of a line.
pub(super) const WIDTH: usize = LABEL + WHAT + BYTES + TIME;

/// One line of a step: number and name, description, bytes, seconds. The figures go on a line of
/// their own where they do not fit.
pub(super) fn step(
    screen: Screen,
    (number, name): (usize, &str),
    what: &str,
    (bytes, seconds): (Option<u64>, Option<f64>),
) -> String {
    let bytes = bytes.map(count).unwrap_or_default();
    let time = seconds.map(time).unwrap_or_default();
    let label = format!("  {number:>2} {name:<width$}", width = LABEL - 5);
    let figures = format!("{bytes:>BYTES$}{time:>TIME$}");
    let line = if console::measure_text_width(what) > WHAT {
        let indent = LABEL + WHAT;
        format!("{what}\n{:indent$}{figures}", "")
    } else {
        format!("{what:<WHAT$}{figures}")
    };
    format!("{}{}\n", screen.bold(&label), line.trim_end())
}

/// A line under a step. Its text may come from the model file, so control characters are removed.
pub(super) fn under(screen: Screen, text: &str) -> String {
    let text = text.replace(char::is_control, "\u{fffd}");
    format!("{}{}\n", " ".repeat(LABEL), screen.dim(&text))
}

/// `12.3 s`, `45.6 ms`; a negative time has its sign.
pub(super) fn time(seconds: f64) -> String {
    match seconds {
        s if s < 0.0 => format!("-{}", time(-s)),
        s if s >= 10.0 => format!("{s:.1} s"),
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 0.1 => format!("{:.0} ms", s * 1e3),
        s => format!("{:.1} ms", s * 1e3),
    }
}

/// Text that arrives in pieces, set off by a bar and broken between words.
#[derive(Debug, Default)]
pub(super) struct SpeechLines {
    word: String,
    column: usize,
}

impl SpeechLines {
    /// The output for `text`, which has just arrived.
    pub(super) fn push(&mut self, text: &str) -> String {
        let mut out = String::new();
        for character in text.chars() {
            match character {
                '\n' => {
                    self.flush(&mut out);
                    self.end_line(&mut out);
                }
                c if c.is_whitespace() => {
                    self.flush(&mut out);
                    self.word.push(' ');
                }
                // Never pass control characters of a model to a terminal.
                c if c.is_control() => self.word.push('\u{fffd}'),
                c => self.word.push(c),
            }
        }
        out
    }

    /// The remaining output at the end of the text, with the line break.
    pub(super) fn end(&mut self) -> String {
        let mut out = String::new();
        self.flush(&mut out);
        self.end_line(&mut out);
        *self = SpeechLines::default();
        out
    }

    /// Prints the complete word: on this line after its space if it fits, else on a new line
    /// without the space.
    fn flush(&mut self, out: &mut String) {
        let word = std::mem::take(&mut self.word);
        let bare = word.trim_start();
        if bare.is_empty() {
            return;
        }
        let mut word = word.as_str();
        if self.column + console::measure_text_width(word) > WIDTH {
            self.end_line(out);
        }
        if self.column == 0 {
            out.push_str(&" ".repeat(LABEL));
            out.push_str("│ ");
            self.column = LABEL + 2;
            word = bare;
        }
        out.push_str(word);
        self.column += console::measure_text_width(word);
    }

    fn end_line(&mut self, out: &mut String) {
        if self.column > 0 {
            out.push('\n');
            self.column = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spoken(pieces: &[&str]) -> String {
        let mut speech = SpeechLines::default();
        let mut out: String = pieces.iter().map(|piece| speech.push(piece)).collect();
        out.push_str(&speech.end());
        out
    }

    #[test]
    fn text_is_broken_between_words_however_it_arrives() {
        let text = "The cat on the station is called Button, and it sleeps in the oil store \
                    where the warm pipe passes.\nSecond line.";
        let pieces: Vec<String> = text.chars().map(|c| c.to_string()).collect();
        let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
        let out = spoken(&pieces);
        assert_eq!(out, spoken(&[text]));
        assert!(out.lines().all(|line| line.chars().count() <= WIDTH));
        let words: Vec<&str> = out.split_whitespace().filter(|word| *word != "│").collect();
        assert_eq!(words, text.split_whitespace().collect::<Vec<_>>());
        assert_eq!(out.lines().last(), Some("              │ Second line."));
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(
            spoken(&["a\u{1b}[31mb\u{7}"]),
            "              │ a\u{fffd}[31mb\u{fffd}\n"
        );
        assert_eq!(spoken(&[]), "");
        assert_eq!(spoken(&["\n", "  "]), "");
    }

    #[test]
    fn times_are_short() {
        assert_eq!(time(12.34), "12.3 s");
        assert_eq!(time(3.456), "3.46 s");
        assert_eq!(time(0.1234), "123 ms");
        assert_eq!(time(0.0012), "1.2 ms");
        assert_eq!(time(-3.456), "-3.46 s");
    }
}
