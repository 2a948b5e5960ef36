//! The settings of a cache: plain, serializable values with defaults.

use std::{num::NonZeroUsize, path::PathBuf, time::Duration};

use kvtile_blocks::{policy::PolicyKind, pool::TenantQuota};
use kvtile_layout::{Word, identity::Identity};
use serde::{Deserialize, Serialize};

use crate::{
    disk::DiskSettings,
    error::{SettingsError, TierError},
    tier::TierWrites,
};

/// Default size of host memory: 1 GiB.
const HOST_BYTES: u64 = 1 << 30;

/// The largest size of host memory: 64 TiB.
pub const HOST_BYTES_MAX: u64 = 1 << 46;

/// The largest number of worker threads.
pub const WORKERS_MAX: usize = 1024;

/// The largest queue capacity.
pub const QUEUE_CAPACITY_MAX: usize = 1 << 24;

/// The largest number of events that the log keeps. It allocates them when the cache opens.
pub const EVENT_CAPACITY_MAX: usize = 1 << 24;

/// The largest number of tenants with a quota; each has its own policy over all blocks.
pub const QUOTAS_MAX: usize = 1024;

/// Settings of a [`Cache`](super::Cache).
///
/// ```
/// # use kvtile_layout::{Shape, Unit, identity::Identity};
/// use kvtile_tiers::cache::CacheSettings;
///
/// # let shape = Shape::key_value(8, 2, 16, 2, 64, Unit::new("bf16", 2, 1)?)?;
/// let identity = Identity::new("a-model", "main", &shape)?;
/// let settings = CacheSettings::new(identity).host_bytes(256 << 20).disk("cache", 1 << 30);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct CacheSettings {
    /// What the blocks mean. The cache never serves blocks of another identity.
    pub identity: Identity,
    /// Bytes of host memory for blocks (default 1 GiB, at most [`HOST_BYTES_MAX`], at least one
    /// block). A block takes whole pages of 4,096 bytes. For each tier below, the cache allocates
    /// one more block, for reads from the tier while all others are in use.
    #[serde(default = "host_bytes")]
    pub host_bytes: u64,
    /// Whether opening the cache faults in all pages of host memory (default no: the first use of a
    /// page faults it in, which takes longer than the copy). With prefault, opening takes longer,
    /// and fails if the machine does not have the memory.
    #[serde(default)]
    pub prefault: bool,
    /// The disk tier (default: none).
    #[serde(default)]
    pub disk: Option<DiskSettings>,
    /// The order of a block in host memory and on disk (default
    /// [`STORAGE_WORD`](super::STORAGE_WORD)); a block must be one contiguous range. A cache can
    /// open a folder only with the order of that folder.
    #[serde(default)]
    pub storage_word: Option<Word>,
    /// The eviction policy of host memory (default: the learned leaf policy).
    #[serde(default)]
    pub policy: PolicyKind,
    /// Limits on the host blocks of single tenants, each at least one block (default: none; at most
    /// [`QUOTAS_MAX`] tenants).
    #[serde(default)]
    pub quotas: Vec<TenantQuota>,
    /// Worker threads (default 2, at most [`WORKERS_MAX`]). With 0 only calls of
    /// [`Cache::step`](super::Cache::step) run jobs.
    #[serde(default = "workers")]
    pub workers: usize,
    /// Capacity of the job queue (default 256; 1 to [`QUEUE_CAPACITY_MAX`]). A full queue refuses
    /// jobs; no call waits.
    #[serde(default = "queue_capacity")]
    pub queue_capacity: usize,
    /// Tokens per second at which the engine computes KV itself, a finite number above 0 (default:
    /// unknown). With it, lookups miss blocks that take longer to load from the tiers below than to
    /// compute.
    #[serde(default)]
    pub recompute_tokens_per_second: Option<f64>,
    /// Events that the log keeps for subscribers that lag (default 65,536; 1 to
    /// [`EVENT_CAPACITY_MAX`]).
    #[serde(default = "event_capacity")]
    pub event_capacity: usize,
}

impl CacheSettings {
    /// The defaults for an identity: 1 GiB of host memory, no disk.
    #[must_use]
    pub fn new(identity: Identity) -> CacheSettings {
        CacheSettings {
            identity,
            host_bytes: host_bytes(),
            prefault: false,
            disk: None,
            storage_word: None,
            policy: PolicyKind::default(),
            quotas: Vec::new(),
            workers: workers(),
            queue_capacity: queue_capacity(),
            recompute_tokens_per_second: None,
            event_capacity: event_capacity(),
        }
    }

