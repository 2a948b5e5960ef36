//! The settings of a connection.

use std::time::Duration;

use kvtile_layout::identity::Identity;
use serde::{Deserialize, Serialize};

use crate::{
    cache::{QUEUE_CAPACITY_MAX, WORKERS_MAX},
    error::TierError,
};

/// Settings of a cache that is connected to a daemon ([`Cache::connect`](super::super::Cache::connect),
/// [`GroupCache::connect`](crate::groups::GroupCache::connect)).
/// The daemon's own settings decide the size of host memory and the tiers below.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ConnectSettings<T = Identity> {
    /// What the blocks mean: an identity, or the [groups](crate::groups::ConnectGroups) of a model. The
    /// daemon never serves blocks of another identity.
    pub identity: T,
    /// A name of this process in the daemon's status (default: its process id).
    #[serde(default = "name")]
    pub name: String,
    /// Bytes of staging memory, which blocks pass on their way to the daemon (default 64 MiB; at
    /// least one block of each group, at most what the daemon allows).
    #[serde(default = "staging_bytes")]
    pub staging_bytes: u64,
    /// How long a lookup or another short call waits for the daemon (default 1 s). After it the
    /// lookup finds nothing, and later calls do not wait until the daemon has answered something.
    #[serde(default = "answer_within")]
    pub answer_within: Duration,
    /// How long the connection itself, a load, a store, a prefetch, a flush or a clearing waits for the
    /// daemon (default 60 s).
    #[serde(default = "work_within")]
    pub work_within: Duration,
    /// The first pause before connecting again (default 100 ms). Each failure doubles it, up to 5 s.
    #[serde(default = "retry_after")]
    pub retry_after: Duration,
    /// Worker threads that copy blocks (default 2, at most [`WORKERS_MAX`]). With 0 only calls of
    /// [`Cache::step`](super::super::Cache::step) run jobs.
    #[serde(default = "workers")]
    pub workers: usize,
    /// Capacity of the job queue (default 256; 1 to [`QUEUE_CAPACITY_MAX`]). A full queue refuses
    /// jobs; no call waits.
    #[serde(default = "queue_capacity")]
    pub queue_capacity: usize,
    /// Tokens per second at which this engine computes KV itself, a finite number above 0 (default:
    /// unknown). With it, lookups miss blocks that take longer to load from the daemon's tiers below
    /// host memory than to compute.
    #[serde(default)]
    pub recompute_tokens_per_second: Option<f64>,
}

impl<T> ConnectSettings<T> {
    /// The defaults for an identity.
    #[must_use]
    pub fn new(identity: T) -> ConnectSettings<T> {
        ConnectSettings {
            identity,
            name: name(),
            staging_bytes: staging_bytes(),
            answer_within: answer_within(),
            work_within: work_within(),
            retry_after: retry_after(),
            workers: workers(),
            queue_capacity: queue_capacity(),
            recompute_tokens_per_second: None,
        }
    }

    /// Sets [`name`](Self::name).
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> ConnectSettings<T> {
        self.name = name.into();
        self
    }

    /// Sets [`staging_bytes`](Self::staging_bytes).
    #[must_use]
    pub fn staging_bytes(mut self, bytes: u64) -> ConnectSettings<T> {
        self.staging_bytes = bytes;
        self
    }

    /// Sets [`answer_within`](Self::answer_within).
    #[must_use]
    pub fn answer_within(mut self, time: Duration) -> ConnectSettings<T> {
        self.answer_within = time;
        self
    }

    /// Sets [`work_within`](Self::work_within).
    #[must_use]
    pub fn work_within(mut self, time: Duration) -> ConnectSettings<T> {
        self.work_within = time;
        self
    }

    /// Sets [`retry_after`](Self::retry_after).
    #[must_use]
    pub fn retry_after(mut self, time: Duration) -> ConnectSettings<T> {
        self.retry_after = time;
        self
    }

    /// Sets [`workers`](Self::workers).
    #[must_use]
    pub fn workers(mut self, threads: usize) -> ConnectSettings<T> {
        self.workers = threads;
        self
    }

    /// Sets [`queue_capacity`](Self::queue_capacity).
    #[must_use]
    pub fn queue_capacity(mut self, jobs: usize) -> ConnectSettings<T> {
        self.queue_capacity = jobs;
        self
    }

    /// Sets [`recompute_tokens_per_second`](Self::recompute_tokens_per_second).
    #[must_use]
    pub fn recompute_tokens_per_second(mut self, rate: f64) -> ConnectSettings<T> {
        self.recompute_tokens_per_second = Some(rate);
        self
    }

    /// The same settings for another identity.
    pub(crate) fn with_identity<U>(&self, identity: U) -> ConnectSettings<U> {
        ConnectSettings {
            identity,
            name: self.name.clone(),
            staging_bytes: self.staging_bytes,
            answer_within: self.answer_within,
            work_within: self.work_within,
            retry_after: self.retry_after,
            workers: self.workers,
            queue_capacity: self.queue_capacity,
            recompute_tokens_per_second: self.recompute_tokens_per_second,
        }
    }

    /// Refuses values out of range.
    pub(super) fn check(&self) -> Result<(), TierError> {
        use crate::cache::settings::{check_range, check_rate};
        check_rate(self.recompute_tokens_per_second)?;
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let day = 86_400_000;
        check_range("workers", self.workers as u64, (0, WORKERS_MAX as u64))?;
        let queue = (1, QUEUE_CAPACITY_MAX as u64);
        check_range("queue_capacity", self.queue_capacity as u64, queue)?;
        check_range("staging_bytes", self.staging_bytes, (1, 1 << 40))?;
        let name = self.name.len() as u64;
        check_range("the length of the name", name, (0, 256))?;
        for (setting, time) in [
            ("answer_within, in milliseconds,", self.answer_within),
            ("work_within, in milliseconds,", self.work_within),
            ("retry_after, in milliseconds,", self.retry_after),
        ] {
            check_range(setting, milliseconds(time), (1, day))?;
        }
        Ok(())
    }
}

fn name() -> String {
    format!("process {}", std::process::id())
}

fn staging_bytes() -> u64 {
    64 << 20
}

fn answer_within() -> Duration {
    Duration::from_secs(1)
}

fn work_within() -> Duration {
    Duration::from_mins(1)
}

fn retry_after() -> Duration {
    Duration::from_millis(100)
}

fn workers() -> usize {
    2
}

fn queue_capacity() -> usize {
    256
}
