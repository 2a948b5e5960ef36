//! Opening a cache: it builds the parts and checks that they fit each other.

use std::sync::Arc;

use kvtile_blocks::{
    BlockId, GroupId,
    events::{EventLog, TierId},
    policy::{EvictionPolicy, PolicyKind, PolicySettings},
    pool::{BlockPool, EventSink, PoolSettings},
};
use kvtile_layout::{LayoutError, Shape, Word, broken, identity::LayoutIdentity};
use kvtile_memory::Prefault;
use kvtile_transfer::{LayoutHandle, PhysicalLayout, TransferManager};
use parking_lot::{Mutex, RwLock};

use super::{
    Cache, CacheBackend, CacheParts, CacheSettings, Clock, LocalCache, SystemClock, below::GROUP,
    chains::StoresInFlight, counts, departures::Departures, flights::BlockFlights, host::HostTier,
    tend, work,
};
use crate::{
    disk::{DiskSettings, medium::Medium},
    error::{SettingsError, TierError},
    metrics::CacheMetrics,
    opening::{self, StorageMemory},
    parts::{FolderParts, PartsSettings, PartsTier},
    queue::JobQueue,
    tier::{
        BlockPieces, STORAGE_WORD, StoreIdentity, Tier, TierContext, TierGroup, TierOpener,
        TierSettings,
    },
};

/// The name of the only group of a cache.
const GROUP_NAME: &str = "kv";

/// Opens a [`Cache`] with other components than the defaults.
#[must_use = "a builder does nothing until `open` is called"]
pub struct CacheBuilder {
    settings: CacheSettings,
    clock: Arc<dyn Clock>,
    medium: Option<Arc<dyn Medium>>,
    tiers: Vec<(TierSettings, TierOpener)>,
    /// Whether other processes may map host memory for reading.
    for_readers: bool,
    /// The place in a cache over groups, for a group of one.
    place: Option<GroupPlace>,
}

/// The place of a group in a cache over groups.
pub(crate) struct GroupPlace {
    pub(crate) group: GroupId,
    /// The log of all groups.
    pub(crate) events: Arc<EventLog>,
    /// Whether blocks have no parents.
    pub(crate) is_rootless: bool,
}

/// The engine's layout, which calls use that name no other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EngineLayout {
    pub(crate) handle: LayoutHandle,
    /// Blocks of the layout.
    pub(crate) blocks: u64,
    /// Whether closing the cache unregisters the layout.
    pub(crate) is_owned: bool,
}

impl Cache {
    /// Opens a cache for an engine whose blocks lie in `engine`, with its own transfer manager.
    ///
    /// # Errors
    /// Settings out of range; an identity that does not match the engine's shape; host memory or a
    /// disk too small for one block; memory that the system refuses; a folder that is in use, has
    /// another identity or layout (the message names the first field that differs), or cannot be
    /// read or written.
    pub fn open(settings: CacheSettings, engine: PhysicalLayout) -> Result<Cache, TierError> {
        Cache::builder(settings).open(engine)
    }

    /// Starts a builder for a cache with other components.
    pub fn builder(settings: CacheSettings) -> CacheBuilder {
        CacheBuilder {
            settings,
            clock: Arc::new(SystemClock::default()),
            medium: None,
            tiers: Vec::new(),
            for_readers: false,
            place: None,
        }
    }
}

