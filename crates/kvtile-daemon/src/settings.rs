//! The settings of a daemon.

use std::{collections::HashSet, path::PathBuf, time::Duration};

use kvtile_blocks::{policy::PolicyKind, pool::TenantQuota};
use kvtile_tiers::cache::{
    HOST_BYTES_MAX, QUEUE_CAPACITY_MAX, QUOTAS_MAX, TierWrites, WORKERS_MAX,
};
use serde::{Deserialize, Serialize};

use crate::DaemonError;

/// A disk of a daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DaemonDisk {
    /// The folder; each identity has a folder of its own in it.
    pub folder: PathBuf,
    /// Bytes for all identities.
    pub bytes: u64,
    /// When blocks are written to it (default: when host memory evicts them, and at the end).
    #[serde(default)]
    pub writes: Option<TierWrites>,
    /// The eviction policy (default: the learned leaf policy).
    #[serde(default)]
    pub policy: PolicyKind,
}

/// Settings of a daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct DaemonSettings {
    /// The Unix socket. Its folder must exist; in containers it is on a volume that all of them mount.
    pub socket: PathBuf,
    /// Bytes of host memory for all identities.
    pub host_bytes: u64,
    /// The disk (default: none).
    #[serde(default)]
    pub disk: Option<DaemonDisk>,
    /// The eviction policy of host memory (default: the learned leaf policy).
    #[serde(default)]
    pub policy: PolicyKind,
    /// Limits on the host blocks of single tenants, of each identity (default: none; at most
    /// [`QUOTAS_MAX`] tenants, at least one block each). Clients state the tenant of what they store.
    #[serde(default)]
    pub quotas: Vec<TenantQuota>,
    /// The largest number of identities at a time (default 1; 1 to 1,024). Each gets an equal, fixed
    /// share of host memory and of the disk, so that one model never evicts the blocks of another.
    /// The ranks of a tensor-parallel model are one identity each.
    #[serde(default = "identities_max")]
    pub identities_max: usize,
    /// How long a client may copy out of blocks that it holds (default 30 s). After it the daemon
    /// takes them back; a client that was stopped for so long counts them as lost.
    #[serde(default = "lease")]
    pub lease: Duration,
    /// How long a match may stay unused (default 10 minutes). After it the daemon drops its pins.
    #[serde(default = "match_lease")]
    pub match_lease: Duration,
    /// The largest staging memory of a client in bytes (default 1 GiB).
    #[serde(default = "staging_bytes_max")]
    pub staging_bytes_max: u64,
    /// The largest number of clients at a time (default 256).
    #[serde(default = "sessions_max")]
    pub sessions_max: usize,
    /// The largest number of requests of one client that are in progress, and of its matches
    /// (default 4,096); further ones are refused.
    #[serde(default = "requests_max")]
    pub requests_max: usize,
    /// Worker threads of each cache (default 2; 1 to [`WORKERS_MAX`]).
    #[serde(default = "workers")]
    pub workers: usize,
    /// Capacity of the job queue of each cache (default 1,024).
    #[serde(default = "queue_capacity")]
    pub queue_capacity: usize,
    /// Whether opening a cache faults in its host memory (default no).
    #[serde(default)]
    pub prefault: bool,
}

