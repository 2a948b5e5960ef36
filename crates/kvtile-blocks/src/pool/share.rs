//! A part of the pool with its own policy: a tenant with a quota, or all others together. It says
//! what the policy is told, in which order, and knows no index.

use super::slot::Slots;
use super::sync::{AtomicUsize, Held, Lock, Ordering};
use super::visits::{VisitBatch, VisitList, VisitQueue, is_current};
use crate::policy::{EvictionPolicy, Visit};
use crate::{BlockId, BlockKey};

pub(super) struct Share {
    /// How many blocks it may hold, and how many are its due where others want more.
    pub(super) limit: usize,
    pub(super) due: usize,
    used: AtomicUsize,
    visits: VisitQueue,
    core: Lock<ShareCore>,
}

/// What is behind the policy's lock.
pub(super) struct ShareCore {
    pub(super) policy: Box<dyn EvictionPolicy>,
    pub(super) listed: Listed,
    waiting: VisitList,
    pub(super) ids: Vec<BlockId>,
    pub(super) keys: Vec<BlockKey>,
}

impl Share {
    pub(super) fn new(policy: Box<dyn EvictionPolicy>, blocks: usize, queue: usize) -> Share {
        Share {
            limit: usize::MAX,
            due: 0,
            used: AtomicUsize::new(0),
            visits: VisitQueue::new(queue),
            core: Lock::new(ShareCore {
                policy,
                listed: Listed::new(blocks),
                waiting: VisitList::new(queue),
                ids: Vec::new(),
                keys: Vec::new(),
            }),
        }
    }

    /// Blocks that are charged to it: filled, cached or pinned.
    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Charges so many blocks, if the limit allows it.
    pub(super) fn try_charge(&self, blocks: usize) -> bool {
        let mut used = self.used();
        loop {
            if used.saturating_add(blocks) > self.limit {
                return false;
            }
            let (success, failure) = (Ordering::Relaxed, Ordering::Relaxed);
            match self
                .used
                .compare_exchange(used, used + blocks, success, failure)
            {
                Ok(_) => return true,
                Err(actual) => used = actual,
            }
        }
    }

    pub(super) fn discharge(&self, blocks: usize) {
        self.used.fetch_sub(blocks, Ordering::Relaxed);
    }

    /// Writes down a visit of pinned blocks. False where it was lost, as nobody reads that fast.
    pub(super) fn visit(&self, slots: &Slots, blocks: &[BlockId], batch: VisitBatch) -> bool {
        if self.visits.push(slots, blocks, batch) {
            return true;
        }
        let Some(mut core) = self.core.try_lock() else {
            return false;
        };
        core.drain(slots, &self.visits);
        if !self.visits.push(slots, blocks, batch) {
            // Longer than the queue.
            let generation = |&id: &BlockId| (id, slots.of(id).state().generation());
            core.visit(slots, &batch, blocks.iter().map(generation));
        }
        true
    }

    /// The policy, which has been told of all visits until now.
    pub(super) fn lock(&self, slots: &Slots) -> Held<'_, ShareCore> {
        let mut core = self.core.lock();
        core.drain(slots, &self.visits);
        core
    }

    /// Returns when whoever has the policy's lock now has let it go.
    pub(super) fn wait(&self) {
        drop(self.core.lock());
    }
}

impl ShareCore {
    fn drain(&mut self, slots: &Slots, visits: &VisitQueue) {
        visits.swap(&mut self.waiting);
        if self.waiting.is_empty() {
            return;
        }
        let mut waiting = std::mem::take(&mut self.waiting);
        for (batch, blocks) in waiting.iter() {
            self.visit(slots, batch, blocks.iter().copied());
        }
        waiting.clear();
        self.waiting = waiting;
    }

    /// Tells the policy of a visit, as far as the blocks are still there.
    fn visit(
        &mut self,
        slots: &Slots,
        batch: &VisitBatch,
        blocks: impl Iterator<Item = (BlockId, u32)>,
    ) {
        let listed = &self.listed;
        let there = |&(id, generation): &(BlockId, u32)| {
            listed.contains(id) && is_current(slots.of(id).state(), generation)
        };
        self.ids.clear();
        self.ids.extend(blocks.take_while(there).map(|(id, _)| id));
        if !self.ids.is_empty() {
            self.policy.visited(&Visit {
                blocks: &self.ids,
                continues: batch.continues || self.ids.len() < batch.blocks,
                hints: batch.hints,
                now: batch.now,
            });
        }
    }
}

/// Which blocks the policy knows; each of them was reported as stored, and not yet as removed.
#[derive(Debug)]
pub(super) struct Listed {
    words: Box<[u64]>,
    len: usize,
}

impl Listed {
    fn new(blocks: usize) -> Listed {
        Listed {
            words: vec![0; blocks.div_ceil(64)].into_boxed_slice(),
            len: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn contains(&self, id: BlockId) -> bool {
        let word = self.words.get(id.index() / 64).copied().unwrap_or(0);
        word >> (id.0 % 64) & 1 != 0
    }

    pub(super) fn insert(&mut self, id: BlockId) {
        if let Some(word) = self.words.get_mut(id.index() / 64) {
            let bit = 1 << (id.0 % 64);
            self.len += usize::from(*word & bit == 0);
            *word |= bit;
        }
    }

    pub(super) fn remove(&mut self, id: BlockId) {
        if let Some(word) = self.words.get_mut(id.index() / 64) {
            let bit = 1 << (id.0 % 64);
            self.len -= usize::from(*word & bit != 0);
            *word &= !bit;
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = BlockId> {
        (0_u32..)
            .step_by(64)
            .zip(&self.words)
            .flat_map(|(base, &word)| {
                (0..64).filter_map(move |bit| (word >> bit & 1 != 0).then_some(BlockId(base + bit)))
            })
    }
}
