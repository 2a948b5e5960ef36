//! Fingerprints: 128 bits of a canonical form.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::IdentityError;
use crate::error::LayoutError;

/// 128 bits of the BLAKE3 hash of a canonical form, keyed by the context that names the form.
///
/// It is the same in every process, on every machine and in every build that knows the same
/// version of the form. As text: 32 lower-case hexadecimal digits, fit for file names.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fingerprint([u8; 16]);

impl Fingerprint {
    /// A fingerprint with these bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> Fingerprint {
        Fingerprint(bytes)
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for Fingerprint {
    type Err = LayoutError;

    fn from_str(text: &str) -> Result<Fingerprint, LayoutError> {
        let digits = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
        match u128::from_str_radix(text, 16) {
            Ok(value) if digits => Ok(Fingerprint(value.to_be_bytes())),
            _ => Err(IdentityError::NotAFingerprint {
                text: text.chars().take(64).collect(),
            }
            .into()),
        }
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> String {
        fingerprint.to_string()
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = LayoutError;

    fn try_from(text: String) -> Result<Fingerprint, LayoutError> {
        text.parse()
    }
}
