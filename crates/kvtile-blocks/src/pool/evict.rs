//! Taking blocks out of the cache: those that the policy gives up, those that are named, and all.

use super::BlockPool;
use super::owned::{EvictedBlocks, Owned};
use super::share::{Share, ShareCore};
use super::slot::{KeyWords, Phase};
use super::sync::Held;
use crate::policy::Offer;
use crate::{BlockId, BlockKey, Tick};
use std::sync::Arc;

/// Why blocks are evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// An allocation needs them.
    Room,
    /// A tenant has too many.
    Quota,
    /// The caller asked for it.
    Request,
}

/// What became of keys that were to be removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Blocks that cannot be found any more.
    pub blocks: usize,
    /// How many of them are still pinned; they are free with their last pin.
    pub pinned: usize,
}

impl BlockPool {
    /// Evicts up to `count` blocks, as the policies want it. Fewer come where the others are in use.
    pub fn evict(self: &Arc<Self>, count: usize, now: Tick) -> EvictedBlocks {
        let mut ids = Vec::new();
        self.evict_fairly(count, now, Reason::Request, &mut ids, |_, _| {});
        EvictedBlocks(Owned {
            pool: Arc::clone(self),
            ids,
        })
    }

    /// Evicts from those who have most beyond their due, until all was taken that can be.
    pub(super) fn evict_fairly(
        &self,
        count: usize,
        now: Tick,
        reason: Reason,
        ids: &mut Vec<BlockId>,
        evicted_from: impl Fn(&Share, usize),
    ) -> usize {
        let mut evicted = 0;
        if self.shares.len() == 1 {
            evicted = self.evict_from(0, count, now, reason, ids);
            evicted_from(self.share(0), evicted);
            return evicted;
        }
        let mut dry = vec![false; self.shares.len()];
        while evicted < count {
            let excess = |share: &Share| share.used() as i128 - share.due as i128;
            let candidates = self.shares.iter().zip(&dry).enumerate();
            let candidates = candidates.filter(|(_, (_, dry))| !**dry);
            let fattest = candidates.max_by_key(|(_, (share, _))| excess(share));
            let Some((index, (share, _))) = fattest else {
                break;
            };
            // Down to its due first, then piece by piece.
            let wanted = usize::try_from(excess(share)).unwrap_or(0);
            let wanted = wanted.clamp(1, count - evicted);
            let taken = self.evict_from(index, wanted, now, reason, ids);
            evicted_from(share, taken);
            evicted += taken;
            if let Some(dry) = dry.get_mut(index) {
                *dry = taken < wanted;
            }
        }
        evicted
    }

    /// Evicts up to `wanted` blocks of one share. They stay charged to it.
    pub(super) fn evict_from(
        &self,
        index: usize,
        wanted: usize,
        now: Tick,
        reason: Reason,
        ids: &mut Vec<BlockId>,
    ) -> usize {
        let mut core = self.share(index).lock();
        let ShareCore {
            policy,
            listed,
            keys,
            ..
        } = &mut *core;
        let start = ids.len();
        keys.clear();
        policy.evict(wanted, now, &mut |id| self.offered(id, keys, ids));
        if let Some(events) = &self.events {
            events.log.removed(events.tier, keys);
        }
        for &id in ids.iter().skip(start) {
            listed.remove(id);
            self.index.unlink(&self.slots, id);
            let slot = self.slots.of(id);
            slot.set_state(slot.state().with_phase(Phase::Evicted));
        }
        let evicted = ids.len() - start;
        self.counters.evict(reason, evicted);
        evicted
    }

    /// Takes a block that the policy offers, unless somebody uses it; then it is marked, so that the
    /// last user tells the policy.
    fn offered(&self, id: BlockId, keys: &mut Vec<BlockKey>, ids: &mut Vec<BlockId>) -> Offer {
        let slot = self.slots.of(id);
        let mut state = slot.state();
        loop {
            assert!(state.is_registered(), "policies offer what is stored");
            let used = state.references() > 0;
            let new = if used {
                state.with_parked(true)
            } else {
                state.with_phase(Phase::Evicting).with_parked(false)
            };
            match slot.exchange(state, new) {
                Ok(()) if used => return Offer::Pinned,
                Ok(()) => break,
                Err(actual) => state = actual,
            }
        }
        let key = slot.key().key();
        keys.push(key);
        ids.push(id);
        Offer::Taken(key)
    }

    /// Makes blocks impossible to find, for example because their bytes are bad. Whoever has pinned
    /// one keeps it; it is free with the last pin.
    pub fn remove(&self, keys: &[BlockKey]) -> Removed {
        let mut removed = Removed::default();
        let mut withdrawn = Vec::new();
        for key in keys {
            let words = KeyWords::new(key);
            // The block may leave and come back under another policy until its lock is ours.
            while let Some(id) = self.registered(words) {
                let index = self.slots.of(id).share();
                let mut core = self.share(index).lock();
                let listed = core.listed.contains(id);
                if self.slots.of(id).share() == index
                    && let Some(pinned) = self.withdraw(&mut core, id, words)
                {
                    if let Some(events) = self.events.as_ref().filter(|_| listed) {
                        events.log.removed(events.tier, &[*key]);
                    }
                    self.index.unlink(&self.slots, id);
                    removed.blocks += 1;
                    removed.pinned += usize::from(pinned);
                    withdrawn.push(id);
                    break;
                }
            }
        }
        self.counters.remove(removed.blocks);
        self.unpin(&mut withdrawn);
        removed
    }

    /// Makes all blocks impossible to find.
    pub fn clear(&self) -> Removed {
        let mut removed = Removed::default();
        let mut withdrawn = Vec::new();
        let mut cores: Vec<Held<'_, ShareCore>> = Vec::new();
        for share in &self.shares {
            cores.push(share.lock());
        }
        for core in &mut cores {
            let listed: Vec<BlockId> = core.listed.iter().collect();
            for id in listed {
                let key = self.slots.of(id).key();
                if let Some(pinned) = self.withdraw(core, id, key) {
                    removed.pinned += usize::from(pinned);
                    withdrawn.push(id);
                }
            }
        }
        removed.blocks = withdrawn.len();
        if let Some(events) = &self.events {
            events.log.cleared(events.tier);
        }
        for &id in &withdrawn {
            self.index.unlink(&self.slots, id);
        }
        drop(cores);
        self.counters.clear(removed.blocks);
        self.unpin(&mut withdrawn);
        removed
    }

    /// A registered block with this key, not pinned.
    pub(super) fn registered(&self, key: KeyWords) -> Option<BlockId> {
        let registered = |id| {
            self.slots
                .get(id)
                .state()
                .is_registered()
                .then_some(BlockId(id))
        };
        self.index.find(&self.slots, key, registered)
    }

    /// Takes a registered block from its policy, and pins it while it goes; says whether others have
    /// pinned it. One that is not listed yet is pinned by whoever registers it, who then finds that it
    /// is gone and does not report it either.
    fn withdraw(&self, core: &mut ShareCore, id: BlockId, key: KeyWords) -> Option<bool> {
        let slot = self.slots.of(id);
        let mut state = slot.state();
        loop {
            if !state.is_registered() || slot.key() != key {
                return None;
            }
            let new = state.with_phase(Phase::Withdrawn).with_parked(false);
            match slot.exchange(state, new.pinned()) {
                Ok(()) => break,
                Err(actual) => state = actual,
            }
        }
        if core.listed.contains(id) {
            core.policy.removed(id);
            core.listed.remove(id);
        }
        Some(state.references() > 0)
    }
}
