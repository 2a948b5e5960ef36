//! Removing blocks from the cache: those that the policy selects, named ones, and all.

use super::BlockPool;
use super::children::ChildCounts;
use super::owned::{EvictedBlocks, OwnedBlocks};
use super::share::{PoolShare, PoolShareCore};
use super::slot::{BlockPhase, KeyWords};
use super::sync::PoolLockGuard;
use crate::policy::EvictionRefusal;
use crate::{BlockId, BlockKey, Tick};
use std::sync::Arc;

/// Why blocks are evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EvictionTrigger {
    /// An allocation needs room.
    Room,
    /// A tenant is at its quota.
    Quota,
    /// The caller requested it.
    Request,
}

/// The result of evicting from one share.
#[derive(Clone, Copy, Debug)]
pub(super) struct ShareEviction {
    pub(super) blocks: usize,
    /// Whether blocks of other shares became leaves.
    pub(super) leaves_elsewhere: bool,
}

/// The result of removing keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RemovedBlocks {
    /// Blocks that lookups do not find any more.
    pub blocks: usize,
    /// Of them: still pinned. The last unpin frees them.
    pub pinned: usize,
}

impl BlockPool {
    /// Evicts up to `count` blocks in the order of the policies, never a block before its cached
    /// children. Fewer are evicted if the others, or their descendants, are in use.
    pub fn evict(self: &Arc<Self>, count: usize, now: Tick) -> EvictedBlocks {
        let mut ids = Vec::new();
        self.evict_fairly(count, now, EvictionTrigger::Request, &mut ids, |_, _| {});
        EvictedBlocks(OwnedBlocks {
            pool: Arc::clone(self),
            ids,
        })
    }

