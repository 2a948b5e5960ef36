//! A share of the pool with its own policy: one tenant with a quota, or all other tenants together.
//! It reports events to the policy in order, and knows no index.

use super::sync::{AtomicUsize, Ordering, PoolLock, PoolLockGuard};
use super::visits::{VisitBatch, VisitList, VisitQueue};
use crate::id_run::IdRun;
use crate::policy::{EvictionPolicy, Visit};
use crate::{BlockId, BlockKey};

pub(super) struct PoolShare {
    /// The maximum number of blocks, and the number that is its due when shares compete.
    pub(super) limit: usize,
    pub(super) due: usize,
    used: AtomicUsize,
    visits: VisitQueue,
    core: PoolLock<PoolShareCore>,
}

/// The data behind the policy's lock.
pub(super) struct PoolShareCore {
    pub(super) policy: Box<dyn EvictionPolicy>,
    pub(super) listed: ListedBlocks,
    waiting: VisitList,
    pub(super) keys: Vec<BlockKey>,
}

impl PoolShare {
    pub(super) fn new(policy: Box<dyn EvictionPolicy>, blocks: usize, queue: usize) -> PoolShare {
        PoolShare {
            limit: usize::MAX,
            due: 0,
            used: AtomicUsize::new(0),
            visits: VisitQueue::new(queue),
            core: PoolLock::new(PoolShareCore {
                policy,
                listed: ListedBlocks::new(blocks),
                waiting: VisitList::new(queue),
                keys: Vec::new(),
            }),
        }
    }

    /// Blocks charged to the share: being filled, cached or pinned.
    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Charges `blocks` blocks, if the limit allows it.
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

    /// Queues a visit of pinned blocks. Returns false if the visit was dropped because the queue is
    /// full.
    pub(super) fn visit(&self, blocks: &[BlockId], batch: VisitBatch) -> bool {
        if self.visits.push(blocks, batch) {
            return true;
        }
        let Some(mut core) = self.core.try_lock() else {
            return false;
        };
        core.drain(&self.visits);
        if !self.visits.push(blocks, batch) {
            // The visit is longer than the queue.
            core.visit(&batch, blocks);
        }
        true
    }

    /// Locks the policy, after it has processed all queued visits.
    pub(super) fn lock(&self) -> PoolLockGuard<'_, PoolShareCore> {
        let mut core = self.core.lock();
        core.drain(&self.visits);
        core
    }

    /// Waits until the current holder of the policy's lock releases it.
    pub(super) fn wait(&self) {
        drop(self.core.lock());
    }
}

impl PoolShareCore {
    fn drain(&mut self, visits: &VisitQueue) {
        visits.swap(&mut self.waiting);
        if self.waiting.is_empty() {
            return;
        }
        let mut waiting = std::mem::take(&mut self.waiting);
        for (batch, blocks) in waiting.iter() {
            self.visit(batch, blocks);
        }
        waiting.clear();
        self.waiting = waiting;
    }

    /// Reports a visit to the policy, up to the first block that has left.
    fn visit(&mut self, batch: &VisitBatch, blocks: &[BlockId]) {
        let there = self.listed.leading(blocks);
        let blocks = blocks.get(..there).unwrap_or(&[]);
        if !blocks.is_empty() {
            self.policy.visited(&Visit {
                blocks,
                continues: batch.continues || there < batch.blocks,
                hints: batch.hints,
                now: batch.now,
            });
        }
    }
}

/// The blocks that the policy knows: reported as stored, and not yet as removed.
#[derive(Debug)]
pub(super) struct ListedBlocks {
    words: Box<[u64]>,
    len: usize,
}

impl ListedBlocks {
    fn new(blocks: usize) -> ListedBlocks {
        ListedBlocks {
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

    /// The number of leading blocks that are listed.
    fn leading(&self, blocks: &[BlockId]) -> usize {
        let mut there = 0;
        for run in IdRun::split(blocks) {
            if !self.contains_all(run) {
                let rest = blocks.iter().skip(there);
                return there + rest.take_while(|&&id| self.contains(id)).count();
            }
            there += run.len();
        }
        there
    }

    /// Whether all blocks of a run are listed. It compares a word of bits at a time.
    fn contains_all(&self, run: IdRun) -> bool {
        let mut at = run.lowest().index();
        let end = at + run.len();
        while at < end {
            let word = self.words.get(at / 64).copied().unwrap_or(0);
            let next = (at / 64 * 64 + 64).min(end);
            let bits = u64::MAX >> (64 - (next - at)) << (at % 64);
            if word & bits != bits {
                return false;
            }
            at = next;
        }
        true
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

#[cfg(test)]
mod tests {
    use kvtile_random::SplitMix64;

    use super::*;

    #[test]
    fn leading_blocks_are_counted_up_to_the_first_that_is_not_listed() {
        let mut random = SplitMix64::new(5);
        let mut listed = ListedBlocks::new(300);
        for id in 0..300 {
            listed.insert(BlockId(id));
        }
        for round in 0..1_000 {
            let changed = BlockId(u32::try_from(random.below(300)).unwrap());
            if round % 8 == 0 {
                listed.remove(changed);
            } else {
                listed.insert(changed);
            }
            let start = u32::try_from(random.below(300)).unwrap();
            let end = start + u32::try_from(random.below(310)).unwrap();
            let mut blocks: Vec<BlockId> = (start..end).map(BlockId).collect();
            if round % 2 == 0 {
                blocks.reverse();
            }
            blocks.extend([changed, changed]);
            let expected = blocks.iter().take_while(|&&id| listed.contains(id));
            assert_eq!(listed.leading(&blocks), expected.count(), "{blocks:?}");
        }
    }
}
