//! The parser of the layout language. Its errors give the offset of the character.

use std::{fmt, iter::Peekable, str::CharIndices};

use super::{AxisItem, StrideRule, WORD_CHARS_MAX, WORD_DEPTH_MAX, Word, WordItem};
use crate::{axis::Axis, shape::PlaneName};

/// Why and where a text is not a word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    text: String,
    at: usize,
    problem: String,
}

impl ParseError {
    fn new(text: &str, at: usize, problem: impl Into<String>) -> ParseError {
        ParseError {
            text: text.chars().take(WORD_CHARS_MAX).collect(),
            at,
            problem: problem.into(),
        }
    }

    /// Byte offset of the wrong character; the length of the text where its end is missing.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.at
    }

    /// The problem, without the marked text.
    #[must_use]
    pub fn problem(&self) -> &str {
        &self.problem
    }
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let column = self
            .text
            .char_indices()
            .take_while(|(i, _)| *i < self.at)
            .count();
        writeln!(f, "{}", self.problem)?;
        writeln!(f, "  {}", self.text)?;
        write!(f, "  {:column$}^", "")
    }
}

impl std::error::Error for ParseError {}

pub(super) fn parse(text: &str) -> Result<Word, ParseError> {
    if text.chars().count() > WORD_CHARS_MAX {
        let problem = format!("a word has at most {WORD_CHARS_MAX} characters");
        return Err(ParseError::new(text, WORD_CHARS_MAX, problem));
    }
    let mut parser = WordParser {
        text,
        chars: text.char_indices().peekable(),
    };
    let word = parser.word(0)?;
    match parser.chars.next() {
        None => Ok(word),
        Some((at, ')')) => Err(parser.error(at, "this ')' closes nothing")),
        Some((at, ',')) => Err(parser.error(at, "a comma separates parts inside parentheses only")),
        Some((at, other)) => Err(parser.unexpected(at, other)),
    }
}

struct WordParser<'a> {
    text: &'a str,
    chars: Peekable<CharIndices<'a>>,
}