    /// Sets the bytes of host memory.
    #[must_use]
    pub fn host_bytes(mut self, bytes: u64) -> CacheSettings {
        self.host_bytes = bytes;
        self
    }

    /// Faults in host memory when the cache opens.
    #[must_use]
    pub fn prefault(mut self) -> CacheSettings {
        self.prefault = true;
        self
    }

    /// Adds a disk tier of at most `capacity_bytes` in `folder`.
    #[must_use]
    pub fn disk(mut self, folder: impl Into<PathBuf>, capacity_bytes: u64) -> CacheSettings {
        self.disk = Some(DiskSettings::new(folder, capacity_bytes));
        self
    }

    /// Sets the number of worker threads.
    #[must_use]
    pub fn workers(mut self, threads: usize) -> CacheSettings {
        self.workers = threads;
        self
    }

    /// Sets the engine's rate of computing. Lookups miss blocks that take longer to load than to
    /// compute.
    #[must_use]
    pub fn recompute_tokens_per_second(mut self, rate: f64) -> CacheSettings {
        self.recompute_tokens_per_second = Some(rate);
        self
    }

    /// Sets the order of stored blocks.
    #[must_use]
    pub fn storage_word(mut self, word: Word) -> CacheSettings {
        self.storage_word = Some(word);
        self
    }

    /// Sets the eviction policies of host memory and of the disk.
    #[must_use]
    pub fn policies(mut self, host: PolicyKind, on_disk: PolicyKind) -> CacheSettings {
        self.policy = host;
        if let Some(disk) = &mut self.disk {
            disk.policy = on_disk;
        }
        self
    }

    /// Sets when blocks are written to the disk; without a disk it has no effect.
    #[must_use]
    pub fn disk_writes(mut self, writes: TierWrites) -> CacheSettings {
        if let Some(disk) = &mut self.disk {
            disk.writes = writes;
        }
        self
    }

    /// Sets the time limit for writes to the disk during closing; without a disk it has no effect.
    #[must_use]
    pub fn close_within(mut self, time: Duration) -> CacheSettings {
        if let Some(disk) = &mut self.disk {
            disk.close_within = time;
        }
        self
    }

    /// Sets the capacity of the job queue.
    #[must_use]
    pub fn queue_capacity(mut self, jobs: usize) -> CacheSettings {
        self.queue_capacity = jobs;
        self
    }

    pub(super) fn events(&self) -> Result<NonZeroUsize, TierError> {
        let range = (1, EVENT_CAPACITY_MAX as u64);
        let events = self.event_capacity;
        NonZeroUsize::new(events)
            .filter(|events| events.get() <= EVENT_CAPACITY_MAX)
            .ok_or(out_of_range("event_capacity", events as u64, range))
    }

    /// Refuses values out of range.
    pub(super) fn check(&self) -> Result<(), TierError> {
        check_rate(self.recompute_tokens_per_second)?;
        let queue = (1, QUEUE_CAPACITY_MAX as u64);
        check_range("queue_capacity", self.queue_capacity as u64, queue)?;
        check_range("workers", self.workers as u64, (0, WORKERS_MAX as u64))?;
        check_range("host_bytes", self.host_bytes, (0, HOST_BYTES_MAX))?;
        let quotas = self.quotas.len() as u64;
        check_range("the number of quotas", quotas, (0, QUOTAS_MAX as u64))?;
        self.events()?;
        if let Some(disk) = &self.disk {
            disk.tier().check()?;
            if disk.folder.as_os_str().is_empty() {
                return Err(TierError::Settings(SettingsError::NoFolder));
            }
        }
        Ok(())
    }
}

pub(crate) fn check_rate(rate: Option<f64>) -> Result<(), TierError> {
    match rate {
        Some(rate) if !rate.is_finite() || rate <= 0.0 => {
            Err(TierError::Settings(SettingsError::RecomputeRate { rate }))
        }
        _ => Ok(()),
    }
}

pub(super) fn check_range(
    setting: &'static str,
    value: u64,
    range: (u64, u64),
) -> Result<(), TierError> {
    match (range.0..=range.1).contains(&value) {
        true => Ok(()),
        false => Err(out_of_range(setting, value, range)),
    }
}

fn out_of_range(setting: &'static str, value: u64, (least, most): (u64, u64)) -> TierError {
    TierError::Settings(SettingsError::SettingOutOfRange {
        setting,
        value,
        least,
        most,
    })
}

fn host_bytes() -> u64 {
    HOST_BYTES
}

fn workers() -> usize {
    2
}

fn queue_capacity() -> usize {
    256
}

fn event_capacity() -> usize {
    1 << 16
}