impl CacheBuilder {
    /// Sets the clock.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> CacheBuilder {
        self.clock = clock;
        self
    }

    /// Sets the medium that stores the files of the disk tier, instead of the folder of the
    /// settings.
    pub fn medium(mut self, medium: Arc<dyn Medium>) -> CacheBuilder {
        self.medium = Some(medium);
        self
    }

    /// Adds a tier below the existing ones. The cache opens it and looks for blocks in the tiers in
    /// the order in which they were added, after the disk of the settings.
    pub fn tier(
        mut self,
        settings: TierSettings,
        open: impl FnOnce(&TierContext) -> Result<Arc<dyn Tier>, TierError> + Send + 'static,
    ) -> CacheBuilder {
        self.tiers.push((settings, Box::new(open)));
        self
    }

    /// Allocates host memory that other processes may map for reading
    /// ([`Cache::host_memory`]). Only this process can write it.
    pub fn host_memory_for_readers(mut self) -> CacheBuilder {
        self.for_readers = true;
        self
    }

    /// Opens the cache with its own transfer manager.
    ///
    /// # Errors
    /// Those of [`Cache::open`]; two tiers with the same name; an error of a tier.
    pub fn open(self, engine: PhysicalLayout) -> Result<Cache, TierError> {
        let manager = Arc::new(TransferManager::new());
        let handle = manager.register(engine)?;
        self.open_over(manager, handle, true)
    }

    /// Opens the cache for a layout that is registered with the engine's transfer manager.
    ///
    /// # Errors
    /// Those of [`Cache::open`]; a handle that the manager does not know.
    pub fn open_registered(
        self,
        manager: Arc<TransferManager>,
        engine: LayoutHandle,
    ) -> Result<Cache, TierError> {
        self.open_over(manager, engine, false)
    }

    fn open_over(
        self,
        manager: Arc<TransferManager>,
        handle: LayoutHandle,
        is_owned: bool,
    ) -> Result<Cache, TierError> {
        self.settings.check()?;
        let layout = manager.layout(handle)?;
        opening::check_identity(&self.settings.identity, &layout)?;
        let shape = layout.shape();
        let engine = EngineLayout {
            handle,
            blocks: shape.num_blocks(),
            is_owned,
        };
        self.build(manager, shape, Some(engine))
    }

    /// Opens the cache of one group of a cache over groups. Without a layout of the engine each call gives one.
    pub(crate) fn open_group(
        mut self,
        place: GroupPlace,
        manager: Arc<TransferManager>,
        engine: Option<EngineLayout>,
    ) -> Result<Cache, TierError> {
        self.settings.check()?;
        self.place = Some(place);
        let shape = self.settings.identity.shape().clone();
        self.build(manager, &shape, engine)
    }

    /// Opens the cache for blocks of `shape`, whose number of blocks does not matter.
    fn build(
        self,
        manager: Arc<TransferManager>,
        shape: &Shape,
        engine: Option<EngineLayout>,
    ) -> Result<Cache, TierError> {
        let settings = self.settings;
        let (group, events) = match &self.place {
            Some(place) => (place.group, Arc::clone(&place.events)),
            None => (GROUP, Arc::new(EventLog::new(settings.events()?)?)),
        };
        let parts = match self.medium {
            // Another medium than a folder has no folders of parts.
            Some(_) => None,
            None => parts_of(&settings, shape)?,
        };
        let below = usize::from(settings.disk.is_some()) + usize::from(parts.is_some());
        let spares = below + self.tiers.len();
        let blocks = host_blocks(&settings, shape, spares)?;
        let layout = engine.as_ref().map(|engine| manager.layout(engine.handle));
        let memory = (self.for_readers, layout.transpose()?);
        let storage = host_layout(&settings, (shape, blocks, spares), memory)?;
        let shape = storage.shape().clone();
        let block_bytes = shape.block_bytes()?;
        let pieces = BlockPieces::of_layout(storage.strided())?;
        let context = TierContext {
            groups: vec![tier_group(&settings, &storage, &pieces)],
            events: Arc::clone(&events),
            clock: Arc::clone(&self.clock),
            threads: settings.workers,
        };
        let (disk, tiers) = with_parts(&settings, parts, self.tiers);
        let below = opening::open_below(disk.as_ref(), self.medium, tiers, &context)?;
        let mut tiers = vec![TierId::DEVICE, TierId::HOST];
        tiers.extend(below.iter().map(|below| below.id));
        let pool = host_pool(&settings, blocks, (&events, group))?;
        let handle = manager.register(storage)?;
        let inner = Arc::new(CacheParts {
            removals: Arc::default(),
            engine,
            layers: layers(&shape),
            page_size: shape.page_size(),
            block_bytes,
            pieces,
            is_rootless: self.place.is_some_and(|place| place.is_rootless),
            host: HostTier::new(pool, handle, (blocks..).take(spares).map(BlockId)),
            turn: Mutex::new(()),
            demotions: RwLock::new(()),
            departures: Departures::default(),
            seen: (0..=below.len()).map(|_| Mutex::default()).collect(),
            below,
            queue: JobQueue::new(settings.queue_capacity),
            chains: StoresInFlight::default(),
            flights: BlockFlights::default(),
            clock: self.clock,
            metrics: Arc::new(CacheMetrics::new(&tiers)),
            events,
            manager,
            settings,
        });
        counts::count_queue_capacity(&inner);
        let mut cache = LocalCache {
            inner,
            workers: Vec::new(),
            is_closed: false,
            owner: Arc::new(()),
        };
        cache.start()?;
        Ok(Cache {
            backend: CacheBackend::Here(cache),
        })
    }
}

