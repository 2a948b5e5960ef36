//! The settings of a tier within a cache.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{SettingsError, TierError};

/// When the cache writes host blocks to a tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TierWrites {
    /// On eviction from host memory.
    #[default]
    OnEviction,
    /// Right after the store.
    AtOnce,
    /// Once a block was found this number of times.
    AfterUses(u32),
    /// Not at all: the tier only reads.
    Never,
}

/// The settings of a tier within a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TierSettings {
    /// When host blocks are written to the tier (default: on eviction).
    pub writes: TierWrites,
    /// The time limit during closing for writes of blocks that are only in host memory (default 30
    /// s; 0 writes none).
    pub close_within: Duration,
    /// The time limit for a batch (default 30 s). A late read is a miss, a late write counts as
    /// failed, and the cache does not use the tier until a backoff has passed.
    pub answer_within: Duration,
}

impl Default for TierSettings {
    fn default() -> TierSettings {
        TierSettings {
            writes: TierWrites::default(),
            close_within: Duration::from_secs(30),
            answer_within: Duration::from_secs(30),
        }
    }
}

impl TierSettings {
    /// Sets when host blocks are written.
    #[must_use]
    pub fn writes(mut self, writes: TierWrites) -> TierSettings {
        self.writes = writes;
        self
    }

    /// Sets the time limit for closing.
    #[must_use]
    pub fn close_within(mut self, time: Duration) -> TierSettings {
        self.close_within = time;
        self
    }

    /// Sets the time limit for a batch.
    #[must_use]
    pub fn answer_within(mut self, time: Duration) -> TierSettings {
        self.answer_within = time;
        self
    }

    /// Refuses values out of range.
    pub(crate) fn check(&self) -> Result<(), TierError> {
        match self.writes {
            TierWrites::AfterUses(0) => Err(TierError::Settings(SettingsError::ZeroUses)),
            _ => Ok(()),
        }
    }
}
