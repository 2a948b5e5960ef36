//! Registering full blocks: with the index, the policy, and the event log.

use super::BlockPool;
use super::owned::{CompleteBlocks, RejectedBlocks};
use super::pinned::PinnedBlocks;
use super::settings::{DuplicateHandling, PinClaim};
use super::share::PoolShareCore;
use super::slot::{BlockPhase, KeyWords, PinAttempt};
use crate::policy::{EvictionHints, Insertion};
use crate::{BlockId, BlockKey, BlocksError, Tick};
use std::sync::Arc;

/// The result of a registration.
#[derive(Debug)]
pub struct RegisteredBlocks {
    /// The blocks, pinned. Where a key was registered already, the block that has it.
    pub blocks: PinnedBlocks,
    /// Positions of the keys that were registered already, ascending. Their new blocks are freed.
    pub duplicates: Vec<usize>,
}

/// Why a key could not be linked.
enum TakenKey {
    /// A registered block has it, and is pinned now.
    Shared(BlockId),
    /// A block that is being registered has it.
    Reserved,
}

impl CompleteBlocks {
    /// Registers the blocks, and pins them.
    ///
    /// # Errors
    /// With [`DuplicateHandling::Refuse`], if a key is registered or being registered. The blocks are
    /// returned, and nothing has changed.
    pub fn register(
        self,
        claim: &PinClaim,
    ) -> Result<RegisteredBlocks, RejectedBlocks<CompleteBlocks>> {
        let pool = Arc::clone(&self.0.pool);
        let (ids, duplicates) = match pool.settings.duplicates {
            DuplicateHandling::Share => {
                let (_, ids) = self.0.release();
                pool.link_sharing(ids)
            }
            DuplicateHandling::Refuse => match pool.link_refusing(self.ids()) {
                Ok(()) => (self.0.release().1, Vec::new()),
                Err(error) => {
                    return Err(RejectedBlocks {
                        blocks: self,
                        error,
                    });
                }
            },
        };
        pool.list(&ids, claim.hints, claim.now);
        pool.counters.register(ids.len(), duplicates.len());
        Ok(RegisteredBlocks {
            blocks: PinnedBlocks::new(&pool, ids, claim),
            duplicates,
        })
    }
}

impl BlockPool {
    /// Links and publishes each block, or pins the block that already has its key.
    fn link_sharing(&self, mut ids: Vec<BlockId>) -> (Vec<BlockId>, Vec<usize>) {
        let mut duplicates = Vec::new();
        let mut superfluous = Vec::new();
        self.index.warm(&self.slots, &ids);
        for (position, place) in ids.iter_mut().enumerate() {
            if let Some(TakenKey::Shared(existing)) = self.link(*place, true) {
                superfluous.push(*place);
                duplicates.push(position);
                *place = existing;
            }
        }
        if !superfluous.is_empty() {
            self.free(&superfluous);
        }
        (ids, duplicates)
    }

    /// Links all blocks into the index and then publishes them, or links none.
    fn link_refusing(&self, ids: &[BlockId]) -> Result<(), BlocksError> {
        for (position, &id) in ids.iter().enumerate() {
            if self.link(id, false).is_some() {
                for &linked in ids.iter().take(position) {
                    self.index.unlink(&self.slots, linked);
                }
                return Err(BlocksError::DuplicateKey {
                    key: self.slots.of(id).key().key(),
                    position,
                });
            }
        }
        for &id in ids {
            self.publish(id);
        }
        Ok(())
    }

    /// Makes a linked block visible to lookups, and pins it. There is no way back: a concurrent
    /// lookup may pin it at once.
    fn publish(&self, id: BlockId) {
        let slot = self.slots.of(id);
        let state = slot.state().with_phase(BlockPhase::Registered);
        slot.set_state(state.with_references(1));
    }

