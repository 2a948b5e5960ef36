//! The caches of a daemon: one for each identity and order of blocks.

use std::{collections::BTreeMap, sync::Arc};

use kvtile_blocks::events::{EventSnapshot, EventSubscriber, TierId};
use kvtile_layout::{
    Shape, broken,
    identity::{Fingerprint, Identity, LayoutIdentity},
};
use kvtile_tiers::{
    EventSource, HasherOptions, TierError, TokenHasher,
    cache::{
        Cache, CacheSettings, DiskSettings, FlushReport,
        serving::{HelloBlocks, HelloGroup},
    },
    groups::{CacheGroup, GroupCache, GroupCacheSettings},
    tier::STORAGE_WORD,
};
use kvtile_transfer::{LayoutHandle, PhysicalLayout, TransferManager};
use parking_lot::Mutex;

use crate::{CacheMaker, DaemonSettings};

/// Alignment of a block in host memory.
const ALIGNMENT: u64 = 4096;

/// What distinguishes the caches: the identity, and the layout of one block in the order of storage
/// (shapes with the same identity may name their planes in another order). For groups both are one
/// fingerprint of all groups.
type ServedKey = (Fingerprint, Fingerprint);

/// The place of a cache that is open, or that a client is opening.
type ServedSlot = Arc<Mutex<Option<Arc<ServedCache>>>>;

/// The pages of a cache that clients use.
#[derive(Debug)]
enum ServedPages {
    /// Those of one group of layers.
    Plain(Cache),
    /// Those of the groups of a model.
    Groups(GroupCache),
}

/// A cache that clients use.
#[derive(Debug)]
pub struct ServedCache {
    pages: ServedPages,
    fingerprint: Fingerprint,
    /// The groups in the order of the hello; one for blocks without groups.
    groups: Vec<ServedGroup>,
}

/// A group of layers of a cache that clients use.
#[derive(Debug)]
pub(crate) struct ServedGroup {
    pub(crate) identity: Identity,
    /// Host memory.
    pub(crate) host: PhysicalLayout,
    pub(crate) block_layout: Fingerprint,
    /// Blocks of the pool.
    pub(crate) pool_blocks: u64,
    pub(crate) stride_bytes: u64,
}

impl ServedGroup {
    /// Payload bytes of a block. Host memory was made with it.
    pub(crate) fn block_bytes(&self) -> u64 {
        self.host.shape().block_bytes().unwrap_or(0)
    }

    fn of(cache: &Cache) -> Result<ServedGroup, TierError> {
        let host = cache.host_memory()?;
        let pool = cache.pool_stats(TierId::HOST);
        let block_bytes = host.shape().block_bytes()?;
        Ok(ServedGroup {
            identity: cache.identity().clone(),
            block_layout: LayoutIdentity::of_block(host.strided()).fingerprint(),
            pool_blocks: pool.map_or(0, |pool| pool.blocks as u64),
            stride_bytes: block_bytes.next_multiple_of(ALIGNMENT),
            host,
        })
    }
}

impl ServedCache {
    /// The cache; of a model with groups that of its first group.
    #[must_use]
    pub fn cache(&self) -> &Cache {
        match self.cache_of(0) {
            Some(cache) => cache,
            None => broken(format_args!("a cache without groups")),
        }
    }

    /// The cache of a group, by its number.
    #[must_use]
    pub fn cache_of(&self, group: usize) -> Option<&Cache> {
        match &self.pages {
            ServedPages::Plain(cache) => (group == 0).then_some(cache),
            ServedPages::Groups(groups) => groups.cache_of(group),
        }
    }

    /// The cache over groups, if it has groups.
    #[must_use]
    pub fn group_cache(&self) -> Option<&GroupCache> {
        match &self.pages {
            ServedPages::Plain(_) => None,
            ServedPages::Groups(groups) => Some(groups),
        }
    }

