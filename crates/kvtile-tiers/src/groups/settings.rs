//! The settings of a cache over groups.

use kvtile_blocks::{policy::PolicyKind, pool::TenantQuota};
use kvtile_layout::{
    GroupRule, Word, broken,
    identity::{Fingerprint, GroupRole, Identity, ModelIdentity},
};

use crate::{
    cache::{EVENT_CAPACITY_MAX, HOST_BYTES_MAX, QUEUE_CAPACITY_MAX, WORKERS_MAX, check_rate},
    disk::{DiskSettings, GROUPS_MAX},
    error::{SettingsError, TierError},
    tier::TierGroup,
};

/// Default size of host memory: 1 GiB.
const HOST_BYTES: u64 = 1 << 30;

/// A group of layers of a cache over groups.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct CacheGroup {
    /// The name, unique within the cache: 1 to 64 visible ASCII characters.
    pub name: String,
    /// What a hit needs of the group.
    pub rule: GroupRule,
    /// Whose layers the group has (default: the model's). A group of a draft model is brought where it is whole, and
    /// never decides what a stop is or whether a load brought it.
    pub role: GroupRole,
    /// What its pages mean, among others the tokens of a page. The cache never serves pages of
    /// another identity.
    pub identity: Identity,
    /// The order of a stored page (default [`STORAGE_WORD`](crate::tier::STORAGE_WORD)); a page must
    /// be one contiguous range.
    pub storage_word: Option<Word>,
    /// The share of host memory and of the disk, relative to the sum of all shares. Groups without a
    /// share count 1 on average; they divide that by the bytes of a typical request: the pages of 8,192
    /// tokens for a group with [`GroupRule::Full`], the pages of two stops for the others.
    pub share: Option<f64>,
}

impl CacheGroup {
    /// A group with the default order and share.
    #[must_use]
    pub fn new(name: impl Into<String>, rule: GroupRule, identity: Identity) -> CacheGroup {
        CacheGroup {
            name: name.into(),
            rule,
            role: GroupRole::Target,
            identity,
            storage_word: None,
            share: None,
        }
    }

    /// Sets [`role`](Self::role).
    #[must_use]
    pub fn role(mut self, role: GroupRole) -> CacheGroup {
        self.role = role;
        self
    }

    /// Sets [`storage_word`](Self::storage_word).
    #[must_use]
    pub fn storage_word(mut self, word: Word) -> CacheGroup {
        self.storage_word = Some(word);
        self
    }

    /// Sets [`share`](Self::share).
    #[must_use]
    pub fn share(mut self, share: f64) -> CacheGroup {
        self.share = Some(share);
        self
    }
}

/// Settings of a [`GroupCache`](super::GroupCache).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct GroupCacheSettings {
    /// The groups; at least one, at most [`GROUPS_MAX`].
    pub groups: Vec<CacheGroup>,
    /// The chain of the model, with which keys are made (default: a hash of the names, rules and identities of the
    /// groups of the model itself).
    pub chain: Option<Fingerprint>,
    /// Bytes of host memory, over all groups (default 1 GiB; at least the pages of one stop). The
    /// groups divide it by their shares. Each group has one more page for each tier below.
    pub host_bytes: u64,
    /// Whether opening the cache faults in all pages of host memory (default no).
    pub prefault: bool,
    /// The disk tier (default: none): one folder for all groups.
    pub disk: Option<DiskSettings>,
    /// The eviction policy of host memory (default: the learned leaf policy).
    pub policy: PolicyKind,
    /// Limits on the pages of single tenants in the host memory of each group (default: none; at most
    /// [`QUOTAS_MAX`](crate::cache::QUOTAS_MAX) tenants).
    pub quotas: Vec<TenantQuota>,
    /// Worker threads of each group (default 2, at most [`WORKERS_MAX`]). With 0 only calls of
    /// [`GroupCache::step`](super::GroupCache::step) run jobs.
    pub workers: usize,
    /// Capacity of the job queue of each group (default 256; 1 to [`QUEUE_CAPACITY_MAX`]).
    pub queue_capacity: usize,
    /// The engine's rate of computing, a finite number above 0 (default: unknown). With it, lookups leave
    /// out stops that load more slowly than they compute
    /// ([`StopOptions::recompute_tokens_per_second`](super::StopOptions::recompute_tokens_per_second)).
    pub recompute_tokens_per_second: Option<f64>,
    /// Events that the log keeps for subscribers that lag (default 65,536; 1 to
    /// [`EVENT_CAPACITY_MAX`]).
    pub event_capacity: usize,
}

impl GroupCacheSettings {
    /// The defaults: 1 GiB of host memory, no disk.
    #[must_use]
    pub fn new(groups: Vec<CacheGroup>) -> GroupCacheSettings {
        GroupCacheSettings {
            groups,
            chain: None,
            host_bytes: HOST_BYTES,
            prefault: false,
            disk: None,
            policy: PolicyKind::default(),
            quotas: Vec::new(),
            workers: 2,
            queue_capacity: 256,
            recompute_tokens_per_second: None,
            event_capacity: 1 << 16,
        }
    }

