//! The axes of a KV cache and their one-letter names.
//!
//! This module knows the letters and their common names. It knows no extents: a
//! [`Shape`](crate::Shape) holds those.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An axis of a layout: one upper-case letter.
///
/// Six letters have a fixed meaning ([`Axis::B`], [`Axis::L`], [`Axis::K`],
/// [`Axis::N`], [`Axis::H`], [`Axis::C`]); a shape may declare further ones.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "char", into = "char")]
pub struct Axis(u8);

impl Axis {
    /// Block.
    pub const B: Axis = Axis(b'B');
    /// Layer.
    pub const L: Axis = Axis(b'L');
    /// Plane: the sum over the components of a layer (K and V, latent and rope part, scales).
    pub const K: Axis = Axis(b'K');
    /// Token slot inside a block.
    pub const N: Axis = Axis(b'N');
    /// KV head.
    pub const H: Axis = Axis(b'H');
    /// Content: the units of one head of one token.
    pub const C: Axis = Axis(b'C');

    /// The axis named by `letter`, or `None` unless it is one of `A` to `Z`.
    #[must_use]
    pub fn new(letter: char) -> Option<Axis> {
        u8::try_from(letter)
            .ok()
            .filter(u8::is_ascii_uppercase)
            .map(Axis)
    }

    /// The letter of this axis.
    #[must_use]
    pub fn letter(self) -> char {
        char::from(self.0)
    }

    /// Whether every shape has this axis without declaring it: B, L, K, N, H or C.
    #[must_use]
    pub fn is_standard(self) -> bool {
        matches!(
            self,
            Axis::B | Axis::L | Axis::K | Axis::N | Axis::H | Axis::C
        )
    }

    /// The common name of this axis, for instance `token` for N; for a declared axis its letter.
    #[must_use]
    pub fn long_name(self) -> String {
        match self {
            Axis::B => "block".to_owned(),
            Axis::L => "layer".to_owned(),
            Axis::K => "plane".to_owned(),
            Axis::N => "token".to_owned(),
            Axis::H => "head".to_owned(),
            Axis::C => "content".to_owned(),
            other => other.letter().to_string(),
        }
    }
}

/// Letters that other projects give to axes which have another letter here.
const FOREIGN: [(char, &str, Axis); 5] = [
    ('D', "head size", Axis::C),
    ('S', "slot or sequence", Axis::N),
    ('T', "token", Axis::N),
    ('P', "page", Axis::B),
    ('V', "value", Axis::K),
];

/// The meaning of a letter that is not standard here: its name in other projects and the axis here.
pub(crate) fn foreign(axis: Axis) -> Option<(&'static str, Axis)> {
    let found = FOREIGN.iter().find(|(letter, ..)| *letter == axis.letter());
    found.map(|(_, name, here)| (*name, *here))
}

impl fmt::Display for Axis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.letter())
    }
}

impl fmt::Debug for Axis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.letter())
    }
}

impl From<Axis> for char {
    fn from(axis: Axis) -> char {
        axis.letter()
    }
}

impl TryFrom<char> for Axis {
    type Error = String;

    fn try_from(letter: char) -> Result<Self, String> {
        Axis::new(letter).ok_or_else(|| format!("axis {letter:?} is not one of A to Z"))
    }
}
