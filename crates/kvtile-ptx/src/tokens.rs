//! Tokens of a PTX text: words, which may contain `.`, `%`, `$`, `_` and `::`, and single marks.

use crate::error::PtxTextError;

/// A token with its line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PtxToken<'a> {
    pub(crate) text: &'a str,
    pub(crate) line: u32,
}

/// Splits `text` into tokens, without comments and blanks.
pub(crate) fn tokens(text: &str) -> Vec<PtxToken<'_>> {
    let mut found = Vec::new();
    let (mut rest, mut line) = (text, 1u32);
    while let Some(first) = rest.chars().next() {
        let taken = match first {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |end| end + 2),
            _ if first.is_whitespace() => first.len_utf8(),
            _ => {
                let taken = word(rest).max(first.len_utf8());
                let (text, _) = rest.split_at(taken);
                found.push(PtxToken { text, line });
                taken
            }
        };
        let (passed, left) = rest.split_at(taken);
        let lines = passed.bytes().filter(|&b| b == b'\n').count();
        line = line.saturating_add(u32::try_from(lines).unwrap_or(u32::MAX));
        rest = left;
    }
    found
}

/// Bytes of the word at the start of `text`; 0 where there is none.
fn word(text: &str) -> usize {
    let mut bytes = 0;
    while let Some(rest) = text.get(bytes..) {
        let Some(next) = rest.chars().next() else {
            break;
        };
        bytes += match next {
            _ if next.is_ascii_alphanumeric() || matches!(next, '_' | '.' | '%' | '$') => 1,
            ':' if bytes > 0 && rest.starts_with("::") => 2,
            _ => break,
        };
    }
    bytes
}

/// The tokens that are left.
#[derive(Clone, Debug)]
pub(crate) struct PtxCursor<'a> {
    tokens: std::vec::IntoIter<PtxToken<'a>>,
    line: u32,
}

impl<'a> PtxCursor<'a> {
    pub(crate) fn new(text: &'a str) -> PtxCursor<'a> {
        PtxCursor {
            tokens: tokens(text).into_iter(),
            line: 1,
        }
    }

    /// The line of the last token.
    pub(crate) fn line(&self) -> u32 {
        self.line
    }

    pub(crate) fn peek(&self) -> Option<&'a str> {
        self.tokens.as_slice().first().map(|token| token.text)
    }

    /// The token after the next one.
    pub(crate) fn peek_second(&self) -> Option<&'a str> {
        self.tokens.as_slice().get(1).map(|token| token.text)
    }

    pub(crate) fn next(&mut self, expected: &'static str) -> Result<&'a str, PtxTextError> {
        match self.tokens.next() {
            Some(token) => {
                self.line = token.line;
                Ok(token.text)
            }
            None => Err(self.unexpected("", expected)),
        }
    }

    /// Takes the next token if it is `mark`.
    pub(crate) fn take(&mut self, mark: &str) -> bool {
        let is_next = self.peek() == Some(mark);
        if is_next && let Some(token) = self.tokens.next() {
            self.line = token.line;
        }
        is_next
    }

    pub(crate) fn expect(&mut self, mark: &'static str) -> Result<(), PtxTextError> {
        let found = self.next(mark)?;
        if found == mark {
            return Ok(());
        }
        Err(self.unexpected(found, mark))
    }

    /// A number without a sign.
    pub(crate) fn number(&mut self, expected: &'static str) -> Result<u64, PtxTextError> {
        let found = self.next(expected)?;
        number(found).ok_or_else(|| self.unexpected(found, expected))
    }

    /// A number of at most `max`.
    pub(crate) fn number_below(
        &mut self,
        what: &'static str,
        max: u64,
    ) -> Result<u64, PtxTextError> {
        let found = self.number(what)?;
        if found > max {
            return Err(PtxTextError::TooLarge {
                line: self.line,
                what,
                found,
                max,
            });
        }
        Ok(found)
    }

    pub(crate) fn unexpected(&self, found: &str, expected: &'static str) -> PtxTextError {
        PtxTextError::Unexpected {
            line: self.line,
            found: found.to_owned(),
            expected,
        }
    }
}

/// A decimal or hexadecimal number, with or without the suffix `U`.
pub(crate) fn number(text: &str) -> Option<u64> {
    let digits = text.strip_suffix('U').unwrap_or(text);
    match digits.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None if digits.bytes().all(|b| b.is_ascii_digit()) => digits.parse().ok(),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str) -> Vec<(&str, u32)> {
        tokens(text).into_iter().map(|t| (t.text, t.line)).collect()
    }

    #[test]
    fn words_marks_and_comments_are_told_apart() {
        assert_eq!(
            texts(
                "@!%p1 bra\t$L_0; // on\n/* a\nb */ ld.nc.L1::no_allocate.v2.u32 {%r1}, [%rd1+-8];"
            ),
            [
                ("@", 1),
                ("!", 1),
                ("%p1", 1),
                ("bra", 1),
                ("$L_0", 1),
                (";", 1),
                ("ld.nc.L1::no_allocate.v2.u32", 3),
                ("{", 3),
                ("%r1", 3),
                ("}", 3),
                (",", 3),
                ("[", 3),
                ("%rd1", 3),
                ("+", 3),
                ("-", 3),
                ("8", 3),
                ("]", 3),
                (";", 3)
            ]
        );
        assert_eq!(texts("a: b::"), [("a", 1), (":", 1), ("b::", 1)]);
        assert_eq!(texts("/* open"), []);
        assert_eq!(texts("\u{fc}/"), [("\u{fc}", 1), ("/", 1)]);
    }

    #[test]
    fn numbers_are_decimal_or_hexadecimal() {
        assert_eq!(number("0x5410U"), Some(0x5410));
        assert_eq!(number("12"), Some(12));
        assert_eq!(number("18446744073709551616"), None);
        assert_eq!(number("1a"), None);
        assert_eq!(number("0x"), None);
        assert_eq!(number(""), None);
    }
}
