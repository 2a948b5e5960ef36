//! The host tier: block-contiguous storage in this process's memory, and what is known of each
//! block beside what its pool knows.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{
    Arc, Condvar, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU32, Ordering},
};
use std::{any::Any, time::Duration};

use kvtile_blocks::{BlockId, pool::BlockPool};
use kvtile_layout::broken;
use kvtile_transfer::{LayoutHandle, LeaseMode, TransferManager};

use crate::{
    error::TierError,
    tier::{Hold, HostBlock},
};

/// Host memory for blocks.
pub(super) struct Host {
    pub(super) pool: Arc<BlockPool>,
    pub(super) handle: LayoutHandle,
    facts: Box<[Facts]>,
    /// A block for each tier below, which is not the pool's: what is read from the tier while all others are in use
    /// passes through it.
    spares: Box<[Arc<Spare>]>,
    /// For blocks whose parent is in a tier and not here: the parent, pinned there. So the tier gives up no
    /// block that one in host memory follows.
    anchors: Mutex<HashMap<BlockId, Box<dyn Hold>>>,
}

/// The block that is kept for reads of one tier while all others are in use.
struct Spare {
    block: BlockId,
    state: Mutex<SpareState>,
    changed: Condvar,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum SpareState {
    Free,
    /// A load reads into it.
    InUse,
    /// The load has ended, and its tier has not let go of the block.
    Late,
}

/// The spare block of a tier, until this is dropped.
pub(super) struct SpareBlock(Arc<Spare>);

/// Why there is no spare block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoSpare {
    /// The tier keeps it, of a load that has ended.
    Late,
    /// Other loads had it for the whole time.
    InUse,
}

impl Spare {
    fn lock(&self) -> MutexGuard<'_, SpareState> {
        // Nothing that holds the lock can leave it half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(self: &Arc<Self>, within: Duration) -> Result<SpareBlock, NoSpare> {
        let in_use = |state: &mut SpareState| *state == SpareState::InUse;
        let waited = self.changed.wait_timeout_while(self.lock(), within, in_use);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
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

    /// The load has ended, and its tier keeps the block: until this is dropped there, no load waits for it.
    pub(super) fn is_late(&self) {
        self.0.set(SpareState::Late);
    }
}

impl Drop for SpareBlock {
    fn drop(&mut self) {
        self.0.set(SpareState::Free);
    }
}

/// Of a stored block; written by the one who registers it, before others can see it.
#[derive(Default)]
struct Facts {
    /// How many blocks stand before it in its chain.
    position: AtomicU32,
    tenant: AtomicU32,
    /// How often it was found.
    uses: AtomicU32,
}

impl Host {
    /// Over the blocks of a pool, with those behind them as spare ones.
    pub(super) fn new(
        pool: Arc<BlockPool>,
        handle: LayoutHandle,
        spares: impl Iterator<Item = BlockId>,
    ) -> Host {
        let spare = |block| {
            Arc::new(Spare {
                block,
                state: Mutex::new(SpareState::Free),
                changed: Condvar::new(),
            })
        };
        Host {
            facts: (0..pool.blocks()).map(|_| Facts::default()).collect(),
            pool,
            handle,
            spares: spares.map(spare).collect(),
            anchors: Mutex::default(),
        }
    }

    fn anchors(&self) -> MutexGuard<'_, HashMap<BlockId, Box<dyn Hold>>> {
        // Nothing that holds the lock can leave it half changed.
        self.anchors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pins a block's parent on disk for as long as the block is in host memory.
    pub(super) fn anchor(&self, block: BlockId, parent: Box<dyn Hold>) {
        let before = self.anchors().insert(block, parent);
        drop(before);
    }

    /// Blocks have left host memory.
    pub(super) fn weigh_anchors(&self, blocks: impl Iterator<Item = BlockId>) {
        let mut anchors = self.anchors();
        if anchors.is_empty() {
            return;
        }
        let weighed: Vec<Box<dyn Hold>> = blocks.filter_map(|id| anchors.remove(&id)).collect();
        drop(anchors);
        drop(weighed);
    }

    /// All blocks have left host memory.
    pub(super) fn weigh_all_anchors(&self) {
        let all = std::mem::take(&mut *self.anchors());
        drop(all);
    }

    /// The spare block of the tier at this position of the list, waited for at most so long; not at all where the
    /// tier keeps it.
    pub(super) fn spare(&self, tier: usize, within: Duration) -> Result<SpareBlock, NoSpare> {
        let Some(spare) = self.spares.get(tier) else {
            broken(format_args!("spare {tier} of {}", self.spares.len()))
        };
        spare.take(within)
    }

    /// Notes what is known of a block that will be registered.
    pub(super) fn describe(&self, block: BlockId, position: u32, tenant: u32) {
        let facts = self.facts_of(block);
        facts.position.store(position, Ordering::Relaxed);
        facts.tenant.store(tenant, Ordering::Relaxed);
        facts.uses.store(0, Ordering::Relaxed);
    }

    fn facts_of(&self, block: BlockId) -> &Facts {
        let Some(facts) = self.facts.get(block.index()) else {
            broken(format_args!(
                "host block {} of {}",
                block.index(),
                self.facts.len()
            ))
        };
        facts
    }

    /// How many blocks stand before it in its chain, and whose it is.
    pub(super) fn facts(&self, block: BlockId) -> (u32, u32) {
        let facts = self.facts_of(block);
        let position = facts.position.load(Ordering::Relaxed);
        (position, facts.tenant.load(Ordering::Relaxed))
    }

    /// How often it was found.
    pub(super) fn uses(&self, block: BlockId) -> u32 {
        self.facts_of(block).uses.load(Ordering::Relaxed)
    }

    /// Counts one more use; returns how many there were.
    pub(super) fn used(&self, block: BlockId) -> u32 {
        let uses = self.facts_of(block).uses.fetch_add(1, Ordering::Relaxed);
        uses.saturating_add(1)
    }

    /// The bytes of one block, for a batch of a tier; `place` keeps the block from being given out.
    pub(super) fn lend(
        &self,
        manager: &TransferManager,
        (block, mode): (BlockId, LeaseMode),
        place: Arc<dyn Any + Send + Sync>,
    ) -> Result<HostBlock, TierError> {
        let lease = manager.lease(self.handle, &[block.index()], mode)?;
        HostBlock::new(lease, place)
    }

    /// The bytes of some layers of one block, to fill; they begin at `start` in the block.
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

/// Block ids as a transfer manager wants them.
pub(super) fn ids(blocks: &[BlockId]) -> Vec<usize> {
    blocks.iter().map(|block| block.index()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{sync::mpsc, thread};

    const LONG: Duration = Duration::from_secs(3600);

    fn spare() -> Arc<Spare> {
        Arc::new(Spare {
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

    /// Neither those that come later nor those that wait already wait for a tier that keeps the block.
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
        // The tier lets go of it.
        drop(kept);
        assert!(spare.take(LONG).is_ok());
    }
}
