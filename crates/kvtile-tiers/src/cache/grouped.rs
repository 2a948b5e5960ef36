//! What a cache over groups needs of the cache of one group.

use std::{sync::Arc, time::Duration};

use kvtile_blocks::{BlockKey, events::StoredBlock};
use kvtile_transfer::{LayoutHandle, completion::Completion};

use super::{
    Cache, CacheBackend, CacheParts, LoadOptions, LoadReport, LookupOptions, Match, StoreOptions,
    StoreReport,
    below::{CacheTier, GROUP},
    connect::ConnectedParts,
    found, load, requests,
    seek::SoughtAnswers,
    store, tend,
};
use crate::{
    error::{RequestError, TierError},
    metrics::MissReason,
    tier::{AnswerTime, TierWrites},
};

impl Cache {
    /// The parts of a cache that is in this process.
    pub(crate) fn parts_of_group(&self) -> Option<&Arc<CacheParts>> {
        self.parts_here()
    }

    /// The parts of a cache that is connected to a daemon.
    pub(crate) fn parts_of_connection(&self) -> Option<&Arc<ConnectedParts>> {
        match &self.backend {
            CacheBackend::Here(_) => None,
            CacheBackend::There(cache) => Some(cache.parts()),
        }
    }
}

/// The cache of one group, in this process or in a daemon.
pub(crate) enum CacheOfGroup {
    /// In this process.
    Here(Arc<CacheParts>),
    /// In a daemon.
    There(Arc<ConnectedParts>),
}

impl CacheOfGroup {
    /// Refuses a layout or ids that a load or a store of the group refuses.
    pub(crate) fn check_blocks(
        &self,
        group: &str,
        layout: Option<LayoutHandle>,
        blocks: &[usize],
    ) -> Result<(), TierError> {
        let has_layout = match self {
            CacheOfGroup::Here(cache) => cache.engine.is_some(),
            CacheOfGroup::There(cache) => cache.has_engine(),
        };
        if layout.is_none() && !has_layout {
            return match blocks {
                [] => Ok(()),
                _ => Err(TierError::Request(RequestError::NoLayout {
                    group: group.to_owned(),
                })),
            };
        }
        match self {
            CacheOfGroup::Here(cache) => requests::check_blocks(cache, layout, blocks).map(drop),
            CacheOfGroup::There(cache) => cache.check_blocks(layout, blocks).map(drop),
        }
    }

    /// Whether the layout of a load or a store is in memory of a device.
    pub(crate) fn is_on_device(&self, layout: Option<LayoutHandle>) -> Result<bool, TierError> {
        let (manager, engine) = match self {
            CacheOfGroup::Here(cache) => {
                let engine = cache.engine.as_ref().map(|engine| engine.handle);
                (&cache.manager, engine)
            }
            // A daemon's client copies from memory of the host alone.
            CacheOfGroup::There(_) => return Ok(false),
        };
        match layout.or(engine) {
            Some(handle) => Ok(manager.layout(handle)?.device().is_some()),
            None => Ok(false),
        }
    }

    /// Starts a load.
    pub(crate) fn bring(
        &self,
        found: Match,
        destinations: &[usize],
        options: &LoadOptions,
    ) -> Result<Completion<LoadReport>, TierError> {
        match self {
            CacheOfGroup::Here(cache) => load::start(cache, found, destinations, options),
            CacheOfGroup::There(cache) => {
                let found = found.into_connected();
                let found = found.map_err(|_| TierError::Request(RequestError::OtherCache))?;
                cache.load(found, destinations, options)
            }
        }
    }

    /// Starts bringing the blocks of a match, which have these keys, to host memory.
    pub(crate) fn warm(
        &self,
        found: Match,
        keys: &[BlockKey],
    ) -> Result<Completion<LoadReport>, TierError> {
        match self {
            CacheOfGroup::Here(cache) => load::prefetch_found(cache, found),
            CacheOfGroup::There(cache) => {
                let found = found.into_connected();
                let found = found.map_err(|_| TierError::Request(RequestError::OtherCache))?;
                cache.prefetch_found(found, keys)
            }
        }
    }

    /// Starts a store.
    pub(crate) fn keep(
        &self,
        keys: &[BlockKey],
        blocks: &[usize],
        options: &StoreOptions,
    ) -> Result<Completion<StoreReport>, TierError> {
        match self {
            CacheOfGroup::Here(cache) => store::start(cache, keys, blocks, options),
            CacheOfGroup::There(cache) => cache.store(keys, blocks, options),
        }
    }

