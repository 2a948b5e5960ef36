//! Splits text into the words inside which merges happen, like the `smollm` pre-tokenizer: every
//! digit is a word, and a regular expression splits the text between digits:
//!
//! ```text
//! 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
//! ```
//!
//! The first alternative that matches at each position wins.

use unicode_properties::{GeneralCategoryGroup, UnicodeGeneralCategory};

const CONTRACTIONS: [&str; 7] = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CharClass {
    Letter,
    Number,
    Space,
    Other,
}

impl CharClass {
    fn of(character: char) -> Self {
        if character.is_whitespace() {
            return Self::Space;
        }
        match character.general_category_group() {
            GeneralCategoryGroup::Letter => Self::Letter,
            GeneralCategoryGroup::Number => Self::Number,
            _ => Self::Other,
        }
    }
}

/// The words of `text`; concatenated they equal the text.
pub(super) fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (word, after) = rest.split_at_checked(word_bytes(rest))?;
        rest = after;
        (!word.is_empty()).then_some(word)
    })
}

/// Bytes of the word at the start of `text`.
fn word_bytes(text: &str) -> usize {
    let Some(first) = text.chars().next() else {
        return 0;
    };
    if CharClass::of(first) == CharClass::Number {
        return first.len_utf8();
    }
    if let Some(contraction) = CONTRACTIONS
        .iter()
        .find(|suffix| text.starts_with(**suffix))
    {
        return contraction.len();
    }
    let space = if first == ' ' { 1 } else { 0 };
    let after = text.get(space..).unwrap_or_default();
    match after.chars().next().map(CharClass::of) {
        Some(class @ (CharClass::Letter | CharClass::Other)) => space + run_bytes(after, class),
        _ => spaces_bytes(text),
    }
}

/// Bytes of the characters of one class at the start of `text`.
fn run_bytes(text: &str, class: CharClass) -> usize {
    text.find(|character| CharClass::of(character) != class)
        .unwrap_or(text.len())
}

/// Bytes of a word of white space: the whole run before a digit or the end, otherwise all but its
/// last character, which belongs to the next word.
fn spaces_bytes(text: &str) -> usize {
    let all = run_bytes(text, CharClass::Space);
    let (spaces, after) = text.split_at_checked(all).unwrap_or((text, ""));
    let joins = after
        .chars()
        .next()
        .is_some_and(|next| CharClass::of(next) != CharClass::Number);
    let last = spaces.chars().next_back().map_or(0, char::len_utf8);
    if joins && last < all { all - last } else { all }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &str) -> Vec<&str> {
        let found: Vec<_> = words(text).collect();
        assert_eq!(found.concat(), text);
        found
    }

    #[test]
    fn words_take_one_space_before_them() {
        assert_eq!(split("a  b\n c"), ["a", " ", " b", "\n", " c"]);
        assert_eq!(split("  \n"), ["  \n"]);
        assert_eq!(split("\u{a0}x"), ["\u{a0}", "x"]);
    }

    #[test]
    fn digits_stand_alone_and_spaces_before_them_stay_together() {
        assert_eq!(
            split("in 2024, x1½"),
            ["in", " ", "2", "0", "2", "4", ",", " x", "1", "½"]
        );
        assert_eq!(split("a   7"), ["a", "   ", "7"]);
    }

    #[test]
    fn contractions_are_words_of_their_own() {
        assert_eq!(
            split("it's we'll 'tis I'M"),
            ["it", "'s", " we", "'ll", " '", "tis", " I", "'", "M"]
        );
    }

    #[test]
    fn marks_and_symbols_are_neither_letters_nor_numbers() {
        assert_eq!(split("e\u{301}a 🙂!?"), ["e", "\u{301}", "a", " 🙂!?"]);
    }
}
