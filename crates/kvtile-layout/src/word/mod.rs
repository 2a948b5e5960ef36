//! Words: the layout language.
//!
//! ```text
//! word  := item+
//! item  := AXIS [modulus] ['@' bytes | '=' bytes]
//!        | '(' word {',' word} ')'       parts lie side by side
//!        | plane                         the items after it are for this plane only
//!        | '|'                           the items left of it enumerate regions
//! ```
//!
//! Axes go from slowest to fastest; axes multiply, parentheses add, a number is a modulus. A word
//! is syntax only: [`StridedLayout::resolve`](crate::StridedLayout::resolve) combines it with a
//! [`Shape`](crate::Shape) to get strides.

mod long_form;
mod parse;

use std::{fmt, str::FromStr};

pub use parse::ParseError;
use serde::{Deserialize, Serialize};

use crate::{axis::Axis, shape::PlaneName};

/// Longest word, in characters.
pub const WORD_CHARS_MAX: usize = 1024;

/// Deepest nesting of parentheses.
pub const WORD_DEPTH_MAX: usize = 16;

/// A layout in the layout language, parsed: axes from slowest to fastest.
///
/// ```
/// use kvtile_layout::Word;
///
/// let word: Word = "L|BH(kCN,vNC)".parse()?;
/// assert_eq!(word.to_string(), "L|BH(kCN,vNC)");
/// assert_eq!(
///     word.long_form(),
///     "per layer: block, head, then k: content, token; v: token, content"
/// );
/// # Ok::<(), kvtile_layout::ParseError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Word {
    items: Vec<WordItem>,
}

/// One item of a [`Word`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum WordItem {
    /// An axis, or one digit of it.
    Axis(AxisItem),
    /// Parts that lie side by side, each followed by the items after the parenthesis.
    Sum(Vec<Word>),
    /// The items after it are for this plane only.
    Plane(PlaneName),
    /// The items left of it enumerate regions.
    Bar,
}

/// An axis in a word, with its modulus and its stride rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AxisItem {
    /// The axis.
    pub axis: Axis,
    /// `None` for the slowest digit, else the digit is `index % modulus` over the next smaller
    /// modulus.
    pub modulus: Option<u64>,
    /// The rounding or the fixed value of the stride.
    pub rule: Option<StrideRule>,
}

/// How the stride of an axis differs from the size of the items right of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StrideRule {
    /// `@n`: rounded up to a multiple of n bytes.
    RoundUp(u64),
    /// `=n`: n bytes.
    Fixed(u64),
}

impl Word {
    /// Parses `text`.
    ///
    /// # Errors
    /// A [`ParseError`] that points at the character.
    pub fn parse(text: &str) -> Result<Word, ParseError> {
        parse::parse(text)
    }

    /// The items, slowest first.
    #[must_use]
    pub fn items(&self) -> &[WordItem] {
        &self.items
    }

    /// The word in plain English.
    #[must_use]
    pub fn long_form(&self) -> String {
        long_form::long_form(self)
    }

    /// Whether the word enumerates regions.
    #[must_use]
    pub fn has_regions(&self) -> bool {
        self.items.iter().any(|item| match item {
            WordItem::Bar => true,
            WordItem::Sum(parts) => parts.iter().any(Word::has_regions),
            WordItem::Axis(_) | WordItem::Plane(_) => false,
        })
    }

    /// Whether the word names `plane`.
    #[must_use]
    pub fn names(&self, plane: &PlaneName) -> bool {
        self.items.iter().any(|item| match item {
            WordItem::Plane(name) => name == plane,
            WordItem::Sum(parts) => parts.iter().any(|part| part.names(plane)),
            WordItem::Axis(_) | WordItem::Bar => false,
        })
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for item in &self.items {
            match item {
                WordItem::Axis(axis) => write!(f, "{axis}")?,
                WordItem::Bar => f.write_str("|")?,
                WordItem::Plane(name) => write!(f, "{name}")?,
                WordItem::Sum(parts) => {
                    for (j, part) in parts.iter().enumerate() {
                        f.write_str(if j == 0 { "(" } else { "," })?;
                        write!(f, "{part}")?;
                    }
                    f.write_str(")")?;
                }
            }
        }
        Ok(())
    }
}

impl fmt::Display for AxisItem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.axis)?;
        if let Some(modulus) = self.modulus {
            write!(f, "{modulus}")?;
        }
        match self.rule {
            Some(StrideRule::RoundUp(bytes)) => write!(f, "@{bytes}"),
            Some(StrideRule::Fixed(bytes)) => write!(f, "={bytes}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Word {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Word, ParseError> {
        Word::parse(text)
    }
}

impl TryFrom<String> for Word {
    type Error = ParseError;

    fn try_from(text: String) -> Result<Word, ParseError> {
        Word::parse(&text)
    }
}

impl From<Word> for String {
    fn from(word: Word) -> String {
        word.to_string()
    }
}