impl WordParser<'_> {
    fn error(&self, at: usize, problem: impl Into<String>) -> ParseError {
        ParseError::new(self.text, at, problem)
    }

    fn unexpected(&self, at: usize, found: char) -> ParseError {
        let hint = match found {
            '0'..='9' => "a number follows an axis (its modulus), '@' or '='",
            '@' | '=' => "a stride rule follows an axis",
            c if c.is_whitespace() => "words have no spaces",
            _ => "a word is made of axes A-Z, planes a-z, numbers, '@', '=', '(', ',', ')' and '|'",
        };
        self.error(at, format!("unexpected {found:?}: {hint}"))
    }

    fn word(&mut self, depth: usize) -> Result<Word, ParseError> {
        let mut items = Vec::new();
        while let Some(&(at, c)) = self.chars.peek() {
            let item = match c {
                'A'..='Z' => self.axis()?,
                'a'..='z' => self.plane(at)?,
                '(' => self.sum(at, depth)?,
                '|' => {
                    self.chars.next();
                    if items.contains(&WordItem::Bar) {
                        return Err(self.error(at, "a second '|' on the same path"));
                    }
                    WordItem::Bar
                }
                ',' | ')' => break,
                other => return Err(self.unexpected(at, other)),
            };
            items.push(item);
        }
        if items.is_empty() {
            let at = self.chars.peek().map_or(self.text.len(), |(at, _)| *at);
            let what = if depth == 0 { "the word" } else { "this part" };
            return Err(self.error(at, format!("{what} is empty")));
        }
        Ok(Word { items })
    }

    fn axis(&mut self) -> Result<WordItem, ParseError> {
        let Some((at, letter)) = self.chars.next() else {
            return Err(self.error(self.text.len(), "an axis is missing"));
        };
        let Some(axis) = Axis::new(letter) else {
            return Err(self.unexpected(at, letter));
        };
        let modulus = match self.chars.peek() {
            Some(&(at, '0'..='9')) => {
                let modulus = self.number("the modulus")?;
                if modulus < 2 {
                    return Err(self.error(at, "a modulus is at least 2"));
                }
                if axis == Axis::K {
                    return Err(self.error(at, "planes are not numbers: K takes no modulus"));
                }
                Some(modulus)
            }
            _ => None,
        };
        let rule = match self.chars.peek() {
            Some(&(at, sign @ ('@' | '='))) => {
                self.chars.next();
                let bytes = self.number("the number of bytes")?;
                if bytes == 0 {
                    return Err(self.error(at, "a stride of 0 bytes"));
                }
                Some(if sign == '@' {
                    StrideRule::RoundUp(bytes)
                } else {
                    StrideRule::Fixed(bytes)
                })
            }
            _ => None,
        };
        Ok(WordItem::Axis(AxisItem {
            axis,
            modulus,
            rule,
        }))
    }

    fn number(&mut self, what: &str) -> Result<u64, ParseError> {
        let start = self.chars.peek().map_or(self.text.len(), |(at, _)| *at);
        let mut value = None;
        while let Some(&(at, digit)) = self.chars.peek() {
            let Some(digit) = digit.to_digit(10) else {
                break;
            };
            if value == Some(0u64) {
                return Err(self.error(start, format!("{what} starts with 0")));
            }
            value = value
                .unwrap_or(0)
                .checked_mul(10)
                .and_then(|v| v.checked_add(u64::from(digit)));
            if value.is_none_or(|v| v > i64::MAX.unsigned_abs()) {
                return Err(self.error(at, format!("{what} is too large")));
            }
            self.chars.next();
        }
        value.ok_or_else(|| self.error(start, format!("{what} is missing")))
    }

    fn plane(&mut self, at: usize) -> Result<WordItem, ParseError> {
        let mut name = String::new();
        while let Some((_, c @ 'a'..='z')) = self.chars.peek() {
            name.push(*c);
            self.chars.next();
        }
        PlaneName::new(&name)
            .map(WordItem::Plane)
            .map_err(|error| self.error(at, error.to_string()))
    }

    fn sum(&mut self, open: usize, depth: usize) -> Result<WordItem, ParseError> {
        if depth == WORD_DEPTH_MAX {
            let problem = format!("parentheses nest at most {WORD_DEPTH_MAX} deep");
            return Err(self.error(open, problem));
        }
        let mut parts = Vec::new();
        loop {
            self.chars.next();
            parts.push(self.word(depth + 1)?);
            match self.chars.peek() {
                Some((_, ',')) => {}
                Some((_, ')')) => {
                    self.chars.next();
                    return Ok(WordItem::Sum(parts));
                }
                _ => return Err(self.error(open, "this '(' is never closed")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(text: &str) -> (usize, String) {
        let error = parse(text).unwrap_err();
        (error.offset(), error.problem().to_owned())
    }

    #[test]
    fn errors_point_at_the_character() {
        for (text, at, part) in [
            ("", 0, "empty"),
            ("BL?N", 2, "unexpected '?'"),
            ("BL NHC", 2, "no spaces"),
            ("B(kN,)C", 5, "this part is empty"),
            ("B(kN,vN", 1, "never closed"),
            ("BN)C", 2, "closes nothing"),
            ("BN,C", 2, "inside parentheses"),
            ("L|B|N", 3, "second '|'"),
            ("BN0C", 2, "at least 2"),
            ("BN016C", 2, "starts with 0"),
            ("BN@", 3, "is missing"),
            ("BN@0", 2, "stride of 0"),
            ("BK2", 2, "takes no modulus"),
            ("16N", 0, "follows an axis"),
            ("BN99999999999999999999", 20, "too large"),
            ("BÄ", 1, "unexpected 'Ä'"),
        ] {
            let (offset, problem) = failure(text);
            assert_eq!(offset, at, "{text}: {problem}");
            assert!(problem.contains(part), "{text}: {problem}");
        }
    }

    #[test]
    fn the_picture_has_the_caret_under_the_character() {
        let error = parse("BL?N").unwrap_err();
        assert!(error.to_string().ends_with("\n  BL?N\n    ^"), "{error}");
    }

    #[test]
    fn hostile_words_are_refused_without_deep_recursion() {
        assert!(parse(&"(".repeat(1_000)).is_err());
        assert!(parse(&"B".repeat(2_000)).is_err());
    }

    #[test]
    fn words_print_as_they_were_written() {
        for text in [
            "BLKNHC",
            "L|BH(kNCN16C2,vCNC16N2)",
            "(|BL(k,v)HNC,|BL(ks,vs)HNC)",
            "L|B@576(N(c,r)C,sNC)",
            "L|K=4096BNHC",
            "L(k|BNHC,v|HCBN)",
        ] {
            assert_eq!(parse(text).unwrap().to_string(), text);
        }
    }
}
