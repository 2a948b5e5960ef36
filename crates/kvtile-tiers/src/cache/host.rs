//! The host tier: block-contiguous storage in this process's memory, and the cache's facts about
//! each block that its pool does not store.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};
use std::{any::Any, time::Duration};

use kvtile_blocks::{BlockId, pool::BlockPool};
use kvtile_layout::broken;
use kvtile_transfer::{LayoutHandle, LeaseMode, TransferManager};
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::{
    error::TierError,
    tier::{HostBlock, TierHold},
};

/// The host tier.
pub(super) struct HostTier {
    pub(super) pool: Arc<BlockPool>,
    pub(super) handle: LayoutHandle,
    facts: Box<[HostBlockFacts]>,
    /// One block for each tier below, outside the pool: a bounce buffer for reads from the tier
    /// while all blocks of the pool are in use.
    spares: Box<[Arc<SpareSlot>]>,
    /// For host blocks whose parent is only in a tier below: a pin of the parent there. So the tier
    /// does not evict a block whose child is in host memory.
    anchors: Mutex<HashMap<BlockId, Box<dyn TierHold>>>,
}

/// The bounce buffer for reads of one tier.
struct SpareSlot {
    block: BlockId,
    state: Mutex<SpareState>,
    changed: Condvar,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum SpareState {
    Free,
    /// A load reads into it.
    InUse,
    /// The load has ended, but its tier still holds the block.
    Late,
}

/// The spare block of a tier; dropping it frees the block.
pub(super) struct SpareBlock(Arc<SpareSlot>);

/// Why no spare block is available.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoSpare {
    /// The tier still holds it after its load has ended.
    Late,
    /// Other loads used it for the whole wait.
    InUse,
}

impl SpareSlot {
    fn lock(&self) -> MutexGuard<'_, SpareState> {
        self.state.lock()
    }

    fn take(self: &Arc<Self>, within: Duration) -> Result<SpareBlock, NoSpare> {
        let in_use = |state: &mut SpareState| *state == SpareState::InUse;
        let mut state = self.lock();
        self.changed.wait_while_for(&mut state, in_use, within);
        match *state {
            SpareState::Free => {
                *state = SpareState::InUse;
                drop(state);
                Ok(SpareBlock(Arc::clone(self)))
            }
            SpareState::InUse => Err(NoSpare::InUse),
            SpareState::Late => Err(NoSpare::Late),
        }
    }

    fn set(&self, state: SpareState) {
        *self.lock() = state;
        self.changed.notify_all();
    }
}

impl SpareBlock {
    pub(super) fn block(&self) -> BlockId {
        self.0.block
    }

    /// Marks the block as held by its tier after the load. Until the tier drops it, no load waits
    /// for it.
    pub(super) fn is_late(&self) {
        self.0.set(SpareState::Late);
    }
}

impl Drop for SpareBlock {
    fn drop(&mut self) {
        self.0.set(SpareState::Free);
    }
}

/// Facts about a stored block. The thread that registers the block writes them before a lookup can
/// find it.
#[derive(Default)]
struct HostBlockFacts {
    /// Number of blocks before it in its chain.
    position: AtomicU32,
    tenant: AtomicU32,
    /// Number of lookups that found it.
    uses: AtomicU32,
}

impl HostTier {
    /// A host tier with the blocks of a pool and a spare block for each tier below.
    pub(super) fn new(
        pool: Arc<BlockPool>,
        handle: LayoutHandle,
        spares: impl Iterator<Item = BlockId>,
    ) -> HostTier {
        let spare = |block| {
            Arc::new(SpareSlot {
                block,
                state: Mutex::new(SpareState::Free),
                changed: Condvar::new(),
            })
        };
        HostTier {
            facts: (0..pool.blocks())
                .map(|_| HostBlockFacts::default())
                .collect(),
            pool,
            handle,
            spares: spares.map(spare).collect(),
            anchors: Mutex::default(),
        }
    }