    /// Links a block into the index, unless its key is taken.
    fn link(&self, id: BlockId, share: bool) -> Option<TakenKey> {
        let key = self.slots.of(id).key();
        loop {
            let bucket = self.index.lock(key);
            let Some(existing) = bucket.find(&self.slots, key) else {
                if share {
                    self.publish(id);
                }
                bucket.link(&self.slots, id);
                return None;
            };
            let slot = self.slots.get(existing);
            if share && slot.pin(key) == PinAttempt::Pinned {
                return Some(TakenKey::Shared(BlockId(existing)));
            }
            let phase = slot.state().phase();
            if !share && matches!(phase, BlockPhase::Complete | BlockPhase::Registered) {
                return Some(TakenKey::Reserved);
            }
            // The existing block is being evicted or removed, under its policy's lock.
            let leaving = slot.share();
            drop(bucket);
            self.share(leaving).wait();
        }
    }

    /// Links a block into the index and pins it, unless its key is taken.
    pub(super) fn link_unless_taken(&self, id: BlockId) -> bool {
        match self.link(id, true) {
            None => true,
            Some(TakenKey::Reserved) => false,
            Some(TakenKey::Shared(existing)) => {
                self.unpin(&mut [existing]);
                false
            }
        }
    }

    /// Reports registered blocks to the policies and the log, unless they know them. The caller has
    /// pinned the blocks.
    pub(super) fn list(&self, ids: &[BlockId], hints: EvictionHints, now: Tick) {
        let share = |id: &BlockId| self.slots.of(*id).share();
        let mut seen = 0;
        for run in ids.chunk_by(|a, b| self.shares.len() == 1 || share(a) == share(b)) {
            seen += run.len();
            let mut hints = hints;
            hints.partial_tail &= seen == ids.len();
            let mut core = self.share(run.first().map_or(0, share)).lock();
            self.list_in(&mut core, run, hints, now);
        }
    }

    /// Lists blocks of one share. Other threads may have listed or removed some of the blocks, and
    /// a batch may contain several chains, so it works on runs of consecutive blocks.
    fn list_in(&self, core: &mut PoolShareCore, ids: &[BlockId], hints: EvictionHints, now: Tick) {
        let mut rest = ids;
        let mut before = None;
        while let Some(&first) = rest.first() {
            let run = self.run(core, rest);
            let (blocks, after) = rest.split_at(run.max(1));
            if run > 0 {
                let mut hints = hints;
                hints.partial_tail &= after.is_empty();
                let parent = self.slots.parent(first);
                let known = parent.and_then(|key| self.listed_parent(core, before, &key));
                core.policy.inserted(&Insertion {
                    parent: known,
                    blocks,
                    keys: &core.keys,
                    hints,
                    now,
                });
                let mut children = self.children.lock();
                children.make_room(blocks, &self.slots);
                let mut previous = known;
                for &id in blocks {
                    core.listed.insert(id);
                    children.list(self.of_keys(), previous, id);
                    previous = Some(id);
                }
                drop(children);
                if let Some(events) = &self.events {
                    let (tier, group) = (events.tier, events.group);
                    events.log.stored(tier, group, parent, &core.keys);
                }
            }
            before = blocks.last().copied();
            rest = after;
        }
    }

    /// The number of leading blocks that are consecutive in a chain and not listed yet. Leaves
    /// their keys in `core.keys`.
    fn run(&self, core: &mut PoolShareCore, ids: &[BlockId]) -> usize {
        core.keys.clear();
        for &id in ids {
            let slot = self.slots.of(id);
            if core.listed.contains(id) || !slot.state().is_registered() {
                break;
            }
            let before = core.keys.last().copied();
            if before.is_some() && self.slots.parent(id) != before {
                break;
            }
            core.keys.push(slot.key().key());
        }
        core.keys.len()
    }

    /// The block with the parent's key, if the policy knows it. It cannot leave while the lock is
    /// held.
    fn listed_parent(
        &self,
        core: &PoolShareCore,
        before: Option<BlockId>,
        parent: &BlockKey,
    ) -> Option<BlockId> {
        let key = KeyWords::new(parent);
        let id = before
            .filter(|&id| self.slots.of(id).key() == key)
            .or_else(|| self.registered(key))?;
        core.listed.contains(id).then_some(id)
    }
}
