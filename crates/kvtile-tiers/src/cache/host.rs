//! The host tier: block-contiguous storage in this process's memory, and what is known of each
//! block beside what its pool knows.

use std::collections::HashMap;
use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU32, Ordering},
};

use kvtile_blocks::{
    BlockId,
    pool::{BlockPool, PinnedBlocks},
};
use kvtile_layout::broken;
use kvtile_transfer::{BlockLease, LayoutHandle, LeaseMode, TransferError, TransferManager};

/// Host memory for blocks.
pub(super) struct Host {
    pub(super) pool: Arc<BlockPool>,
    pub(super) handle: LayoutHandle,
    facts: Box<[Facts]>,
    /// A block that is not the pool's: what is read from disk while all others are in use passes
    /// through it.
    spare: Option<Mutex<BlockId>>,
    /// For blocks whose parent is on disk and not here: the parent, pinned there. So the disk gives up no
    /// block that one in host memory follows.
    anchors: Mutex<HashMap<BlockId, PinnedBlocks>>,
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
            spare: spare.map(Mutex::new),
            anchors: Mutex::default(),
        }
    }

    fn anchors(&self) -> MutexGuard<'_, HashMap<BlockId, PinnedBlocks>> {
        // Nothing that holds the lock can leave it half changed.
        self.anchors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pins a block's parent on disk for as long as the block is in host memory.
    pub(super) fn anchor(&self, block: BlockId, parent: PinnedBlocks) {
        let before = self.anchors().insert(block, parent);
        drop(before);
    }

    /// Blocks have left host memory.
    pub(super) fn weigh_anchors(&self, blocks: impl Iterator<Item = BlockId>) {
        let mut anchors = self.anchors();
        if anchors.is_empty() {
            return;
        }
        let weighed: Vec<PinnedBlocks> = blocks.filter_map(|id| anchors.remove(&id)).collect();
        drop(anchors);
        drop(weighed);
    }

    /// All blocks have left host memory.
    pub(super) fn weigh_all_anchors(&self) {
        let all = std::mem::take(&mut *self.anchors());
        drop(all);
    }

    /// The block that is not the pool's, for as long as the guard lives.
    pub(super) fn spare(&self) -> Option<MutexGuard<'_, BlockId>> {
        let spare = self.spare.as_ref()?;
        Some(spare.lock().unwrap_or_else(PoisonError::into_inner))
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

    /// A lease on the bytes of one block.
    pub(super) fn lease(
        &self,
        manager: &TransferManager,
        block: BlockId,
        mode: LeaseMode,
    ) -> Result<BlockLease, TransferError> {
        manager.lease(self.handle, &[block.index()], mode)
    }
}

/// Block ids as a transfer manager wants them.
pub(super) fn ids(blocks: &[BlockId]) -> Vec<usize> {
    blocks.iter().map(|block| block.index()).collect()
}
