//! Finite numbers that compare by their bits.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::IdentityError;
use crate::error::LayoutError;

/// A finite 64-bit floating-point number, equal when its bits are; negative zero becomes zero.
///
/// It serialises as text, because some JSON readers round numbers and a rope base that changes by
/// one bit is another identity. It deserialises from text or from a number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "UncheckedReal", into = "String")]
pub struct Real(u64);

#[derive(Deserialize)]
#[serde(untagged)]
enum UncheckedReal {
    Number(f64),
    Text(String),
}

impl Real {
    /// Checks and takes a number.
    ///
    /// # Errors
    /// A number that is infinite or not a number.
    pub fn new(value: f64) -> Result<Real, LayoutError> {
        if !value.is_finite() {
            return Err(IdentityError::NotFinite {
                value: value.to_string(),
            }
            .into());
        }
        Ok(Real(if value == 0.0 { 0 } else { value.to_bits() }))
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> f64 {
        f64::from_bits(self.0)
    }

    /// Its bits.
    #[must_use]
    pub fn to_bits(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Real {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.get())
    }
}

impl fmt::Debug for Real {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl TryFrom<f64> for Real {
    type Error = LayoutError;

    fn try_from(value: f64) -> Result<Real, LayoutError> {
        Real::new(value)
    }
}

impl FromStr for Real {
    type Err = LayoutError;

    fn from_str(text: &str) -> Result<Real, LayoutError> {
        let value: f64 = text.parse().map_err(|_| IdentityError::NotANumber {
            text: text.chars().take(64).collect(),
        })?;
        Real::new(value)
    }
}

impl From<Real> for String {
    fn from(value: Real) -> String {
        value.to_string()
    }
}

impl TryFrom<UncheckedReal> for Real {
    type Error = LayoutError;

    fn try_from(value: UncheckedReal) -> Result<Real, LayoutError> {
        match value {
            UncheckedReal::Number(value) => Real::new(value),
            UncheckedReal::Text(text) => text.parse(),
        }
    }
}
