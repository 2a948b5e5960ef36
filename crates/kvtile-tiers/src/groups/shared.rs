//! The facts that the calls of a cache over groups share: the groups, and which key of the chain names
//! which page.
//!
//! ```text
//! tokens    0         16        32        48        64     units of 16 tokens
//! chain     [  k0    ][  k1    ][  k2    ][  k3    ]       one key a unit
//! full      [  k0    ][  k1    ][  k2    ][  k3    ]       pages of 16
//! state     [        k1        ][        k3        ]       pages of 32: a page has the key of its end
//! ```

use std::{
    num::NonZeroU64,
    ops::Range,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use kvtile_blocks::{BlockKey, GroupId, events::StoredBlock};
use kvtile_layout::{
    GroupRule, broken,
    identity::{Fingerprint, GroupRole, Identity},
};
use kvtile_transfer::{DeviceMark, LayoutHandle};
use parking_lot::Mutex;

use crate::{
    cache::{CacheOfGroup, CacheParts, ConnectedParts, DaemonConnection},
    error::{RequestError, SettingsError, TierError},
    source::ListStoredBlocks,
    tier::Tier,
};

use super::{settings::CacheGroup, stops::StopBook};

/// Refuses work of devices to wait for, where a load or a store has blocks and none of them are in
/// memory of a device.
pub(super) fn check_after<'a>(
    after: &[DeviceMark],
    blocks: impl Iterator<Item = (&'a CacheOfGroup, Option<LayoutHandle>)>,
) -> Result<(), TierError> {
    if after.is_empty() {
        return Ok(());
    }
    let on_device = blocks.map(|(cache, layout)| cache.is_on_device(layout));
    let on_device: Vec<bool> = on_device.collect::<Result<_, _>>()?;
    if on_device.is_empty() || on_device.contains(&true) {
        return Ok(());
    }
    Err(TierError::Request(RequestError::NoDeviceToWait))
}

/// A group of a cache over groups.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GroupFacts {
    /// The name.
    pub name: String,
    /// The number of the group in events: its place in the settings.
    pub id: GroupId,
    /// What a hit needs of the group.
    pub rule: GroupRule,
    /// Whose layers the group has.
    pub role: GroupRole,
    /// Tokens of a page.
    pub page_size: NonZeroU64,
    /// What the pages mean.
    pub identity: Identity,
    /// Units of a page.
    units: NonZeroU64,
}

impl GroupFacts {
    /// The pages that a hit of `stop` tokens needs; none of a draft group whose pages do not end there.
    #[must_use]
    pub fn needs(&self, stop: u64) -> Range<u64> {
        match stop % self.page_size {
            0 => self.rule.needs(stop, self.page_size),
            _ => 0..0,
        }
    }

    /// Whether a stop needs the group: not one of a draft model.
    #[must_use]
    pub fn gates(&self) -> bool {
        self.role == GroupRole::Target
    }

    /// Whether the group decides how far a prefix reaches.
    pub(super) fn is_spine(&self) -> bool {
        self.gates() && self.rule == GroupRule::Full
    }

    /// The keys of pages, or `None` if the chain is too short.
    pub(super) fn keys(&self, chain: &[BlockKey], pages: Range<u64>) -> Option<Vec<BlockKey>> {
        pages.map(|page| self.key(chain, page)).collect()
    }

    /// The key of a page, or `None` if the chain is too short.
    pub(super) fn key(&self, chain: &[BlockKey], page: u64) -> Option<BlockKey> {
        let end = page.checked_add(1)?.checked_mul(self.units.get())?;
        let at = usize::try_from(end - 1).ok()?;
        chain.get(at).copied()
    }
}

/// The counters of lookups over groups.
#[derive(Debug, Default)]
pub(super) struct GroupCounts {
    pub(super) lookups: AtomicU64,
    pub(super) hits: AtomicU64,
    pub(super) found_tokens: AtomicU64,
    /// How often the events were read to keep stops whole.
    pub(super) keeper_turns: AtomicU64,
}

impl GroupCounts {
    pub(super) fn add(counter: &AtomicU64, more: u64) {
        counter.fetch_add(more, Ordering::Relaxed);
    }
}

/// Where the pages of a cache over groups are.
pub(super) enum GroupsPlace {
    /// In this process: the cache of each group.
    Here(Vec<Weak<CacheParts>>),
    /// In a daemon: the connection, and what each group has of it.
    There(Weak<DaemonConnection>, Vec<Weak<ConnectedParts>>),
}

/// What the calls of a cache over groups share. It does not keep the cache open.
pub(super) struct GroupsShared {
    pub(super) facts: Vec<GroupFacts>,
    pub(super) place: GroupsPlace,
    /// Tokens of one key of the chain: the greatest common divisor of the pages.
    pub(super) unit: NonZeroU64,
    /// The chain of the model, if the settings have one.
    pub(super) chain: Option<Fingerprint>,
    /// Tokens between two possible stops: the least common multiple of the pages of the model's own groups.
    pub(super) stop_unit: NonZeroU64,
    /// The tiers below host memory, which all groups share.
    pub(super) tiers: Vec<Arc<dyn Tier>>,
    /// Tokens per second at which the engine computes, if the settings state it.
    pub(super) recompute_tokens_per_second: Option<f64>,
    pub(super) counts: GroupCounts,
    /// The stops that are known to be stored.
    pub(super) book: Mutex<StopBook>,
}

impl std::fmt::Debug for GroupsShared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupsShared").finish_non_exhaustive()
    }
}