impl LocalCache {
    /// Starts the worker threads: those of the queue, and one for each tier.
    fn start(&mut self) -> Result<(), TierError> {
        let cache = self;
        for number in 0..cache.inner.settings.workers {
            cache.spawn(format!("kvtile-cache-{number}"), work::work)?;
        }
        let tended = match cache.inner.settings.workers {
            0 => 0,
            _ => cache.inner.below.len(),
        };
        for tier in 0..tended {
            let name = format!("kvtile-cache-{}", cache.inner.tier(tier).id.name());
            cache.spawn(name, move |inner| tend::serve_tier(inner, inner.tier(tier)))?;
        }
        Ok(())
    }

    /// Starts a thread. If that fails, the caller drops the cache, which ends the threads that are
    /// running.
    fn spawn(
        &mut self,
        name: String,
        work: impl FnOnce(&CacheParts) + Send + 'static,
    ) -> Result<(), TierError> {
        let inner = Arc::clone(&self.inner);
        let thread = std::thread::Builder::new().name(name);
        let thread = thread.spawn(move || work(&inner));
        self.workers.push(thread.map_err(TierError::thread)?);
        Ok(())
    }
}

/// What the tiers store of the only group.
fn tier_group(
    settings: &CacheSettings,
    storage: &PhysicalLayout,
    pieces: &BlockPieces,
) -> TierGroup {
    let identity = StoreIdentity {
        logical: settings.identity.clone(),
        block_layout: LayoutIdentity::of_block(storage.strided()),
        pieces: pieces.clone(),
    };
    TierGroup::new(GROUP_NAME, identity).has_part_readers(true)
}

/// The parts of other ranks in the disk's folder; `None` if this cache has the whole model and there
/// are none.
fn parts_of(settings: &CacheSettings, shape: &Shape) -> Result<Option<PartsSettings>, TierError> {
    let Some(disk) = &settings.disk else {
        return Ok(None);
    };
    let shard = shape.shard();
    let own_folder = PartsSettings::own_folder(&disk.folder, &shard);
    if own_folder == disk.folder && !PartsSettings::has_parts(&disk.folder)? {
        return Ok(None);
    }
    let word = match &settings.storage_word {
        Some(word) => word.clone(),
        None => Word::parse(STORAGE_WORD).map_err(LayoutError::from)?,
    };
    let source = FolderParts::new(&disk.folder, &shard, disk.refresh_after);
    let source = source.limit(disk.capacity_bytes);
    Ok(Some(PartsSettings::new(
        Arc::new(source),
        shape.clone(),
        word,
    )))
}

/// A tier of a builder that is not open yet.
type UnopenedTier = (TierSettings, TierOpener);

