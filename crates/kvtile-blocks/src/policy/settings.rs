//! The choice of a policy, as plain data.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{AdaptiveReplacement, EvictionPolicy, Gittins, Lru, S3Fifo};
use crate::BlocksError;

/// The eviction policies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum PolicyKind {
    /// The learned policy over leaves.
    #[default]
    Gittins,
    /// Least recently used, the tail of a chain first.
    Lru,
    /// Adaptive replacement (ARC).
    Arc,
    /// S3-FIFO: a small and a main queue, with ghosts.
    S3Fifo,
}

impl PolicyKind {
    /// All of them, the default first.
    pub const ALL: [PolicyKind; 4] = [
        PolicyKind::Gittins,
        PolicyKind::Lru,
        PolicyKind::Arc,
        PolicyKind::S3Fifo,
    ];

    /// The policy's name, as in settings and tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            PolicyKind::Gittins => "gittins",
            PolicyKind::Lru => "lru",
            PolicyKind::Arc => "arc",
            PolicyKind::S3Fifo => "s3-fifo",
        }
    }
}

impl fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for PolicyKind {
    type Err = BlocksError;

    /// # Errors
    /// [`BlocksError::UnknownPolicy`] for any other name.
    fn from_str(name: &str) -> Result<PolicyKind, BlocksError> {
        let known = PolicyKind::ALL.into_iter().find(|kind| kind.name() == name);
        known.ok_or_else(|| BlocksError::UnknownPolicy {
            name: name.to_owned(),
        })
    }
}

/// The choice of the eviction policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolicySettings {
    /// Which policy.
    pub kind: PolicyKind,
}

impl PolicySettings {
    /// Builds the policy for a pool of `blocks` blocks.
    #[must_use]
    pub fn build(&self, blocks: u32) -> Box<dyn EvictionPolicy> {
        match self.kind {
            PolicyKind::Gittins => Box::new(Gittins::new(blocks)),
            PolicyKind::Lru => Box::new(Lru::new(blocks)),
            PolicyKind::Arc => Box::new(AdaptiveReplacement::new(blocks)),
            PolicyKind::S3Fifo => Box::new(S3Fifo::new(blocks)),
        }
    }
}

impl From<PolicyKind> for PolicySettings {
    fn from(kind: PolicyKind) -> PolicySettings {
        PolicySettings { kind }
    }
}
