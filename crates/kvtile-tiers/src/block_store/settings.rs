//! The settings of a block store.

use std::time::Duration;

use kvtile_layout::{Shape, Word, identity::Identity};

use crate::{
    cache::{DiskSettings, EVENT_CAPACITY_MAX, QUEUE_CAPACITY_MAX, WORKERS_MAX},
    error::{SettingsError, TierError},
    tier::TierWrites,
};

/// A group of blocks of one size in a block store.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct StoreGroup {
    /// The name, unique within the store.
    pub name: String,
    /// What the blocks mean. The store never serves blocks of another identity.
    pub identity: Identity,
    /// The shape of a block; its number of blocks is not used.
    pub shape: Shape,
    /// The order of stored blocks (default: [`STORAGE_WORD`](crate::tier::STORAGE_WORD)); a block
    /// must be one contiguous range.
    pub storage_word: Option<Word>,
    /// The share of the tiers' capacity, relative to the sum of all shares (default: as many blocks
    /// as each other group without a share).
    pub share: Option<f64>,
}

impl StoreGroup {
    /// A group with the default order.
    #[must_use]
    pub fn new(name: impl Into<String>, identity: Identity, shape: Shape) -> StoreGroup {
        StoreGroup {
            name: name.into(),
            identity,
            shape,
            storage_word: None,
            share: None,
        }
    }

    /// Sets [`storage_word`](Self::storage_word).
    #[must_use]
    pub fn storage_word(mut self, word: Word) -> StoreGroup {
        self.storage_word = Some(word);
        self
    }

    /// Sets [`share`](Self::share).
    #[must_use]
    pub fn share(mut self, share: f64) -> StoreGroup {
        self.share = Some(share);
        self
    }
}

/// The settings of a block store.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct BlockStoreSettings {
    /// The groups of blocks; at least one.
    pub groups: Vec<StoreGroup>,
    /// The disk tier (default: none). The store writes every block right after its store, so
    /// [`DiskSettings::writes`] has its default or is
    /// [`TierWrites::AtOnce`].
    pub disk: Option<DiskSettings>,
    /// Whether the store only reads (default no): it follows the folder of the disk, which another
    /// process may write at the same time ([`DiskFollower`](crate::disk::DiskFollower)). Stores fail. The
    /// groups are one then.
    pub read_only: bool,
    /// Bytes of memory for blocks that wait to be written, over all groups (default 256 MiB; at
    /// least two blocks for each group). Loads that permute use it too; stores leave one block of
    /// each group for them.
    pub staging_bytes: u64,
    /// How long a store waits for staging memory (default 10 s). It does not wait while all tiers
    /// are in a backoff after failed writes.
    pub stage_within: Duration,
    /// Threads that execute loads (default 2, 1 to [`WORKERS_MAX`]). One more thread executes
    /// stores.
    pub workers: usize,
    /// The most loads, and the most stores, that wait (default 4096; 1 to [`QUEUE_CAPACITY_MAX`]).
    pub queue_capacity: usize,
    /// Events that the log keeps for subscribers that lag (default 65,536; 1 to
    /// [`EVENT_CAPACITY_MAX`]).
    pub event_capacity: usize,
}

impl BlockStoreSettings {
    /// The defaults, without a disk.
    #[must_use]
    pub fn new(groups: Vec<StoreGroup>) -> BlockStoreSettings {
        BlockStoreSettings {
            groups,
            disk: None,
            read_only: false,
            staging_bytes: 256 << 20,
            stage_within: Duration::from_secs(10),
            workers: 2,
            queue_capacity: 4096,
            event_capacity: 1 << 16,
        }
    }

    /// Adds a disk tier.
    #[must_use]
    pub fn disk(mut self, disk: DiskSettings) -> BlockStoreSettings {
        self.disk = Some(disk);
        self
    }

    /// Sets [`read_only`](Self::read_only).
    #[must_use]
    pub fn read_only(mut self, read_only: bool) -> BlockStoreSettings {
        self.read_only = read_only;
        self
    }

    /// Sets [`staging_bytes`](Self::staging_bytes).
    #[must_use]
    pub fn staging_bytes(mut self, bytes: u64) -> BlockStoreSettings {
        self.staging_bytes = bytes;
        self
    }

    /// Sets [`stage_within`](Self::stage_within).
    #[must_use]
    pub fn stage_within(mut self, time: Duration) -> BlockStoreSettings {
        self.stage_within = time;
        self
    }

    /// Sets [`workers`](Self::workers).
    #[must_use]
    pub fn workers(mut self, workers: usize) -> BlockStoreSettings {
        self.workers = workers;
        self
    }

    /// Sets [`queue_capacity`](Self::queue_capacity).
    #[must_use]
    pub fn queue_capacity(mut self, jobs: usize) -> BlockStoreSettings {
        self.queue_capacity = jobs;
        self
    }

    /// Sets [`event_capacity`](Self::event_capacity).
    #[must_use]
    pub fn event_capacity(mut self, events: usize) -> BlockStoreSettings {
        self.event_capacity = events;
        self
    }

    /// Refuses values out of range.
    pub(super) fn check(&self) -> Result<(), TierError> {
        let ranges = [
            ("workers", self.workers, WORKERS_MAX),
            ("queue_capacity", self.queue_capacity, QUEUE_CAPACITY_MAX),
            ("event_capacity", self.event_capacity, EVENT_CAPACITY_MAX),
        ];
        for (setting, value, most) in ranges {
            if !(1..=most).contains(&value) {
                return Err(TierError::Settings(SettingsError::SettingOutOfRange {
                    setting,
                    value: value as u64,
                    least: 1,
                    most: most as u64,
                }));
            }
        }
        let writes = self.disk.as_ref().map(|disk| disk.writes);
        match writes {
            Some(TierWrites::AfterUses(_)) => Err(TierError::Settings(SettingsError::StoreWrites)),
            _ => Ok(()),
        }
    }
}