/// The disk with the folder of the own part, and the tier of the other parts in front of the others.
fn with_parts(
    settings: &CacheSettings,
    parts: Option<PartsSettings>,
    mut tiers: Vec<UnopenedTier>,
) -> (Option<DiskSettings>, Vec<UnopenedTier>) {
    let (Some(mut disk), Some(parts)) = (settings.disk.clone(), parts) else {
        return (settings.disk.clone(), tiers);
    };
    disk.folder = PartsSettings::own_folder(&disk.folder, &parts.shape.shard());
    let only_reads = disk.follower();
    let open: TierOpener = Box::new(move |context| {
        let tier = PartsTier::open(parts, context)?;
        Ok(Arc::new(tier) as Arc<dyn Tier>)
    });
    tiers.insert(0, (only_reads, open));
    (Some(disk), tiers)
}

/// Unregisters the layouts that the cache registered.
pub(super) fn unregister(inner: &CacheParts) {
    let engine = inner.engine.filter(|engine| engine.is_owned);
    let engine = engine.map(|engine| engine.handle);
    for handle in [Some(inner.host.handle), engine].into_iter().flatten() {
        if let Err(error) = inner.manager.unregister(handle) {
            log::warn!("a layout of a closed cache is still in use: {error}");
        }
    }
}

/// The pool of host memory.
fn host_pool(
    settings: &CacheSettings,
    blocks: u32,
    (events, group): (&Arc<EventLog>, GroupId),
) -> Result<Arc<BlockPool>, TierError> {
    let pool = PoolSettings::new()
        .blocks(blocks as usize)
        .quotas(settings.quotas.clone());
    let sink = EventSink {
        log: Arc::clone(events),
        tier: TierId::HOST,
        group,
    };
    Ok(BlockPool::with_events(pool, policy(settings.policy), sink)?)
}

/// Number of layers of a block.
fn layers(shape: &Shape) -> usize {
    let layers = shape.num_layers();
    match usize::try_from(layers) {
        Ok(layers) => layers,
        Err(_) => broken(format_args!("{layers} layers of a block")),
    }
}

/// Number of blocks that fit in host memory.
fn host_blocks(settings: &CacheSettings, shape: &Shape, spares: usize) -> Result<u32, TierError> {
    let block_bytes = shape.block_bytes()?;
    let stride = block_bytes.checked_next_multiple_of(opening::ALIGNMENT);
    let stride = stride.ok_or(SettingsError::BlockBytes { block_bytes });
    let stride = stride.map_err(TierError::Settings)?;
    // The pool counts blocks in 32 bits, and the spare blocks come after its blocks.
    let most = u64::from(u32::MAX - 1).saturating_sub(spares as u64);
    let blocks = (settings.host_bytes / stride).min(most);
    if blocks == 0 {
        return Err(TierError::Settings(SettingsError::HostTooSmall {
            host_bytes: settings.host_bytes,
            needed_bytes: stride,
        }));
    }
    match u32::try_from(blocks) {
        Ok(blocks) => Ok(blocks),
        Err(_) => broken(format_args!("{blocks} host blocks of at most {most}")),
    }
}

/// Allocates host memory: the blocks of the pool, and one spare block for each tier below.
fn host_layout(
    settings: &CacheSettings,
    (shape, blocks, spares): (&Shape, u32, usize),
    (for_readers, engine): (bool, Option<PhysicalLayout>),
) -> Result<PhysicalLayout, TierError> {
    let all = u64::from(blocks) + spares as u64;
    let shape = shape.with_num_blocks(all)?;
    let prefault = match settings.prefault {
        true => Prefault::Populate { threads: 0 },
        false => Prefault::None,
    };
    let on_device = engine.filter(|engine| engine.device().is_some());
    let memory = match (for_readers, on_device) {
        (true, _) => StorageMemory::ForReaders(prefault),
        // Copies with a device are direct from and to registered memory, whose pages are there from the start.
        (false, Some(engine)) => StorageMemory::ForDeviceOf(engine),
        (false, None) => StorageMemory::Own(prefault),
    };
    let word = settings.storage_word.as_ref();
    opening::storage(shape, &settings.identity, word, memory)
}

/// A factory of policies for a pool.
fn policy(kind: PolicyKind) -> impl FnMut(u32) -> Box<dyn EvictionPolicy> {
    move |blocks| PolicySettings::from(kind).build(blocks)
}