    /// Whether the block is known to be stored: no copy of it is needed. A daemon compares when it stores.
    pub(crate) fn is_stored(&self, key: &BlockKey) -> bool {
        match self {
            CacheOfGroup::Here(cache) => cache.has_block(key),
            CacheOfGroup::There(_) => false,
        }
    }
}

impl CacheParts {
    /// Whether a lookup finds the block now.
    pub(crate) fn has_block(&self, key: &BlockKey) -> bool {
        let mark = self.departures.mark();
        if self.has_still_block(key) {
            return true;
        }
        let is_still = mark.is_multiple_of(2) && self.departures.mark() == mark;
        if self.below.is_empty() || is_still {
            return false;
        }
        // Under the lock no block is on its way unseen.
        let locked = self.departures.lock();
        self.has_still_block(key) || locked.get(key).is_some()
    }

    fn has_still_block(&self, key: &BlockKey) -> bool {
        let now = self.clock.now();
        let mut below = self.below.iter();
        self.host.pool.has(key) || below.any(|below| below.may_look(now) && below.has(key))
    }

    /// Whether any place has the block, also one whose reads are in a backoff.
    pub(crate) fn keeps_block(&self, key: &BlockKey) -> bool {
        let locked = self.departures.lock();
        let mut below = self.below.iter();
        self.host.pool.has(key) || locked.get(key).is_some() || below.any(|below| below.has(key))
    }

    /// Removes blocks from host memory and from the tiers below. Blocks that are in use keep their
    /// bytes, but no lookup finds them. Returns the number that host memory or a tier had.
    pub(crate) fn remove_blocks(&self, keys: &[BlockKey]) -> usize {
        let mut removed = self.host.pool.remove(keys).blocks;
        for below in &self.below {
            let forgotten = below.tier.forget(GROUP, keys);
            if forgotten > 0 {
                below.spill.touched(self.clock.now());
            }
            removed = removed.max(forgotten);
        }
        removed
    }

    /// Queues host blocks, with their ancestors, to be written to the durable tiers that lack them.
    pub(crate) fn write_soon(&self, keys: &[BlockKey]) {
        for below in self.durable_tiers() {
            if below.settings.writes == TierWrites::Never {
                continue;
            }
            let is_due = |key: &&BlockKey| self.host.pool.has(key) && !below.has(key);
            let due: Vec<BlockKey> = keys.iter().filter(is_due).copied().collect();
            if !due.is_empty() {
                tend::spill(self, below, &due);
            }
        }
    }

    /// Whether a tier answers later and may be queried now.
    pub(crate) fn has_late_answers(&self) -> bool {
        let now = self.clock.now();
        let is_late =
            |below: &CacheTier| below.abilities.answers == AnswerTime::Later && below.may_look(now);
        self.below.iter().any(is_late)
    }

    /// The estimated time to read those of the blocks that are not in host memory; tiers without an
    /// estimate take none.
    pub(crate) fn reading_time(&self, keys: &[BlockKey]) -> Duration {
        let absent = |key: &&BlockKey| !self.host.pool.has(key);
        let mut left: Vec<BlockKey> = keys.iter().filter(absent).copied().collect();
        let mut time = Duration::ZERO;
        for below in &self.below {
            let (here, others): (Vec<BlockKey>, Vec<BlockKey>) =
                left.into_iter().partition(|key| below.has(key));
            if !here.is_empty() {
                let estimate = below.tier.estimate(GROUP, here.len());
                time += estimate.unwrap_or_default();
            }
            left = others;
        }
        time
    }

    /// Queries the tiers that answer later for blocks.
    pub(crate) fn ask(&self, keys: &[BlockKey]) -> SoughtAnswers {
        SoughtAnswers::begin(self, keys)
    }

    /// Finds and pins the leading blocks of `keys`.
    pub(crate) fn find(self: &Arc<Self>, keys: &[BlockKey], options: &LookupOptions) -> Match {
        found::lookup(self, keys, (options, MissReason::Absent))
    }

    /// Appends the blocks of host memory.
    pub(crate) fn list_host(&self, blocks: &mut Vec<StoredBlock>) {
        self.host.pool.list_stored(blocks);
    }
}
