//! The caches of a daemon: one for each identity and order of blocks.

use std::{collections::BTreeMap, sync::Arc};

use kvtile_layout::{
    Shape,
    identity::{Fingerprint, Identity, LayoutIdentity},
};
use kvtile_tiers::{
    TierError,
    cache::{Cache, CacheSettings, FlushReport},
    tier::STORAGE_WORD,
};
use kvtile_transfer::PhysicalLayout;
use parking_lot::Mutex;

use crate::{CacheMaker, DaemonSettings};

/// Alignment of a block in host memory.
const ALIGNMENT: u64 = 4096;

/// What distinguishes the caches: the identity, and the layout of one block in the order of storage
/// (shapes with the same identity may name their planes in another order).
type ServedKey = (Fingerprint, Fingerprint);

/// The place of a cache that is open, or that a client is opening.
type ServedSlot = Arc<Mutex<Option<Arc<ServedCache>>>>;

/// A cache that clients use.
#[derive(Debug)]
pub struct ServedCache {
    cache: Cache,
    identity: Identity,
    /// Host memory.
    host: PhysicalLayout,
    block_layout: Fingerprint,
    /// Blocks of the pool.
    pool_blocks: u64,
    stride_bytes: u64,
}

impl ServedCache {
    /// The cache.
    #[must_use]
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// What its blocks mean.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    pub(crate) fn host(&self) -> &PhysicalLayout {
        &self.host
    }

    pub(crate) fn block_layout(&self) -> Fingerprint {
        self.block_layout
    }

    pub(crate) fn pool_blocks(&self) -> u64 {
        self.pool_blocks
    }

    pub(crate) fn stride_bytes(&self) -> u64 {
        self.stride_bytes
    }

    /// Its name: the model, and the start of the identity's fingerprint.
    pub(crate) fn name(&self) -> String {
        let fingerprint = self.identity.fingerprint().to_string();
        let short: String = fingerprint.chars().take(8).collect();
        format!("{} {short}", self.identity.model())
    }
}

/// Why a client gets no cache.
pub(crate) enum NoCache {
    /// As many other identities are open as the settings allow.
    TooMany { open: Vec<String>, most: usize },
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
            NoCache::Tier(error) => error.fmt(f),
        }
    }
}

/// The caches.
pub(crate) struct ServedCaches {
    settings: DaemonSettings,
    maker: Arc<CacheMaker>,
    slots: Mutex<BTreeMap<ServedKey, ServedSlot>>,
}

impl ServedCaches {
    pub(crate) fn new(settings: DaemonSettings, maker: Arc<CacheMaker>) -> ServedCaches {
        ServedCaches {
            settings,
            maker,
            slots: Mutex::default(),
        }
    }

    /// The cache of an identity, opened if it is not open. `shape` is that of an engine's block.
    pub(crate) fn get(
        &self,
        identity: &Identity,
        shape: &Shape,
    ) -> Result<Arc<ServedCache>, NoCache> {
        // The layout of an engine with one block: the cache needs one to know the shape.
        let engine = PhysicalLayout::builder()
            .with_aligned_shape(
                shape.with_num_blocks(1).map_err(TierError::from)?,
                ALIGNMENT,
            )
            .with_logical_fingerprint(identity.fingerprint())
            .layout(STORAGE_WORD)
            .allocate_system()
            .build()
            .map_err(TierError::from)?;
        let block_layout = LayoutIdentity::of_block(engine.strided()).fingerprint();
        let key = (identity.fingerprint(), block_layout);
        let slot = self.slot(key)?;
        let mut open = slot.lock();
        if let Some(cache) = &*open {
            return Ok(Arc::clone(cache));
        }
        match self.open_cache(identity, engine, key) {
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

    fn open_cache(
        &self,
        identity: &Identity,
        engine: PhysicalLayout,
        (_, block_layout): ServedKey,
    ) -> Result<ServedCache, TierError> {
        let settings = &self.settings;
        let share = settings.identities_max as u64;
        let mut of_cache = CacheSettings::new(identity.clone())
            .host_bytes(settings.host_bytes / share)
            .workers(settings.workers)
            .queue_capacity(settings.queue_capacity);
        of_cache.quotas = settings.quotas.clone();
        if settings.prefault {
            of_cache = of_cache.prefault();
        }
        if let Some(disk) = &settings.disk {
            let folder = disk.folder.join(folder_name(identity, block_layout));
            of_cache = of_cache.disk(folder, disk.bytes / share);
            if let Some(writes) = disk.writes {
                of_cache = of_cache.disk_writes(writes);
            }
        }
        let on_disk = settings.disk.as_ref().map(|disk| disk.policy);
        of_cache = of_cache.policies(settings.policy, on_disk.unwrap_or_default());
        let stride_bytes = engine.shape().block_bytes()?.next_multiple_of(ALIGNMENT);
        let builder = (self.maker)(of_cache)?.host_memory_for_readers();
        let cache = builder.open(engine)?;
        let host = cache.host_memory()?;
        let pool = cache.pool_stats(kvtile_blocks::events::TierId::HOST);
        Ok(ServedCache {
            pool_blocks: pool.map_or(0, |pool| pool.blocks as u64),
            cache,
            identity: identity.clone(),
            host,
            block_layout,
            stride_bytes,
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
        let mut reports = Vec::new();
        for slot in slots.into_values() {
            let Some(cache) = slot.lock().take() else {
                continue;
            };
            let name = cache.name();
            match Arc::try_unwrap(cache) {
                Ok(cache) => reports.push((name, cache.cache.close())),
                Err(cache) => {
                    // Another owner, such as a page of metrics, closes it when it drops it.
                    reports.push((name, cache.cache.flush()));
                }
            }
        }
        reports
    }
}

/// The folder of an identity on the disk.
fn folder_name(identity: &Identity, block_layout: Fingerprint) -> String {
    let layout: String = block_layout.to_string().chars().take(8).collect();
    format!("{}-{layout}", identity.fingerprint())
}