impl DaemonSettings {
    /// The defaults for a socket and a size of host memory.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>, host_bytes: u64) -> DaemonSettings {
        DaemonSettings {
            socket: socket.into(),
            host_bytes,
            disk: None,
            policy: PolicyKind::default(),
            quotas: Vec::new(),
            identities_max: identities_max(),
            lease: lease(),
            match_lease: match_lease(),
            staging_bytes_max: staging_bytes_max(),
            sessions_max: sessions_max(),
            requests_max: requests_max(),
            workers: workers(),
            queue_capacity: queue_capacity(),
            prefault: false,
        }
    }

    /// Adds a disk of `bytes` bytes in `folder`.
    #[must_use]
    pub fn disk(mut self, folder: impl Into<PathBuf>, bytes: u64) -> DaemonSettings {
        self.disk = Some(DaemonDisk {
            folder: folder.into(),
            bytes,
            writes: None,
            policy: PolicyKind::default(),
        });
        self
    }

    /// Sets [`policy`](Self::policy), that of host memory. The disk has its own ([`DaemonDisk::policy`]).
    #[must_use]
    pub fn policy(mut self, policy: PolicyKind) -> DaemonSettings {
        self.policy = policy;
        self
    }

    /// Sets [`quotas`](Self::quotas).
    #[must_use]
    pub fn quotas(mut self, quotas: Vec<TenantQuota>) -> DaemonSettings {
        self.quotas = quotas;
        self
    }

    /// Sets [`identities_max`](Self::identities_max).
    #[must_use]
    pub fn identities_max(mut self, identities: usize) -> DaemonSettings {
        self.identities_max = identities;
        self
    }

    /// Sets [`lease`](Self::lease).
    #[must_use]
    pub fn lease(mut self, time: Duration) -> DaemonSettings {
        self.lease = time;
        self
    }

    /// Sets [`match_lease`](Self::match_lease).
    #[must_use]
    pub fn match_lease(mut self, time: Duration) -> DaemonSettings {
        self.match_lease = time;
        self
    }

    /// Sets [`sessions_max`](Self::sessions_max).
    #[must_use]
    pub fn sessions_max(mut self, sessions: usize) -> DaemonSettings {
        self.sessions_max = sessions;
        self
    }

    /// Sets [`requests_max`](Self::requests_max).
    #[must_use]
    pub fn requests_max(mut self, requests: usize) -> DaemonSettings {
        self.requests_max = requests;
        self
    }

    /// Sets [`workers`](Self::workers).
    #[must_use]
    pub fn workers(mut self, threads: usize) -> DaemonSettings {
        self.workers = threads;
        self
    }

    /// Sets [`prefault`](Self::prefault).
    #[must_use]
    pub fn prefault(mut self, wanted: bool) -> DaemonSettings {
        self.prefault = wanted;
        self
    }

    /// Refuses values out of range.
    pub(crate) fn check(&self) -> Result<(), DaemonError> {
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let disk = self.disk.as_ref().map_or(1, |disk| disk.bytes);
        let quota = self.quotas.iter().map(|quota| quota.blocks).min();
        let quota = quota.unwrap_or(1) as u64;
        let quotas = self.quotas.len() as u64;
        let mut tenants = HashSet::new();
        for quota in &self.quotas {
            if !tenants.insert(quota.tenant) {
                let tenant = quota.tenant.0;
                return Err(DaemonError::TwoQuotas { tenant });
            }
        }
        for (setting, value, least, most) in [
            ("host_bytes", self.host_bytes, 1, HOST_BYTES_MAX),
            ("the bytes of the disk", disk, 1, 1 << 60),
            ("identities_max", self.identities_max as u64, 1, 1024),
            ("the lease in ms", milliseconds(self.lease), 10, 86_400_000),
            (
                "the lease of a match in ms",
                milliseconds(self.match_lease),
                10,
                86_400_000,
            ),
            ("staging_bytes_max", self.staging_bytes_max, 1, 1 << 40),
            ("the number of quotas", quotas, 0, QUOTAS_MAX as u64),
            ("the blocks of a quota", quota, 1, u64::MAX),
            ("sessions_max", self.sessions_max as u64, 1, 65_536),
            ("requests_max", self.requests_max as u64, 1, 1 << 20),
            ("workers", self.workers as u64, 1, WORKERS_MAX as u64),
            (
                "queue_capacity",
                self.queue_capacity as u64,
                1,
                QUEUE_CAPACITY_MAX as u64,
            ),
        ] {
            if !(least..=most).contains(&value) {
                return Err(DaemonError::OutOfRange {
                    setting,
                    value,
                    least,
                    most,
                });
            }
        }
        Ok(())
    }
}

fn identities_max() -> usize {
    1
}

fn lease() -> Duration {
    Duration::from_secs(30)
}

fn match_lease() -> Duration {
    Duration::from_mins(10)
}

fn staging_bytes_max() -> u64 {
    1 << 30
}

fn sessions_max() -> usize {
    256
}

fn requests_max() -> usize {
    4096
}

fn workers() -> usize {
    2
}

fn queue_capacity() -> usize {
    1024
}