    /// The defaults for the groups of a model, by name, with the keys of its chain.
    #[must_use]
    pub fn of_model(model: &ModelIdentity) -> GroupCacheSettings {
        let groups = model.groups().iter().map(|group| {
            let name = group.name().as_str();
            let Some(identity) = model.group_identity(name) else {
                broken(format_args!("{model:?} has no identity of {name}"))
            };
            CacheGroup::new(name, group.rule(), identity).role(group.role())
        });
        GroupCacheSettings {
            chain: Some(model.chain()),
            ..GroupCacheSettings::new(groups.collect())
        }
    }

    /// Sets [`host_bytes`](Self::host_bytes).
    #[must_use]
    pub fn host_bytes(mut self, bytes: u64) -> GroupCacheSettings {
        self.host_bytes = bytes;
        self
    }

    /// Sets [`prefault`](Self::prefault).
    #[must_use]
    pub fn prefault(mut self, prefault: bool) -> GroupCacheSettings {
        self.prefault = prefault;
        self
    }

    /// Sets [`disk`](Self::disk).
    #[must_use]
    pub fn disk(mut self, disk: DiskSettings) -> GroupCacheSettings {
        self.disk = Some(disk);
        self
    }

    /// Sets [`policy`](Self::policy).
    #[must_use]
    pub fn policy(mut self, policy: PolicyKind) -> GroupCacheSettings {
        self.policy = policy;
        self
    }

    /// Sets [`quotas`](Self::quotas).
    #[must_use]
    pub fn quotas(mut self, quotas: Vec<TenantQuota>) -> GroupCacheSettings {
        self.quotas = quotas;
        self
    }

    /// Sets [`workers`](Self::workers).
    #[must_use]
    pub fn workers(mut self, threads: usize) -> GroupCacheSettings {
        self.workers = threads;
        self
    }

    /// Sets [`queue_capacity`](Self::queue_capacity).
    #[must_use]
    pub fn queue_capacity(mut self, jobs: usize) -> GroupCacheSettings {
        self.queue_capacity = jobs;
        self
    }

    /// Sets [`recompute_tokens_per_second`](Self::recompute_tokens_per_second).
    #[must_use]
    pub fn recompute_tokens_per_second(mut self, rate: f64) -> GroupCacheSettings {
        self.recompute_tokens_per_second = Some(rate);
        self
    }

    /// Sets [`event_capacity`](Self::event_capacity).
    #[must_use]
    pub fn event_capacity(mut self, events: usize) -> GroupCacheSettings {
        self.event_capacity = events;
        self
    }

    /// Refuses values out of range, and groups that cannot be those of one cache.
    pub(super) fn check(&self) -> Result<(), TierError> {
        check_rate(self.recompute_tokens_per_second)?;
        let ranges = [
            ("host_bytes", self.host_bytes, (0, HOST_BYTES_MAX)),
            ("workers", self.workers as u64, (0, WORKERS_MAX as u64)),
            (
                "queue_capacity",
                self.queue_capacity as u64,
                (1, QUEUE_CAPACITY_MAX as u64),
            ),
            (
                "event_capacity",
                self.event_capacity as u64,
                (1, EVENT_CAPACITY_MAX as u64),
            ),
            (
                "the number of groups",
                self.groups.len() as u64,
                (1, GROUPS_MAX as u64),
            ),
        ];
        for (setting, value, (least, most)) in ranges {
            if !(least..=most).contains(&value) {
                return Err(TierError::Settings(SettingsError::SettingOutOfRange {
                    setting,
                    value,
                    least,
                    most,
                }));
            }
        }
        let mut groups = self.groups.iter();
        if groups.all(|group| group.role == GroupRole::Draft) {
            return Err(TierError::Settings(SettingsError::GroupsOfDraft {
                groups: self.groups.len(),
            }));
        }
        for (at, group) in self.groups.iter().enumerate() {
            self.check_group(at, group)?;
        }
        match &self.disk {
            Some(disk) if disk.folder.as_os_str().is_empty() => {
                Err(TierError::Settings(SettingsError::NoFolder))
            }
            Some(disk) => disk.tier().check(),
            None => Ok(()),
        }
    }

    fn check_group(&self, at: usize, group: &CacheGroup) -> Result<(), TierError> {
        if !TierGroup::is_name(&group.name) {
            return Err(TierError::Settings(SettingsError::GroupName {
                name: group.name.chars().take(TierGroup::NAME_BYTES_MAX).collect(),
            }));
        }
        let before = self.groups.iter().take(at);
        if before.into_iter().any(|other| other.name == group.name) {
            return Err(TierError::Settings(SettingsError::GroupTwice {
                name: group.name.clone(),
            }));
        }
        match group.share {
            Some(share) if !(1e-6..=1e6).contains(&share) => {
                Err(TierError::Settings(SettingsError::GroupShare {
                    group: group.name.clone(),
                    share,
                }))
            }
            _ => Ok(()),
        }
    }
}
