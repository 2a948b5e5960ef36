//! The settings of a disk tier.

use std::{path::PathBuf, time::Duration};

use kvtile_blocks::policy::PolicyKind;
use serde::{Deserialize, Serialize};

use crate::tier::{TierSettings, TierWrites};

/// Settings of a disk tier.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct DiskSettings {
    /// The folder, created if it is missing. One cache at a time may write it; others may follow it
    /// ([`DiskFollower`](super::DiskFollower)).
    pub folder: PathBuf,
    /// The most bytes that all files of the folder may take: room for at least two blocks and for
    /// at most [`SLOTS_MAX`](super::SLOTS_MAX).
    pub capacity_bytes: u64,
    /// The tier's name in its cache (default `disk`): see
    /// [`TierId::new`](kvtile_blocks::events::TierId::new).
    #[serde(default)]
    pub name: Option<String>,
    /// When the cache writes host blocks to the tier (default: when it evicts them).
    #[serde(default)]
    pub writes: TierWrites,
    /// The policy that selects the block to evict (default: the learned leaf policy).
    #[serde(default)]
    pub policy: PolicyKind,
    /// How long closing the cache may take to write blocks that are only in host memory (default 30
    /// s; with 0 it writes none). Blocks that remain unwritten are lost, and the log reports how
    /// many.
    #[serde(default = "close_within")]
    pub close_within: Duration,
    /// The longest that the cache waits for a batch (default 30 s). A later completion counts as a
    /// miss, and the cache stops using the disk for a while.
    #[serde(default = "answer_within")]
    pub answer_within: Duration,
    /// The age of its index at which a [`DiskFollower`](super::DiskFollower) compares it with the
    /// folder again, when a lookup comes (default 100 ms). The cache that writes the folder ignores
    /// it.
    #[serde(default = "refresh_after")]
    pub refresh_after: Duration,
}

impl DiskSettings {
    /// Settings for a folder that is written on eviction.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>, capacity_bytes: u64) -> DiskSettings {
        DiskSettings {
            folder: folder.into(),
            capacity_bytes,
            name: None,
            writes: TierWrites::default(),
            policy: PolicyKind::default(),
            close_within: close_within(),
            answer_within: answer_within(),
            refresh_after: refresh_after(),
        }
    }

    /// The settings that the cache applies to the tier.
    #[must_use]
    pub fn tier(&self) -> TierSettings {
        TierSettings {
            writes: self.writes,
            close_within: self.close_within,
            answer_within: self.answer_within,
        }
    }

    /// The settings that the cache applies to the tier of a [`DiskFollower`](super::DiskFollower):
    /// as [`tier`](Self::tier), but the cache writes no blocks to it.
    #[must_use]
    pub fn follower(&self) -> TierSettings {
        self.tier().writes(TierWrites::Never)
    }

    /// Sets [`name`](Self::name).
    #[must_use]
    pub fn name(mut self, name: impl Into<Option<String>>) -> DiskSettings {
        self.name = name.into();
        self
    }

    /// Sets [`writes`](Self::writes).
    #[must_use]
    pub fn writes(mut self, writes: TierWrites) -> DiskSettings {
        self.writes = writes;
        self
    }

    /// Sets [`policy`](Self::policy).
    #[must_use]
    pub fn policy(mut self, policy: PolicyKind) -> DiskSettings {
        self.policy = policy;
        self
    }

    /// Sets [`close_within`](Self::close_within).
    #[must_use]
    pub fn close_within(mut self, close_within: Duration) -> DiskSettings {
        self.close_within = close_within;
        self
    }

    /// Sets [`answer_within`](Self::answer_within).
    #[must_use]
    pub fn answer_within(mut self, answer_within: Duration) -> DiskSettings {
        self.answer_within = answer_within;
        self
    }

    /// Sets [`refresh_after`](Self::refresh_after).
    #[must_use]
    pub fn refresh_after(mut self, refresh_after: Duration) -> DiskSettings {
        self.refresh_after = refresh_after;
        self
    }
}

fn close_within() -> Duration {
    TierSettings::default().close_within
}

fn answer_within() -> Duration {
    TierSettings::default().answer_within
}

fn refresh_after() -> Duration {
    Duration::from_millis(100)
}
