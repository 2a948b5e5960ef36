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
    /// The folder. It is made where it is not there; one cache at a time may have it.
    pub folder: PathBuf,
    /// Bytes that the folder takes at most, all its files together: room for two blocks at least,
    /// for [`SLOTS_MAX`](super::SLOTS_MAX) at most.
    pub capacity_bytes: u64,
    /// Its name among the tiers of its cache (default `disk`): see
    /// [`TierId::new`](kvtile_blocks::events::TierId::new).
    #[serde(default)]
    pub name: Option<String>,
    /// When host blocks are written to it (default: when they are evicted).
    #[serde(default)]
    pub writes: TierWrites,
    /// Which stored block goes first (default: the learned leaf policy).
    #[serde(default)]
    pub policy: PolicyKind,
    /// How long closing the cache may take to write blocks that are only in host memory (default 30 s; with
    /// 0 it writes none). What there is no time for is lost, and the log says how much that is.
    #[serde(default = "close_within")]
    pub close_within: Duration,
    /// How long the cache waits for a batch (default 30 s). What comes later is a miss, and the disk is left
    /// alone for a while.
    #[serde(default = "answer_within")]
    pub answer_within: Duration,
}

impl DiskSettings {
    /// Written on eviction.
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
        }
    }

    /// What the cache does with it.
    #[must_use]
    pub fn tier(&self) -> TierSettings {
        TierSettings {
            writes: self.writes,
            close_within: self.close_within,
            answer_within: self.answer_within,
        }
    }
}

fn close_within() -> Duration {
    TierSettings::default().close_within
}

fn answer_within() -> Duration {
    TierSettings::default().answer_within
}
