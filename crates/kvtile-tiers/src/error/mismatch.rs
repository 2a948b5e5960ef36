//! A layout or a folder that belongs to another identity.

use kvtile_layout::identity::{Difference, Fingerprint};
use thiserror::Error;

/// A layout or a folder that belongs to another identity.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum MismatchError {
    /// The shape of the engine's layout does not match the identity.
    #[error("the layout is not of this identity: {difference}")]
    IdentityDiffers {
        /// The first field that differs.
        difference: Difference,
    },
    /// The engine's layout was made for another identity.
    #[error(
        "the engine's layout was made for the identity {theirs}, the settings have {ours}; give \
         both the same"
    )]
    EngineDiffers {
        /// The fingerprint of the settings' identity.
        ours: Fingerprint,
        /// The fingerprint that the layout carries.
        theirs: Fingerprint,
    },
    /// A folder of another identity, layout or block size. The folder is unchanged.
    #[error("{folder} belongs to another cache: {difference}; give another folder or clear it")]
    FolderDiffers {
        /// The folder.
        folder: String,
        /// The first field that differs.
        difference: Difference,
    },
    /// A folder of other groups. The folder is unchanged.
    #[error(
        "{folder} keeps {}, and the cache has {}; give the same groups under the same names in the \
         same order, or another folder, or clear it",
        list(.theirs), list(.ours)
    )]
    GroupsDiffer {
        /// The folder.
        folder: String,
        /// The names of the requested groups.
        ours: Vec<String>,
        /// The names of the folder's groups; empty if the folder has one group, which has no name.
        theirs: Vec<String>,
    },
}

/// The names of groups, for messages.
pub(super) fn list(names: &[String]) -> String {
    match names {
        [] => "one group without a name".to_owned(),
        [name] => format!("the group {name}"),
        names => format!("the groups {}", names.join(", ")),
    }
}
