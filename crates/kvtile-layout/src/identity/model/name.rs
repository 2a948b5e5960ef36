//! Names of groups.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::super::IdentityError;
use crate::error::LayoutError;

/// Longest name of a group, in bytes.
const NAME_BYTES_MAX: usize = 64;

/// The name of a group of layers: `full`, `window`, `state`. It is of kvtile's own choice and never an engine's index of a
/// group, because engines number their groups anew where a drafter or a stage of a pipeline changes them.
///
/// It is 1 to 64 characters of `a-z 0-9 _ -` and begins with a letter, so it is also a name of a folder.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GroupName(String);

impl GroupName {
    /// Checks and takes a name.
    ///
    /// # Errors
    /// A name of other characters or another length.
    pub fn new(name: &str) -> Result<GroupName, LayoutError> {
        let known = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-';
        let first = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
        if !first || name.len() > NAME_BYTES_MAX || !name.bytes().all(known) {
            return Err(IdentityError::GroupName {
                name: name.chars().take(NAME_BYTES_MAX).collect(),
            }
            .into());
        }
        Ok(GroupName(name.to_owned()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<GroupName> for String {
    fn from(name: GroupName) -> String {
        name.0
    }
}

impl TryFrom<String> for GroupName {
    type Error = LayoutError;

    fn try_from(name: String) -> Result<GroupName, LayoutError> {
        GroupName::new(&name)
    }
}
