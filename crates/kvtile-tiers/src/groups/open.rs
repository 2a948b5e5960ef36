//! Opening a cache over groups: the shared tiers, and a cache for each group.

use std::{num::NonZeroUsize, sync::Arc};

use kvtile_blocks::{BlockKey, events::EventLog};
use kvtile_layout::{
    GroupRule, LayoutError, StridedLayout, Word, broken, identity::LayoutIdentity,
};
use kvtile_transfer::{LayoutHandle, PhysicalLayout, TransferManager};
use parking_lot::Mutex;

use super::{
    GroupCache,
    division::{GroupPart, divide_host, fill_shares, memory_bytes},
    settings::{CacheGroup, GroupCacheSettings},
    shared::{GroupCounts, GroupFacts, GroupsPlace, GroupsShared, facts_of},
    view::TierOfGroup,
};
use crate::{
    below::TendedTier,
    cache::{Cache, CacheSettings, Clock, EngineLayout, GroupPlace, SystemClock},
    disk::{DiskSettings, medium::Medium},
    error::{SettingsError, TierError},
    opening,
    parts::PartsSettings,
    tier::{
        BlockPieces, STORAGE_WORD, StoreIdentity, Tier, TierContext, TierGroup, TierOpener,
        TierSettings,
    },
};

/// Opens a [`GroupCache`] with other components than the defaults.
#[must_use = "a builder does nothing until `open` is called"]
pub struct GroupCacheBuilder {
    settings: GroupCacheSettings,
    clock: Arc<dyn Clock>,
    medium: Option<Arc<dyn Medium>>,
    tiers: Vec<(TierSettings, TierOpener)>,
    for_readers: bool,
}

/// The layout of a group and its part of host memory.
struct GroupPlan {
    identity: StoreIdentity,
    /// The share of host memory and of the disk.
    part: GroupPart,
    host_bytes: u64,
}

impl GroupCache {
    /// Opens a cache for an engine whose blocks lie in `engines`: one layout for each group, in the
    /// order of the settings.
    ///
    /// # Errors
    /// Settings out of range; another number of layouts than groups; an identity that does not match
    /// its layout; host memory or a disk too small for one stop; a folder that is in use, has other
    /// groups, identities or layouts, or cannot be read or written.
    pub fn open(
        settings: GroupCacheSettings,
        engines: Vec<PhysicalLayout>,
    ) -> Result<GroupCache, TierError> {
        GroupCache::builder(settings).open(engines)
    }

    /// Starts a builder for a cache with other components.
    pub fn builder(settings: GroupCacheSettings) -> GroupCacheBuilder {
        GroupCacheBuilder {
            settings,
            clock: Arc::new(SystemClock::default()),
            medium: None,
            tiers: Vec::new(),
            for_readers: false,
        }
    }
}

impl GroupCacheBuilder {
    /// Sets the clock.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> GroupCacheBuilder {
        self.clock = clock;
        self
    }

    /// Sets the medium that stores the files of the disk tier, instead of the folder of the settings.
    pub fn medium(mut self, medium: Arc<dyn Medium>) -> GroupCacheBuilder {
        self.medium = Some(medium);
        self
    }

    /// Adds a tier below the existing ones, which keeps the pages of all groups.
    pub fn tier(
        mut self,
        settings: TierSettings,
        open: impl FnOnce(&TierContext) -> Result<Arc<dyn Tier>, TierError> + Send + 'static,
    ) -> GroupCacheBuilder {
        self.tiers.push((settings, Box::new(open)));
        self
    }

    /// Allocates host memory that other processes may map for reading. Only this process can write it.
    pub fn host_memory_for_readers(mut self) -> GroupCacheBuilder {
        self.for_readers = true;
        self
    }

    /// Opens the cache with its own transfer manager.
    ///
    /// # Errors
    /// Those of [`GroupCache::open`]; two tiers with the same name; an error of a tier.
    pub fn open(self, engines: Vec<PhysicalLayout>) -> Result<GroupCache, TierError> {
        let manager = Arc::new(TransferManager::new());
        let engines = engines.into_iter();
        let engines = engines.map(|engine| manager.register(engine).map(Some));
        let engines: Vec<Option<LayoutHandle>> = engines.collect::<Result<_, _>>()?;
        self.build(manager, &engines, true)
    }

    /// Opens the cache for layouts that are registered with the engine's transfer manager: one for each group, in
    /// their order. For a group without one, loads and stores give the layout of their blocks.
    ///
    /// # Errors
    /// Those of [`open`](Self::open); a handle that the manager does not know.
    pub fn open_registered(
        self,
        manager: Arc<TransferManager>,
        engines: &[impl Copy + Into<Option<LayoutHandle>>],
    ) -> Result<GroupCache, TierError> {
        let engines: Vec<_> = engines.iter().map(|engine| (*engine).into()).collect();
        self.build(manager, &engines, false)
    }

    fn build(
        self,
        manager: Arc<TransferManager>,
        engines: &[Option<LayoutHandle>],
        is_owned: bool,
    ) -> Result<GroupCache, TierError> {
        let settings = self.settings;
        settings.check()?;
        if engines.len() != settings.groups.len() {
            return Err(TierError::Settings(SettingsError::GroupLayouts {
                layouts: engines.len(),
                groups: settings.groups.len(),
            }));
        }
        let (facts, unit, stop_unit) = facts_of(&settings.groups)?;
        let engines = settings.groups.iter().zip(engines).map(|(group, handle)| {
            let engine = handle.map(|handle| engine_layout(&manager, group, (handle, is_owned)));
            engine.transpose()
        });
        let engines: Vec<Option<EngineLayout>> = engines.collect::<Result<_, _>>()?;
        let plans = plans(&settings, &facts)?;
        let Some(capacity) = NonZeroUsize::new(settings.event_capacity) else {
            broken(format_args!("a log of 0 events passed the check"))
        };
        let events = Arc::new(EventLog::new(capacity)?);
        let context = TierContext {
            groups: tier_groups(&settings.groups, &plans),
            events: Arc::clone(&events),
            clock: Arc::clone(&self.clock),
            threads: settings.workers,
        };
        let disk = settings.disk.as_ref();
        let disk = disk.map(|disk| in_own_folder(disk, &settings.groups));
        let below: Vec<TendedTier<BlockKey>> =
            opening::open_below(disk.as_ref(), self.medium, self.tiers, &context)?;
        let mut caches = Vec::with_capacity(plans.len());
        for (((group, plan), facts), engine) in
            settings.groups.iter().zip(&plans).zip(&facts).zip(engines)
        {
            let place = GroupPlace {
                group: facts.id,
                events: Arc::clone(&events),
                is_rootless: facts.rule != GroupRule::Full,
            };
            let mut builder = Cache::builder(group_settings(&settings, group, plan))
                .clock(Arc::clone(&self.clock));
            if self.for_readers {
                builder = builder.host_memory_for_readers();
            }
            for below in &below {
                let view = TierOfGroup {
                    tier: Arc::clone(&below.tier),
                    group: facts.id,
                };
                builder = builder.tier(below.settings, move |_| Ok(Arc::new(view)));
            }
            caches.push(builder.open_group(place, Arc::clone(&manager), engine)?);
        }
        let parts = caches.iter().filter_map(Cache::parts_of_group);
        let shared = GroupsShared {
            place: GroupsPlace::Here(parts.map(Arc::downgrade).collect()),
            tiers: below.iter().map(|below| Arc::clone(&below.tier)).collect(),
            facts,
            unit,
            chain: settings.chain,
            stop_unit,
            recompute_tokens_per_second: settings.recompute_tokens_per_second,
            counts: GroupCounts::default(),
            book: Mutex::default(),
        };
        GroupCache::of(shared, caches, (manager, events), settings.workers > 0)
    }
}