    /// The cache of each group, with the group's name if it has one.
    pub fn caches(&self) -> impl Iterator<Item = (Option<&str>, &Cache)> {
        (0..self.groups.len()).filter_map(|at| {
            let name = self
                .group_cache()
                .and_then(|groups| groups.groups().get(at));
            Some((name.map(|facts| facts.name.as_str()), self.cache_of(at)?))
        })
    }

    /// What its blocks mean; of a model with groups what those of the first group mean.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        self.cache().identity()
    }

    pub(crate) fn groups(&self) -> &[ServedGroup] {
        &self.groups
    }

    /// The events of all its groups, for a publisher.
    #[must_use]
    pub fn event_source(&self) -> EventSource {
        match &self.pages {
            ServedPages::Plain(cache) => cache.event_source(),
            ServedPages::Groups(groups) => groups.event_source(),
        }
    }

    pub(crate) fn subscribe(&self) -> EventSubscriber {
        match &self.pages {
            ServedPages::Plain(cache) => cache.subscribe(),
            ServedPages::Groups(groups) => groups.subscribe(),
        }
    }

    pub(crate) fn snapshot(&self) -> EventSnapshot {
        match &self.pages {
            ServedPages::Plain(cache) => cache.snapshot(),
            ServedPages::Groups(groups) => groups.snapshot(),
        }
    }

    /// Ends the use of staging memory.
    pub(crate) fn unregister(&self, staging: LayoutHandle) -> Result<(), TierError> {
        Ok(self.cache().manager().unregister(staging).map(drop)?)
    }

    /// Its name: the model, and the start of the identity's fingerprint.
    pub(crate) fn name(&self) -> String {
        let fingerprint = self.fingerprint.to_string();
        let short: String = fingerprint.chars().take(8).collect();
        format!("{} {short}", self.identity().model())
    }

    /// The name of one of its caches: that of the group follows its own.
    #[must_use]
    pub fn full_name(name: &str, group: Option<&str>) -> String {
        match group {
            Some(group) => format!("{name} {group}"),
            None => name.to_owned(),
        }
    }

    /// Closes it, or flushes it if it has another owner, such as a page of metrics, which closes it when it
    /// drops it.
    fn end(self: Arc<Self>) -> Vec<(String, FlushReport)> {
        let name = self.name();
        let of_groups = |reports: Vec<(String, FlushReport)>| {
            let named = reports.into_iter();
            let named =
                named.map(|(group, report)| (ServedCache::full_name(&name, Some(&group)), report));
            named.collect()
        };
        match Arc::try_unwrap(self).map(|cache| cache.pages) {
            Ok(ServedPages::Plain(cache)) => vec![(name, cache.close())],
            Ok(ServedPages::Groups(groups)) => of_groups(groups.close()),
            Err(cache) => match &cache.pages {
                ServedPages::Plain(cache) => vec![(name, cache.flush())],
                ServedPages::Groups(groups) => of_groups(groups.flush()),
            },
        }
    }
}

/// Why a client gets no cache.
pub(crate) enum NoCache {
    /// As many other identities are open as the settings allow.
    TooMany { open: Vec<String>, most: usize },
    /// The groups are not in the order of their names, or two have one name.
    Order,
    /// The cache does not open.
    Tier(TierError),
}

impl From<TierError> for NoCache {
    fn from(error: TierError) -> NoCache {
        NoCache::Tier(error)
    }
}

impl std::fmt::Display for NoCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            NoCache::TooMany { open, most } => write!(
                f,
                "the daemon serves {most} identities at a time, and these are open: {}; start it with a larger \
                 --identities",
                open.join(", ")
            ),
            NoCache::Order => {
                f.write_str("the groups of the hello are not in the order of their names")
            }
            NoCache::Tier(error) => error.fmt(f),
        }
    }
}

/// The caches.
pub(crate) struct ServedCaches {
    settings: DaemonSettings,
    maker: Arc<dyn CacheMaker>,
    slots: Mutex<BTreeMap<ServedKey, ServedSlot>>,
}

impl ServedCaches {
    pub(crate) fn new(settings: DaemonSettings, maker: Arc<dyn CacheMaker>) -> ServedCaches {
        ServedCaches {
            settings,
            maker,
            slots: Mutex::default(),
        }
    }