    fn anchors(&self) -> MutexGuard<'_, HashMap<BlockId, Box<dyn TierHold>>> {
        self.anchors.lock()
    }

    /// Pins a block's parent in a tier below, for as long as the block is in host memory.
    pub(super) fn anchor(&self, block: BlockId, parent: Box<dyn TierHold>) {
        let before = self.anchors().insert(block, parent);
        drop(before);
    }

    /// Releases the parents of blocks that have left host memory.
    pub(super) fn weigh_anchors(&self, blocks: impl Iterator<Item = BlockId>) {
        let mut anchors = self.anchors();
        if anchors.is_empty() {
            return;
        }
        let weighed: Vec<Box<dyn TierHold>> = blocks.filter_map(|id| anchors.remove(&id)).collect();
        drop(anchors);
        drop(weighed);
    }

    /// Releases all parents: host memory is empty.
    pub(super) fn weigh_all_anchors(&self) {
        let all = std::mem::take(&mut *self.anchors());
        drop(all);
    }

    /// Takes the spare block of the tier at index `tier`. Waits at most `within` for other loads,
    /// and not at all if the tier still holds it.
    pub(super) fn spare(&self, tier: usize, within: Duration) -> Result<SpareBlock, NoSpare> {
        let Some(spare) = self.spares.get(tier) else {
            broken(format_args!("spare {tier} of {}", self.spares.len()))
        };
        spare.take(within)
    }

    /// Sets the facts of a block before its registration.
    pub(super) fn describe(&self, block: BlockId, position: u32, tenant: u32) {
        let facts = self.facts_of(block);
        facts.position.store(position, Ordering::Relaxed);
        facts.tenant.store(tenant, Ordering::Relaxed);
        facts.uses.store(0, Ordering::Relaxed);
    }

    fn facts_of(&self, block: BlockId) -> &HostBlockFacts {
        let Some(facts) = self.facts.get(block.index()) else {
            broken(format_args!(
                "host block {} of {}",
                block.index(),
                self.facts.len()
            ))
        };
        facts
    }

    /// Number of blocks before the block in its chain, and its tenant.
    pub(super) fn facts(&self, block: BlockId) -> (u32, u32) {
        let facts = self.facts_of(block);
        let position = facts.position.load(Ordering::Relaxed);
        (position, facts.tenant.load(Ordering::Relaxed))
    }

    /// Number of lookups that found the block.
    pub(super) fn uses(&self, block: BlockId) -> u32 {
        self.facts_of(block).uses.load(Ordering::Relaxed)
    }

    /// Counts one more use; returns the new number of uses.
    pub(super) fn used(&self, block: BlockId) -> u32 {
        let uses = self.facts_of(block).uses.fetch_add(1, Ordering::Relaxed);
        uses.saturating_add(1)
    }

    /// Leases one block for a batch of a tier; `place` keeps the block from being reused.
    pub(super) fn lend(
        &self,
        manager: &TransferManager,
        (block, mode): (BlockId, LeaseMode),
        place: Arc<dyn Any + Send + Sync>,
    ) -> Result<HostBlock, TierError> {
        let lease = manager.lease(self.handle, &[block.index()], mode)?;
        HostBlock::new(lease, place)
    }

    /// Leases some layers of one block for a read; their bytes begin at `start` in the block.
    pub(super) fn lend_layers(
        &self,
        manager: &TransferManager,
        (block, layers, start): (BlockId, Range<u64>, u64),
        place: Arc<dyn Any + Send + Sync>,
    ) -> Result<HostBlock, TierError> {
        let ids = [block.index()];
        let lease = manager.lease_layers(self.handle, &ids, layers, LeaseMode::Write)?;
        HostBlock::part(lease, start, place)
    }
}

/// Block ids as indices for a transfer manager.
pub(super) fn ids(blocks: &[BlockId]) -> Vec<usize> {
    blocks.iter().map(|block| block.index()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{sync::mpsc, thread};

    const LONG: Duration = Duration::from_secs(3600);

    fn spare() -> Arc<SpareSlot> {
        Arc::new(SpareSlot {
            block: BlockId(7),
            state: Mutex::new(SpareState::Free),
            changed: Condvar::new(),
        })
    }

    #[test]
    fn a_spare_block_has_one_load_at_a_time() {
        let spare = spare();
        let first = spare.take(LONG).ok().unwrap();
        assert_eq!(first.block(), BlockId(7));
        assert_eq!(spare.take(Duration::ZERO).err(), Some(NoSpare::InUse));
        drop(first);
        assert!(spare.take(LONG).is_ok());
    }

    /// Neither new waiters nor existing ones wait for a tier that holds the block.
    #[test]
    fn no_load_waits_for_a_spare_block_that_its_tier_keeps() {
        let spare = spare();
        let kept = spare.take(LONG).ok().unwrap();
        let (sender, ended) = mpsc::channel();
        thread::scope(|scope| {
            for _ in 0..2 {
                let (spare, sender) = (&spare, sender.clone());
                scope.spawn(move || sender.send(spare.take(LONG).err()));
            }
            kept.is_late();
            for _ in 0..2 {
                assert_eq!(ended.recv(), Ok(Some(NoSpare::Late)));
            }
        });
        assert_eq!(spare.take(LONG).err(), Some(NoSpare::Late));
        // The tier drops it.
        drop(kept);
        assert!(spare.take(LONG).is_ok());
    }
}
