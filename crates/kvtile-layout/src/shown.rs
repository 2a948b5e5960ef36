//! Makes foreign text safe to display.
//!
//! Text from foreign files (the name of a model, a message about it, a file name) may hold control
//! characters that a terminal obeys, or marks that change the order of the surrounding text.
//! [`ShownText`] writes them as `\u{1b}` and leaves all other text unchanged.

use std::fmt::{self, Write};

/// Displays text with control characters (including line breaks) and invisible marks escaped.
#[derive(Clone, Copy, Debug)]
pub struct ShownText<'a>(pub &'a str);

impl fmt::Display for ShownText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match is_obeyed(character) {
                true => write!(f, "{}", character.escape_unicode())?,
                false => f.write_char(character)?,
            }
        }
        Ok(())
    }
}

impl ShownText<'_> {
    /// Whether the text needs no escape.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        !self.0.chars().any(is_obeyed)
    }
}

/// Whether a terminal obeys a character instead of showing it: control characters (C0, delete, C1),
/// line and paragraph separators, and the invisible marks of Unicode that change the order or the
/// look of the text around them (bidirectional marks, embeddings, overrides and isolates; joiners,
/// the word joiner and its operators, annotations, language tags).
fn is_obeyed(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{ad}'
                | '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_that_a_terminal_obeys_are_escaped_and_others_stay() {
        let shown = |character: char| ShownText(&format!("a{character}b")).to_string();
        for number in (0..0x20).chain(0x7f..0xa0) {
            let character = char::from_u32(number).unwrap();
            assert_eq!(shown(character), format!("a\\u{{{number:x}}}b"));
        }
        // The explicit directional characters of Unicode Standard Annex 9, section 2.
        for number in [0x61c, 0x200e, 0x200f]
            .into_iter()
            .chain(0x202a..0x202f)
            .chain(0x2066..0x206a)
        {
            let character = char::from_u32(number).unwrap();
            assert_eq!(shown(character), format!("a\\u{{{number:x}}}b"));
        }
        for plain in ["SmolLM2-135M", "模型 é \\ \"x\" 'y' 😀 עברית"] {
            assert_eq!(ShownText(plain).to_string(), plain);
        }
    }
}