    /// The cache that a hello is about, opened if it is not open.
    pub(crate) fn get(&self, blocks: &HelloBlocks) -> Result<Arc<ServedCache>, NoCache> {
        match blocks {
            HelloBlocks::Plain { identity, shape } => {
                let engine = engine_of(identity, shape)?;
                let layout = LayoutIdentity::of_block(engine.strided()).fingerprint();
                let key = (identity.fingerprint(), layout);
                self.get_or_open(key, || self.open_plain(identity, engine, key))
            }
            HelloBlocks::Groups { chain, groups } => {
                let settings = self.group_settings(*chain, groups)?;
                let fingerprint = fingerprint_of(&settings)?;
                let key = (fingerprint, fingerprint);
                self.get_or_open(key, || self.open_groups(settings, fingerprint))
            }
        }
    }

    fn get_or_open(
        &self,
        key: ServedKey,
        open_cache: impl FnOnce() -> Result<ServedCache, TierError>,
    ) -> Result<Arc<ServedCache>, NoCache> {
        let slot = self.slot(key)?;
        let mut open = slot.lock();
        if let Some(cache) = &*open {
            return Ok(Arc::clone(cache));
        }
        let opened = open_cache().and_then(|cache| {
            self.maker.opened(&cache.name(), &cache)?;
            Ok(cache)
        });
        match opened {
            Ok(cache) => {
                let cache = Arc::new(cache);
                *open = Some(Arc::clone(&cache));
                Ok(cache)
            }
            Err(error) => {
                // The place is free for another identity.
                self.slots.lock().remove(&key);
                Err(NoCache::Tier(error))
            }
        }
    }

    /// The place of a cache, if there is room for it.
    fn slot(&self, key: ServedKey) -> Result<ServedSlot, NoCache> {
        let mut slots = self.slots.lock();
        if let Some(slot) = slots.get(&key) {
            return Ok(Arc::clone(slot));
        }
        let most = self.settings.identities_max;
        if slots.len() >= most {
            let names = slots.values().filter_map(|slot| {
                let cache = slot.try_lock()?;
                Some(cache.as_ref()?.name())
            });
            let open = names.collect();
            return Err(NoCache::TooMany { open, most });
        }
        let slot = ServedSlot::default();
        slots.insert(key, Arc::clone(&slot));
        Ok(slot)
    }

    /// The part of one identity of so many bytes.
    fn part(&self, bytes: u64) -> u64 {
        bytes / self.settings.identities_max as u64
    }

    /// The disk of one identity, in a folder of this name.
    fn disk(&self, folder: &str) -> Option<DiskSettings> {
        let disk = self.settings.disk.as_ref()?;
        let settings = DiskSettings::new(disk.folder.join(folder), self.part(disk.bytes));
        let settings = settings.policy(disk.policy);
        Some(match disk.writes {
            Some(writes) => settings.writes(writes),
            None => settings,
        })
    }

    fn open_plain(
        &self,
        identity: &Identity,
        engine: PhysicalLayout,
        (fingerprint, block_layout): ServedKey,
    ) -> Result<ServedCache, TierError> {
        let settings = &self.settings;
        let mut of_cache = CacheSettings::new(identity.clone())
            .host_bytes(self.part(settings.host_bytes))
            .workers(settings.workers)
            .queue_capacity(settings.queue_capacity);
        of_cache.quotas = settings.quotas.clone();
        if settings.prefault {
            of_cache = of_cache.prefault();
        }
        of_cache.policy = settings.policy;
        let layout: String = block_layout.to_string().chars().take(8).collect();
        of_cache.disk = self.disk(&format!("{fingerprint}-{layout}"));
        let builder = self.maker.cache(of_cache)?.host_memory_for_readers();
        let cache = builder.open(engine)?;
        Ok(ServedCache {
            groups: vec![ServedGroup::of(&cache)?],
            fingerprint,
            pages: ServedPages::Plain(cache),
        })
    }

