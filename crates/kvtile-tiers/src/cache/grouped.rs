//! What a cache over groups needs of the cache of one group.

use std::{sync::Arc, time::Duration};

use kvtile_blocks::{
    BlockKey,
    events::{StoredBlock, TierId},
};
use kvtile_transfer::{LayoutHandle, completion::Completion};

use super::{
    Cache, CacheParts, LoadOptions, LoadReport, LookupOptions, Match, StoreOptions, StoreReport,
    below::{CacheTier, GROUP},
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

    /// Refuses a layout or ids that a load or a store of the group refuses.
    pub(crate) fn check_blocks(
        &self,
        group: &str,
        layout: Option<LayoutHandle>,
        blocks: &[usize],
    ) -> Result<(), TierError> {
        if layout.is_none() && self.engine.is_none() {
            return match blocks {
                [] => Ok(()),
                _ => Err(TierError::Request(RequestError::NoLayout {
                    group: group.to_owned(),
                })),
            };
        }
        requests::check_blocks(self, layout, blocks).map(|_| ())
    }

    /// Whether the layout of a load or a store is in memory of a device.
    pub(crate) fn is_on_device(&self, layout: Option<LayoutHandle>) -> Result<bool, TierError> {
        let engine = self.engine.as_ref().map(|engine| engine.handle);
        match layout.or(engine) {
            Some(handle) => Ok(self.manager.layout(handle)?.device().is_some()),
            None => Ok(false),
        }
    }

    /// Starts a load.
    pub(crate) fn bring(
        self: &Arc<Self>,
        found: Match,
        destinations: &[usize],
        options: &LoadOptions,
    ) -> Result<Completion<LoadReport>, TierError> {
        load::start(self, found, destinations, options)
    }

    /// Starts bringing the blocks of a match to host memory.
    pub(crate) fn warm(
        self: &Arc<Self>,
        found: Match,
    ) -> Result<Completion<LoadReport>, TierError> {
        load::prefetch_found(self, found)
    }

    /// Starts a store.
    pub(crate) fn keep(
        self: &Arc<Self>,
        keys: &[BlockKey],
        blocks: &[usize],
        options: &StoreOptions,
    ) -> Result<Completion<StoreReport>, TierError> {
        store::start(self, keys, blocks, options)
    }

    /// Evicts host blocks, or blocks of the group in the tiers below.
    pub(crate) fn evict_blocks(&self, tier: TierId, blocks: usize) -> Result<usize, TierError> {
        if tier != TierId::HOST && !self.below.iter().any(|below| below.id == tier) {
            return Err(TierError::Request(RequestError::NoSuchTier { tier }));
        }
        super::demote::evict(self, tier, blocks)
    }

    /// Appends the blocks of host memory.
    pub(crate) fn list_host(&self, blocks: &mut Vec<StoredBlock>) {
        self.host.pool.list_stored(blocks);
    }
}
