//! What a cache does with a tier.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::TierError;

/// When host blocks are written to a tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TierWrites {
    /// When they have to leave host memory.
    #[default]
    OnEviction,
    /// As soon as they are stored.
    AtOnce,
    /// When they were found so many times.
    AfterUses(u32),
}

/// What a cache does with one of its tiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TierSettings {
    /// When host blocks are written to it (default: when they are evicted).
    pub writes: TierWrites,
    /// How long closing the cache may take to write blocks to it that are only in host memory (default 30 s;
    /// with 0 it writes none).
    pub close_within: Duration,
    /// How long the cache waits for a batch (default 30 s). What comes later is a miss, or counts as not
    /// written, and the tier is left alone for a while.
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
    /// With other times of writing.
    #[must_use]
    pub fn writes(mut self, writes: TierWrites) -> TierSettings {
        self.writes = writes;
        self
    }

    /// With so much time for closing.
    #[must_use]
    pub fn close_within(mut self, time: Duration) -> TierSettings {
        self.close_within = time;
        self
    }

    /// With so much time for each batch.
    #[must_use]
    pub fn answer_within(mut self, time: Duration) -> TierSettings {
        self.answer_within = time;
        self
    }

    /// Refuses values that mean nothing.
    pub(crate) fn check(&self) -> Result<(), TierError> {
        match self.writes {
            TierWrites::AfterUses(0) => Err(TierError::ZeroUses),
            _ => Ok(()),
        }
    }
}