    /// The settings of a cache over groups, but for its disk.
    fn group_settings(
        &self,
        chain: Option<Fingerprint>,
        groups: &[HelloGroup],
    ) -> Result<GroupCacheSettings, NoCache> {
        if !groups.is_sorted_by(|one, other| one.name < other.name) {
            return Err(NoCache::Order);
        }
        let settings = &self.settings;
        let group = |of: &HelloGroup| {
            let mut group = CacheGroup::new(&of.name, of.rule, of.identity.clone()).role(of.role);
            group.share = of.share;
            group
        };
        let mut of_cache = GroupCacheSettings::new(groups.iter().map(group).collect())
            .host_bytes(self.part(settings.host_bytes))
            .prefault(settings.prefault)
            .policy(settings.policy)
            .quotas(settings.quotas.clone())
            .workers(settings.workers)
            .queue_capacity(settings.queue_capacity);
        of_cache.chain = chain;
        Ok(of_cache)
    }

    fn open_groups(
        &self,
        mut settings: GroupCacheSettings,
        fingerprint: Fingerprint,
    ) -> Result<ServedCache, TierError> {
        settings.disk = self.disk(&format!("{fingerprint}-groups"));
        let none: Vec<Option<LayoutHandle>> = vec![None; settings.groups.len()];
        let builder = self.maker.groups(settings)?.host_memory_for_readers();
        let cache = builder.open_registered(Arc::new(TransferManager::new()), &none)?;
        let groups = (0..)
            .map_while(|at| cache.cache_of(at))
            .map(ServedGroup::of);
        let groups = groups.collect::<Result<Vec<ServedGroup>, TierError>>()?;
        Ok(ServedCache {
            groups,
            fingerprint,
            pages: ServedPages::Groups(cache),
        })
    }

    /// The caches that are open, with their names.
    pub(crate) fn open(&self) -> Vec<(String, Arc<ServedCache>)> {
        let slots: Vec<ServedSlot> = self.slots.lock().values().map(Arc::clone).collect();
        let caches = slots.iter().filter_map(|slot| slot.try_lock()?.clone());
        caches.map(|cache| (cache.name(), cache)).collect()
    }

    /// Closes all caches, after the sessions have ended.
    pub(crate) fn close(&self) -> Vec<(String, FlushReport)> {
        let slots = std::mem::take(&mut *self.slots.lock());
        let caches = slots.into_values().filter_map(|slot| slot.lock().take());
        caches.flat_map(ServedCache::end).collect()
    }
}

/// The layout of an engine with one block: the cache needs one to know the shape.
fn engine_of(identity: &Identity, shape: &Shape) -> Result<PhysicalLayout, TierError> {
    Ok(PhysicalLayout::builder()
        .with_aligned_shape(shape.with_num_blocks(1)?, ALIGNMENT)
        .with_logical_fingerprint(identity.fingerprint())
        .layout(STORAGE_WORD)
        .allocate_system()
        .build()?)
}

/// The fingerprint of the groups of a model: their chain, names, rules, roles, identities, and the layouts of
/// their pages.
fn fingerprint_of(settings: &GroupCacheSettings) -> Result<Fingerprint, TierError> {
    let mut bytes = b"kvtile daemon groups 1".to_vec();
    if let Some(chain) = &settings.chain {
        bytes.extend(chain.as_bytes());
    }
    for group in &settings.groups {
        let engine = engine_of(&group.identity, group.identity.shape())?;
        let layout = LayoutIdentity::of_block(engine.strided()).fingerprint();
        let text = format!("\n{:?} {:?} {:?} ", group.name, group.rule, group.role);
        bytes.extend(text.as_bytes());
        bytes.extend(group.identity.fingerprint().as_bytes());
        bytes.extend(layout.as_bytes());
    }
    // The key of a block of one token commits to all bytes.
    let hasher = TokenHasher::of_chain(&bytes, 1, &HasherOptions::default())?;
    match hasher.keys(&[0]).first() {
        Some(key) => Ok(Fingerprint::from_bytes(*key.as_bytes())),
        None => broken(format_args!("a token without a key")),
    }
}
