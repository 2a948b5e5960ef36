//! Identity: everything that must be equal before stored bytes may be used.
//!
//! The logical part states the meaning of the values, the layout part their places. A copy plan can
//! convert between equal logical parts with different layout parts. Different logical parts are
//! refused with the first field that differs. Both parts have a fingerprint of 128 bits that is the
//! same in every process and on every machine.
//!
//! This module does not know which text a block belongs to: token hashes identify that.

mod canonical;
mod error;
mod fingerprint;
mod layout;
mod limits;
mod logical;
mod model;
mod real;
mod rope;

pub use canonical::Difference;
pub use error::IdentityError;
pub use fingerprint::Fingerprint;
pub use layout::{LayoutIdentity, LayoutScope};
pub use logical::Identity;
pub use model::{GROUPS_MAX, GroupName, GroupRole, ModelGroup, ModelIdentity};
pub use real::Real;
pub use rope::{Rope, RopeParam};
use serde::{Deserialize, Serialize};

/// Names the form of the whole identity and its version.
const CONTEXT: &str = "kvtile identity 1";

/// A logical part and a layout part: the full description of a physical layout or a stored block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockIdentity {
    /// The meaning of the values.
    pub logical: Identity,
    /// The places of the values.
    pub layout: LayoutIdentity,
}

impl BlockIdentity {
    /// The fingerprint of both parts together. Each part has its own as well.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.fields().fingerprint(CONTEXT)
    }

    /// The first field that differs, the logical part first; `None` exactly where the identities
    /// are equal.
    #[must_use]
    pub fn first_difference(&self, other: &BlockIdentity) -> Option<Difference> {
        self.fields()
            .differences(&other.fields())
            .into_iter()
            .next()
    }

    fn fields(&self) -> canonical::CanonicalFields {
        let mut fields = self.logical.fields();
        fields.append(self.layout.fields());
        fields
    }
}