    /// Evicts from the share that exceeds its due the most, until `count` blocks are evicted or no
    /// more can be.
    pub(super) fn evict_fairly(
        &self,
        count: usize,
        now: Tick,
        reason: EvictionTrigger,
        ids: &mut Vec<BlockId>,
        evicted_from: impl Fn(&PoolShare, usize),
    ) -> usize {
        if self.shares.len() == 1 {
            let taken = self.evict_from(0, count, now, reason, ids);
            evicted_from(self.share(0), taken.blocks);
            return taken.blocks;
        }
        let mut evicted = 0;
        let mut dry = vec![false; self.shares.len()];
        while evicted < count {
            let excess = |share: &PoolShare| share.used() as i128 - share.due as i128;
            let candidates = self.shares.iter().zip(&dry).enumerate();
            let candidates = candidates.filter(|(_, (_, dry))| !**dry);
            let fattest = candidates.max_by_key(|(_, (share, _))| excess(share));
            let Some((index, (share, _))) = fattest else {
                break;
            };
            // First down to its due, then block by block.
            let wanted = usize::try_from(excess(share)).unwrap_or(0);
            let wanted = wanted.clamp(1, count - evicted);
            let taken = self.evict_from(index, wanted, now, reason, ids);
            evicted_from(share, taken.blocks);
            evicted += taken.blocks;
            if taken.leaves_elsewhere {
                dry.fill(false);
            }
            if let Some(dry) = dry.get_mut(index) {
                *dry = taken.blocks < wanted;
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
        reason: EvictionTrigger,
        ids: &mut Vec<BlockId>,
    ) -> ShareEviction {
        let start = ids.len();
        let mut core = self.share(index).lock();
        core.keys.clear();
        let leaves = self.take_leaves(index, &mut core, (wanted, now), ids);
        if let Some(events) = &self.events {
            events.log.removed(events.tier, events.group, &core.keys);
        }
        let evicted = ids.get(start..).unwrap_or_default();
        self.index.warm(&self.slots, evicted);
        for &id in evicted {
            core.listed.remove(id);
            self.index.unlink(&self.slots, id);
            let slot = self.slots.of(id);
            slot.set_state(slot.state().with_phase(BlockPhase::Evicted));
        }
        drop(core);
        for &parent in &leaves {
            self.tell_leaf(parent);
        }
        let blocks = ids.len() - start;
        self.counters.evict(reason, blocks);
        ShareEviction {
            blocks,
            leaves_elsewhere: !leaves.is_empty(),
        }
    }

    /// Evicts leaves that the policy offers. Returns blocks of other shares that became leaves.
    fn take_leaves(
        &self,
        index: usize,
        core: &mut PoolShareCore,
        (wanted, now): (usize, Tick),
        ids: &mut Vec<BlockId>,
    ) -> Vec<BlockId> {
        let mut children = self.children.lock();
        let mut elsewhere = Vec::new();
        let mut taken = 0;
        while taken < wanted {
            let Some(id) = core.policy.candidate(now) else {
                let leaves = children.cut_cycles(self.of_keys());
                if leaves.is_empty() {
                    break;
                }
                for parent in leaves {
                    self.note_leaf(index, core, parent, &mut elsewhere);
                }
                continue;
            };
            if let Err(refusal) = self.claim_leaf(&children, id) {
                core.policy.refused(id, refusal);
                continue;
            }
            let key = self.slots.of(id).key().key();
            core.keys.push(key);
            ids.push(id);
            taken += 1;
            core.policy.evicted(id, &key);
            if let Some(parent) = children.unlist(self.of_keys(), id) {
                self.note_leaf(index, core, parent, &mut elsewhere);
            }
        }
        elsewhere
    }

    /// Reports a new leaf to the policy of this share; a leaf of another share goes to `elsewhere`.
    fn note_leaf(
        &self,
        index: usize,
        core: &mut PoolShareCore,
        parent: BlockId,
        elsewhere: &mut Vec<BlockId>,
    ) {
        if self.slots.of(parent).share() == index {
            core.policy.became_leaf(parent);
        } else {
            elsewhere.push(parent);
        }
    }

    /// Reports a new leaf to its policy. The caller holds no policy's lock, so the block may have
    /// new children or have left: its current state decides.
    fn tell_leaf(&self, block: BlockId) {
        let index = self.slots.of(block).share();
        let mut core = self.share(index).lock();
        let here = self.slots.of(block).share() == index && core.listed.contains(block);
        if here && !self.children.lock().has(block) {
            core.policy.became_leaf(block);
        }
    }

    /// Claims a block that the policy offers, unless it has a cached child or is pinned. A pinned
    /// block is marked parked, so that its last unpin reports it to the policy.
    fn claim_leaf(&self, children: &ChildCounts, id: BlockId) -> Result<(), EvictionRefusal> {
        if children.has(id) {
            return Err(EvictionRefusal::Followed);
        }
        let slot = self.slots.of(id);
        let mut state = slot.state();
        loop {
            assert!(
                state.is_registered(),
                "policies offer only registered blocks"
            );
            let used = state.references() > 0;
            let new = if used {
                state.with_parked(true)
            } else {
                state.with_phase(BlockPhase::Evicting).with_parked(false)
            };
            match slot.exchange(state, new) {
                Ok(()) if used => return Err(EvictionRefusal::Pinned),
                Ok(()) => return Ok(()),
                Err(actual) => state = actual,
            }
        }
    }

    /// Removes blocks from the cache, for example because their bytes are bad. Guards that pin one
    /// keep it; the last unpin frees it.
    pub fn remove(&self, keys: &[BlockKey]) -> RemovedBlocks {
        let mut removed = RemovedBlocks::default();
        let mut withdrawn = Vec::new();
        for key in keys {
            let words = KeyWords::new(key);
            // Until its policy's lock is taken, the block may leave and return under another
            // policy.
            while let Some(id) = self.registered(words) {
                let index = self.slots.of(id).share();
                let mut core = self.share(index).lock();
                let listed = core.listed.contains(id);
                if self.slots.of(id).share() == index
                    && let Some((pinned, leaf)) = self.withdraw(&mut core, id, words)
                {
                    if let Some(events) = self.events.as_ref().filter(|_| listed) {
                        events.log.removed(events.tier, events.group, &[*key]);
                    }
                    self.index.unlink(&self.slots, id);
                    removed.blocks += 1;
                    removed.pinned += usize::from(pinned);
                    withdrawn.push(id);
                    drop(core);
                    if let Some(parent) = leaf {
                        self.tell_leaf(parent);
                    }
                    break;
                }
            }
        }
        self.counters.remove(removed.blocks);
        self.unpin(&mut withdrawn);
        removed
    }

    /// Removes all blocks from the cache.
    pub fn clear(&self) -> RemovedBlocks {
        let mut removed = RemovedBlocks::default();
        let mut withdrawn = Vec::new();
        let mut cores: Vec<PoolLockGuard<'_, PoolShareCore>> = Vec::new();
        for share in &self.shares {
            cores.push(share.lock());
        }
        for core in &mut cores {
            let listed: Vec<BlockId> = core.listed.iter().collect();
            for id in listed {
                let key = self.slots.of(id).key();
                // A parent that becomes a leaf is removed as well.
                if let Some((pinned, _)) = self.withdraw(core, id, key) {
                    removed.pinned += usize::from(pinned);
                    withdrawn.push(id);
                }
            }
        }
        removed.blocks = withdrawn.len();
        if let Some(events) = &self.events {
            events.log.cleared(events.tier, events.group);
        }
        for &id in &withdrawn {
            self.index.unlink(&self.slots, id);
        }
        drop(cores);
        self.counters.clear(removed.blocks);
        self.unpin(&mut withdrawn);
        removed
    }

    /// A registered block with this key; it is not pinned.
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

    /// Takes a registered block from its policy and pins it during the removal. Returns whether
    /// others have pinned it, and the block that became a leaf. A block that is not listed yet is
    /// pinned by the registering thread, which then finds it removed and does not report it either.
    fn withdraw(
        &self,
        core: &mut PoolShareCore,
        id: BlockId,
        key: KeyWords,
    ) -> Option<(bool, Option<BlockId>)> {
        let slot = self.slots.of(id);
        // Under this lock, a search for a parent finds it both listed and registered, or neither.
        let mut children = self.children.lock();
        let mut state = slot.state();
        loop {
            if !state.is_registered() || slot.key() != key {
                return None;
            }
            let new = state.with_phase(BlockPhase::Withdrawn).with_parked(false);
            match slot.exchange(state, new.pinned()) {
                Ok(()) => break,
                Err(actual) => state = actual,
            }
        }
        let mut leaf = None;
        if core.listed.contains(id) {
            core.policy.removed(id);
            core.listed.remove(id);
            leaf = children.unlist(self.of_keys(), id);
        }
        Some((state.references() > 0, leaf))
    }
}
