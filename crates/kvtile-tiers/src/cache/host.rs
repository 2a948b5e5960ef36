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
    /// A block that is not the pool's: what is read from a tier while all others are in use passes
    /// through it.
    spare: Option<Arc<Spare>>,
    /// For blocks whose parent is in a tier and not here: the parent, pinned there. So the tier gives up no
    /// block that one in host memory follows.
    anchors: Mutex<HashMap<BlockId, Box<dyn Hold>>>,
}

/// The block that is kept for reads while all others are in use.
struct Spare {
    block: BlockId,
    is_free: Mutex<bool>,
    freed: Condvar,
}

/// The spare block, until this is dropped.
pub(super) struct SpareBlock(Arc<Spare>);

impl SpareBlock {
    pub(super) fn block(&self) -> BlockId {
        self.0.block
    }
}

impl Drop for SpareBlock {
    fn drop(&mut self) {
        let free = self.0.is_free.lock();
        *free.unwrap_or_else(PoisonError::into_inner) = true;
        self.0.freed.notify_one();
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
    pub(super) fn new(pool: Arc<BlockPool>, handle: LayoutHandle, spare: Option<BlockId>) -> Host {
        Host {
            facts: (0..pool.blocks()).map(|_| Facts::default()).collect(),
            pool,
            handle,
            spare: spare.map(|block| {
                Arc::new(Spare {
                    block,
                    is_free: Mutex::new(true),
                    freed: Condvar::new(),
                })
            }),
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

    /// The block that is not the pool's, waited for at most so long.
    pub(super) fn spare(&self, within: Duration) -> Option<SpareBlock> {
        let spare = self.spare.as_ref()?;
        let free = spare.is_free.lock();
        let free = free.unwrap_or_else(PoisonError::into_inner);
        let waited = spare.freed.wait_timeout_while(free, within, |free| !*free);
        let (mut free, _) = waited.unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *free, false).then(|| SpareBlock(Arc::clone(spare)))
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
