//! Making full blocks known: into the index, to the policy, and into the log of events.

use super::BlockPool;
use super::owned::{CompleteBlocks, Rejected};
use super::pinned::PinnedBlocks;
use super::settings::{Claim, Duplicates};
use super::share::ShareCore;
use super::slot::{KeyWords, Phase, Pinning};
use crate::policy::{Hints, Insertion};
use crate::{BlockId, BlockKey, BlocksError, Tick};
use std::sync::Arc;

/// Blocks that can be found from now on.
#[derive(Debug)]
pub struct Registered {
    /// They, pinned; where a key had been registered before, the block that has it.
    pub blocks: PinnedBlocks,
    /// Positions of the keys that had been registered before, ascending. Their new blocks are free.
    pub duplicates: Vec<usize>,
}

/// Where a block found its key taken.
enum Taken {
    /// By this registered one, which is pinned now.
    Shared(BlockId),
    /// By one that is being registered.
    Reserved,
}

impl CompleteBlocks {
    /// Makes the blocks known, and pins them.
    ///
    /// # Errors
    /// With [`Duplicates::Refuse`], where a key is registered or being registered; the blocks come
    /// back, and nothing was changed.
    pub fn register(self, claim: &Claim) -> Result<Registered, Rejected<CompleteBlocks>> {
        let pool = Arc::clone(&self.0.pool);
        let (ids, duplicates) = match pool.settings.duplicates {
            Duplicates::Share => {
                let (_, ids) = self.0.release();
                pool.link_sharing(ids)
            }
            Duplicates::Refuse => match pool.link_refusing(self.ids()) {
                Ok(()) => (self.0.release().1, Vec::new()),
                Err(error) => {
                    return Err(Rejected {
                        blocks: self,
                        error,
                    });
                }
            },
        };
        pool.list(&ids, claim.hints, claim.now);
        pool.counters.register(ids.len(), duplicates.len());
        Ok(Registered {
            blocks: PinnedBlocks::new(&pool, ids, claim),
            duplicates,
        })
    }
}

impl BlockPool {
    /// Puts blocks into the index, each at once to be found and pinned, or pins those that are there.
    fn link_sharing(&self, mut ids: Vec<BlockId>) -> (Vec<BlockId>, Vec<usize>) {
        let mut duplicates = Vec::new();
        let mut superfluous = Vec::new();
        self.index.warm(&self.slots, &ids);
        for (position, place) in ids.iter_mut().enumerate() {
            if let Some(Taken::Shared(existing)) = self.link(*place, true) {
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

    /// Puts all blocks into the index, to be found once all of them are in it, or none.
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

    /// Lets a complete block be found, and pins it. Nobody may take it back after that: whoever is on
    /// the way through the index may have pinned it at once.
    fn publish(&self, id: BlockId) {
        let slot = self.slots.of(id);
        let state = slot.state().with_phase(Phase::Registered);
        slot.set_state(state.with_references(1));
    }

    /// Puts a block into the index, unless its key is there.
    fn link(&self, id: BlockId, share: bool) -> Option<Taken> {
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
            if share && slot.pin(key) == Pinning::Pinned {
                return Some(Taken::Shared(BlockId(existing)));
            }
            let phase = slot.state().phase();
            if !share && matches!(phase, Phase::Complete | Phase::Registered) {
                return Some(Taken::Reserved);
            }
            // It is about to leave, in the hands of whoever has the policy's lock.
            let leaving = slot.share();
            drop(bucket);
            self.share(leaving).wait();
        }
    }

    /// Puts a block into the index and pins it, unless its key is there.
    pub(super) fn link_unless_taken(&self, id: BlockId) -> bool {
        match self.link(id, true) {
            None => true,
            Some(Taken::Reserved) => false,
            Some(Taken::Shared(existing)) => {
                self.unpin(&mut [existing]);
                false
            }
        }
    }

    /// Tells policies and the log of registered blocks that they do not know yet. The caller has
    /// pinned them.
    pub(super) fn list(&self, ids: &[BlockId], hints: Hints, now: Tick) {
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

    /// The same for one share. Somebody else may have listed some of the blocks, or removed them, and
    /// a batch may hold several chains, so it goes by runs of neighbours.
    fn list_in(&self, core: &mut ShareCore, ids: &[BlockId], hints: Hints, now: Tick) {
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

    /// How many blocks follow each other and are not listed yet. Their keys are in the scratch then.
    fn run(&self, core: &mut ShareCore, ids: &[BlockId]) -> usize {
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

    /// The block with the parent's key, if the policy knows it; it does not go while its lock is held.
    fn listed_parent(
        &self,
        core: &ShareCore,
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
