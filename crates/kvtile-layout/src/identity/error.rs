//! The errors of identities.

use thiserror::Error;

use super::GroupName;
use crate::shape::{LayerSet, PlaneName};

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
    /// A text that is no name of a group.
    #[error(
        "{name:?} is not a name of a group: 1 to 64 characters of a-z 0-9 _ -, the first one a letter"
    )]
    GroupName {
        /// The text, cut to 64 characters.
        name: String,
    },
    /// Two groups of one name.
    #[error("two groups are called {group}; give each its own name")]
    GroupTwice {
        /// The name.
        group: GroupName,
    },
    /// A model without groups of its own.
    #[error(
        "{count} groups, and none is of the model itself; give at least one group with the role target"
    )]
    NoTargetGroup {
        /// How many groups, all of drafters.
        count: usize,
    },
    /// A set of layers of another size than the shape's.
    #[error(
        "group {group} has {count} layers ({layers}), and its shape is a part of {total}; total_layers of the shape is \
         the number of the group's layers in all parts"
    )]
    GroupLayers {
        /// The group.
        group: GroupName,
        /// The layers.
        layers: LayerSet,
        /// How many they are.
        count: u64,
        /// Layers of the shape in all parts.
        total: u64,
    },
    /// An entry that the identities of groups have.
    #[error("extra.{key}: names that begin with \"group.\" are of the groups; choose another name")]
    ReservedExtra {
        /// The name.
        key: String,
    },
    /// Both groups and the fields of a model without groups, or not all of the latter.
    #[error(
        "an identity has either groups, or page_size, planes and shard; it has no other fields of these"
    )]
    GroupsOrPlanes,
}