/// The layout of a group that an engine registered.
fn engine_layout(
    manager: &TransferManager,
    group: &CacheGroup,
    (handle, is_owned): (LayoutHandle, bool),
) -> Result<EngineLayout, TierError> {
    let layout = manager.layout(handle)?;
    opening::check_identity(&group.identity, &layout)?;
    let blocks = layout.shape().num_blocks();
    Ok(EngineLayout {
        handle,
        blocks,
        is_owned,
    })
}

/// The settings of the cache of one group.
fn group_settings(
    settings: &GroupCacheSettings,
    group: &CacheGroup,
    plan: &GroupPlan,
) -> CacheSettings {
    let mut of_group = CacheSettings::new(group.identity.clone())
        .host_bytes(plan.host_bytes)
        .workers(settings.workers)
        .queue_capacity(settings.queue_capacity);
    of_group.policy = settings.policy;
    of_group.quotas.clone_from(&settings.quotas);
    of_group.prefault = settings.prefault;
    of_group.storage_word.clone_from(&group.storage_word);
    of_group
}

fn tier_groups(groups: &[CacheGroup], plans: &[GroupPlan]) -> Vec<TierGroup> {
    let groups = groups.iter().zip(plans);
    let tier_group = |(group, plan): (&CacheGroup, &GroupPlan)| {
        TierGroup::new(&group.name, plan.identity.clone())
            .share(plan.part.share)
            .shares_keys(true)
            .is_rootless(group.rule != GroupRule::Full)
    };
    groups.map(tier_group).collect()
}

/// The disk, in a folder of its own for the part of a model.
fn in_own_folder(disk: &DiskSettings, groups: &[CacheGroup]) -> DiskSettings {
    let mut disk = disk.clone();
    // Some groups may be the same on all ranks.
    let mut folders = groups.iter().map(|group| {
        let shard = group.identity.shard();
        PartsSettings::own_folder(&disk.folder, &shard)
    });
    let own = folders.find(|folder| *folder != disk.folder);
    if let Some(own) = own {
        disk.folder = own;
    }
    disk
}

/// Plans the groups: what they store, and how they divide memory.
fn plans(settings: &GroupCacheSettings, facts: &[GroupFacts]) -> Result<Vec<GroupPlan>, TierError> {
    let mut stores = Vec::with_capacity(facts.len());
    let mut parts = Vec::with_capacity(facts.len());
    for group in &settings.groups {
        let identity = stored(group)?;
        parts.push(GroupPart {
            page_bytes: memory_bytes(identity.block_bytes())?,
            share: group.share,
        });
        stores.push(identity);
    }
    fill_shares(facts, &mut parts);
    let host = divide_host(facts, &parts, settings.host_bytes)?;
    let plans = stores.into_iter().zip(parts).zip(host);
    Ok(plans
        .map(|((identity, part), host_bytes)| GroupPlan {
            identity,
            part,
            host_bytes,
        })
        .collect())
}

/// What a tier stores of a group.
fn stored(group: &CacheGroup) -> Result<StoreIdentity, TierError> {
    let word = match &group.storage_word {
        Some(word) => word.clone(),
        None => Word::parse(STORAGE_WORD).map_err(LayoutError::from)?,
    };
    let strided = StridedLayout::resolve(&word, group.identity.shape(), opening::ALIGNMENT)?;
    if !strided.blocks_are_contiguous() {
        return Err(TierError::Settings(SettingsError::StorageNotContiguous {
            layout: strided.describe(),
        }));
    }
    Ok(StoreIdentity {
        logical: group.identity.clone(),
        block_layout: LayoutIdentity::of_block(&strided),
        pieces: BlockPieces::of_layout(&strided)?,
    })
}
