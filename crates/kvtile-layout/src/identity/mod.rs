//! Identity: everything that must be equal before stored bytes may be used.
//!
//! The logical part says what the values mean, the layout part where they lie. Equal logical parts
//! with different layout parts can be converted into each other by a copy plan; different logical
//! parts are refused by the name of the first field that differs. Both have a fingerprint of 128
//! bits that is the same in every process and on every machine.
//!
//! This module does not know blocks of tokens: which text a block belongs to is the business of
//! token hashes.

mod canonical;
mod error;
mod fingerprint;
mod layout;
mod limits;
mod logical;
mod real;
mod rope;

pub use canonical::Difference;
pub use error::IdentityError;
pub use fingerprint::Fingerprint;
pub use layout::{LayoutIdentity, LayoutScope};
pub use logical::LogicalIdentity;
pub use real::Real;
pub use rope::{Rope, RopeParam};
use serde::{Deserialize, Serialize};

/// Names the form of the whole identity and its version.
const CONTEXT: &str = "kvtile identity 1";

/// A logical part and a layout part: what a physical layout or a stored block is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// What the values mean.
    pub logical: LogicalIdentity,
    /// Where they lie.
    pub layout: LayoutIdentity,
}

impl Identity {
    /// The fingerprint of both parts together. Each part has its own as well.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.fields().fingerprint(CONTEXT)
    }

    /// The first field that differs, the logical part first; `None` exactly where both are equal.
    #[must_use]
    pub fn first_difference(&self, other: &Identity) -> Option<Difference> {
        self.fields()
            .differences(&other.fields())
            .into_iter()
            .next()
    }

    fn fields(&self) -> canonical::Fields {
        let mut fields = self.logical.fields();
        fields.append(self.layout.fields());
        fields
    }
}
