//! The filter for terminal output: it passes text, line breaks and the program's own colours.
//!
//! All printed text goes through this filter, so that text from a foreign file cannot move the
//! cursor, hide the text around it or change its order. Reports also show text from files through
//! [`ShownText`] (`TextTable` does so for every cell), which escapes line breaks and colours too.
//! This filter is the second line of defence.

use std::fmt::Write;

use kvtile::layout::ShownText;

/// Most characters between the escape character and the `m` of a colour.
const COLOUR_CHARACTERS_MAX: usize = 24;

/// Filters `text` for a terminal: line breaks stay, colours stay if requested, and other control
/// characters and invisible marks are escaped.
pub(super) fn for_terminal(text: &str, wanted: bool) -> String {
    let mut safe = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(character) = rest.chars().next() {
        let length = match colour(rest).filter(|_| wanted) {
            Some(length) => length,
            None => character.len_utf8(),
        };
        let (here, after) = rest.split_at(length);
        match here {
            "\n" => safe.push('\n'),
            here if length > 1 && here.starts_with('\u{1b}') => safe.push_str(here),
            here => {
                // Writing to a string cannot fail.
                let _ = write!(safe, "{}", ShownText(here));
            }
        }
        rest = after;
    }
    safe
}

/// Length in bytes of the colour sequence at the start of `text`: `ESC [ 38;5;255 m`.
fn colour(text: &str) -> Option<usize> {
    let attributes = text.strip_prefix("\u{1b}[")?;
    let end = attributes.find('m')?;
    let inside = attributes.get(..end)?;
    let plain = inside.bytes().all(|b| b.is_ascii_digit() || b == b';');
    (plain && end <= COLOUR_CHARACTERS_MAX).then_some(end + 3)
}

/// Filters JSON for a terminal: characters that a terminal obeys become JSON escapes, so the values
/// stay equal. JSON has such characters only in strings.
pub(super) fn json_for_terminal(json: &str) -> String {
    let mut safe = String::with_capacity(json.len());
    for character in json.chars() {
        let mut text = [0; 4];
        let text = character.encode_utf8(&mut text);
        if character == '\n' || ShownText(text).is_plain() {
            safe.push(character);
            continue;
        }
        for unit in character.encode_utf16(&mut [0; 2]) {
            // Writing to a string cannot fail.
            let _ = write!(safe, "\\u{unit:04x}");
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every control character and every mark that changes the order of text.
    fn obeyed() -> impl Iterator<Item = char> {
        let marks = ['\u{61c}', '\u{200e}', '\u{200f}', '\u{2028}', '\u{2029}'];
        let controls = (0..0x20).chain(0x7f..0xa0);
        let bidi = (0x202a..0x202f).chain(0x2066..0x206a);
        let numbers = controls.chain(bidi).filter_map(char::from_u32);
        numbers.chain(marks)
    }

    #[test]
    fn only_line_breaks_and_our_colours_pass() {
        for wanted in [false, true] {
            for character in obeyed().filter(|c| *c != '\n') {
                let safe = for_terminal(&format!("a{character}[2Jb\nc"), wanted);
                assert!(!safe.contains(character), "{:?}", character);
                assert!(safe.starts_with("a\\u{") && safe.ends_with("[2Jb\nc"));
            }
            let ours = "\u{1b}[48;5;17;1mx\u{1b}[0m";
            let safe = for_terminal(ours, wanted);
            assert_eq!(safe == ours, wanted);
            for other in [
                "\u{1b}[2J",
                "\u{1b}]0;title\u{7}",
                "\u{1b}[",
                "\u{1b}",
                "\u{1b}[1;1H",
            ] {
                assert!(!for_terminal(other, wanted).contains('\u{1b}'), "{other:?}");
            }
        }
        let plain = "model 模型 é “x”\n";
        assert_eq!(for_terminal(plain, true), plain);
    }

    #[test]
    fn json_keeps_its_values_without_characters_that_a_terminal_obeys() {
        let text: String = obeyed().chain("é \\ \" 😀 \u{e0041}".chars()).collect();
        let json = serde_json::to_string_pretty(&serde_json::json!({ &text: [&text] })).unwrap();
        let safe = json_for_terminal(&json);
        assert!(obeyed().all(|c| c == '\n' || !safe.contains(c)));
        let value: serde_json::Value = serde_json::from_str(&safe).unwrap();
        assert_eq!(value, serde_json::json!({ &text: [&text] }));
    }
}
