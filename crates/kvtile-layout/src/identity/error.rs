//! The errors of identities.

use thiserror::Error;

use crate::shape::PlaneName;

/// Why an identity, or a part of one, was refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// A text that is empty or too long.
    #[error("{field} has {bytes} bytes; it has 1 to {max}")]
    TextLength {
        /// The field, a dotted path.
        field: String,
        /// Its length in bytes.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// Too many entries.
    #[error("{field} has {count} entries; it has at most {max}")]
    TooManyEntries {
        /// The field, a dotted path.
        field: String,
        /// How many.
        count: usize,
        /// The limit.
        max: usize,
    },
    /// A number that is not finite.
    #[error("{value} is not a finite number")]
    NotFinite {
        /// The number as text.
        value: String,
    },
    /// A text that is no number.
    #[error("{text:?} is not a number")]
    NotANumber {
        /// The text.
        text: String,
    },
    /// A text that is no fingerprint.
    #[error("{text:?} is not a fingerprint, which is 32 hexadecimal digits")]
    NotAFingerprint {
        /// The text, cut to 64 characters.
        text: String,
    },
    /// A layout part that is not in canonical form.
    #[error("the layout part of plane {plane} is not in canonical form")]
    NotCanonical {
        /// The plane.
        plane: PlaneName,
    },
}