impl ListStoredBlocks for GroupsShared {
    fn list_stored(&self, blocks: &mut Vec<StoredBlock>) {
        for cache in self.open().unwrap_or_default() {
            cache.list_host(blocks);
        }
        for tier in &self.tiers {
            tier.list(blocks);
        }
    }
}

impl GroupsShared {
    /// A group by its name.
    pub(super) fn at(&self, name: &str) -> Result<usize, TierError> {
        let at = self.facts.iter().position(|facts| facts.name == name);
        at.ok_or_else(|| {
            TierError::Request(RequestError::NoSuchCacheGroup {
                group: name.chars().take(64).collect(),
                groups: self.names(),
            })
        })
    }

    pub(super) fn names(&self) -> String {
        let names: Vec<&str> = self.facts.iter().map(|facts| facts.name.as_str()).collect();
        names.join(", ")
    }

    /// Values of the groups with their names.
    pub(super) fn named<T>(&self, values: impl Iterator<Item = T>) -> Vec<(String, T)> {
        let names = self.facts.iter().map(|facts| facts.name.clone());
        names.zip(values).collect()
    }

    pub(super) fn facts(&self, at: usize) -> &GroupFacts {
        let Some(facts) = self.facts.get(at) else {
            broken(format_args!("group {at} of {}", self.facts.len()))
        };
        facts
    }

    /// The caches of all groups in this process, or `None` once the cache is closed, and of a cache that is
    /// connected to a daemon.
    pub(super) fn open(&self) -> Option<Vec<Arc<CacheParts>>> {
        match &self.place {
            GroupsPlace::Here(caches) => caches.iter().map(Weak::upgrade).collect(),
            GroupsPlace::There(..) => None,
        }
    }

    /// The connection to a daemon, if the cache has one and is open.
    pub(super) fn connection(&self) -> Option<Arc<DaemonConnection>> {
        match &self.place {
            GroupsPlace::Here(_) => None,
            GroupsPlace::There(connection, _) => connection.upgrade(),
        }
    }

    /// The caches of all groups.
    pub(super) fn opened(&self) -> Result<Vec<CacheOfGroup>, TierError> {
        let here = |parts: &Weak<CacheParts>| parts.upgrade().map(CacheOfGroup::Here);
        let there = |parts: &Weak<ConnectedParts>| parts.upgrade().map(CacheOfGroup::There);
        let caches: Option<Vec<CacheOfGroup>> = match &self.place {
            GroupsPlace::Here(caches) => caches.iter().map(here).collect(),
            GroupsPlace::There(_, groups) => groups.iter().map(there).collect(),
        };
        caches.ok_or(TierError::Request(RequestError::Closed))
    }
}

/// The facts of the groups of the settings, with their unit and the unit of their stops.
pub(crate) fn facts_of(
    groups: &[CacheGroup],
) -> Result<(Vec<GroupFacts>, NonZeroU64, NonZeroU64), TierError> {
    let page = |group: &CacheGroup| match NonZeroU64::new(group.identity.page_size()) {
        Some(page) => page,
        None => broken(format_args!("an identity with pages of 0 tokens")),
    };
    let unit = groups
        .iter()
        .map(|group| page(group).get())
        .fold(0, divisor);
    let Some(unit) = NonZeroU64::new(unit) else {
        broken(format_args!("{} groups passed the check", groups.len()))
    };
    let mut stop_unit = unit;
    for group in groups
        .iter()
        .filter(|group| group.role == GroupRole::Target)
    {
        let page = page(group).get();
        let multiple = (page / divisor(page, stop_unit.get())).checked_mul(stop_unit.get());
        stop_unit = multiple.and_then(NonZeroU64::new).ok_or_else(|| {
            TierError::Settings(SettingsError::GroupPages {
                group: group.name.clone(),
                page,
            })
        })?;
    }
    let facts = groups.iter().zip(0..).map(|(group, id)| {
        let page_size = page(group);
        GroupFacts {
            name: group.name.clone(),
            id: GroupId(id),
            rule: group.rule,
            role: group.role,
            page_size,
            identity: group.identity.clone(),
            units: NonZeroU64::new(page_size.get() / unit).unwrap_or(NonZeroU64::MIN),
        }
    });
    Ok((facts.collect(), unit, stop_unit))
}

/// The greatest common divisor.
pub(crate) fn divisor(mut one: u64, mut other: u64) -> u64 {
    while other != 0 {
        (one, other) = (other, one % other);
    }
    one
}

/// The bytes that identify the chain of a model: its own groups with their rules and identities, in the
/// order of their names. The parts of a model on several ranks have the same.
pub(super) fn chain_identity(facts: &[GroupFacts]) -> Vec<u8> {
    let mut sorted: Vec<&GroupFacts> = facts.iter().filter(|facts| facts.gates()).collect();
    sorted.sort_by(|one, other| one.name.cmp(&other.name));
    let mut bytes = b"kvtile chain of groups 1".to_vec();
    for facts in sorted {
        let (rule, tokens) = match facts.rule {
            GroupRule::Full => (0, 0),
            GroupRule::Window { tokens } => (1, tokens.get()),
            GroupRule::Chunk { tokens } => (2, tokens.get()),
            GroupRule::Stop => (3, 0_u64),
        };
        bytes.extend((facts.name.len() as u64).to_le_bytes());
        bytes.extend(facts.name.as_bytes());
        bytes.push(rule);
        bytes.extend(tokens.to_le_bytes());
        bytes.extend(facts.identity.model_fingerprint().as_bytes());
    }
    bytes
}
