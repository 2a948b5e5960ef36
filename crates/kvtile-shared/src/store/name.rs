//! The names of values.

use std::fmt;

/// The name of a value: 1 to 400 characters, which are lower-case letters, digits, `.`, `-`, `_`
/// and `/`. The parts between `/` are not empty and do not begin with `.`. So a name is a relative
/// path on every file system, and means the same on one that ignores case.
///
/// The last directory of the names of one tier is spread evenly over 256 values of two hexadecimal
/// digits.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueName(Box<str>);

/// A text that is not the name of a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} cannot name a value: use 1 to {} lower-case letters, digits and any of `.-_/`, without \
     empty parts and parts that begin with a dot",
    ValueName::BYTES_MAX
)]
pub struct InvalidValueName {
    /// The text.
    pub text: String,
}

impl ValueName {
    /// The longest name, in bytes.
    pub const BYTES_MAX: usize = 400;

    /// The name with this text.
    ///
    /// # Errors
    /// A text that is not a name.
    pub fn new(text: impl Into<Box<str>>) -> Result<ValueName, InvalidValueName> {
        let text = text.into();
        match is_name(&text) {
            true => Ok(ValueName(text)),
            false => Err(InvalidValueName { text: text.into() }),
        }
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_name(text: &str) -> bool {
    let is_allowed =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_/".contains(&byte);
    let is_part = |part: &str| !part.is_empty() && !part.starts_with('.');
    text.len() <= ValueName::BYTES_MAX
        && text.bytes().all(is_allowed)
        && text.split('/').all(is_part)
}

impl fmt::Display for ValueName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ValueName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ValueName").field(&self.as_str()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_relative_path_on_every_file_system() {
        for text in ["a", "kvt1/0f/ab.16", "a-b_c/d.e", &"a".repeat(400)] {
            assert_eq!(ValueName::new(text).unwrap().as_str(), text);
        }
        let long = "a".repeat(401);
        for text in [
            "", "/", "a/", "/a", "a//b", "..", "a/../b", ".a", "A", "a b", "ä", "a\\b", "a\0",
            &long,
        ] {
            let error = ValueName::new(text).unwrap_err();
            assert!(error.to_string().contains("400"), "{error}");
        }
    }
}
