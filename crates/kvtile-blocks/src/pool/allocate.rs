//! Giving out free blocks, making room where there are not enough, and taking blocks back.

use super::evict::Reason;
use super::owned::{EvictedBlock, EvictedBlocks, MutableBlocks, Owned};
use super::settings::AllocateRequest;
use super::slot::Phase;
use super::{BlockPool, TenantId};
use crate::{BlockId, BlocksError};
use std::sync::Arc;

impl BlockPool {
    /// Blocks to fill, evicting what has to go for them: all of them or none.
    ///
    /// A tenant at its quota loses its own blocks; otherwise those lose blocks who have most beyond
    /// their due.
    ///
    /// # Errors
    /// Where too many blocks are in use. A block is not evicted before the cached blocks that follow it,
    /// so the ancestors of a pinned block stay although nobody has pinned them, and a block of a tenant at
    /// its quota stays where a cached block of another tenant follows it.
    pub fn allocate(
        self: &Arc<Self>,
        count: usize,
        request: &AllocateRequest,
    ) -> Result<MutableBlocks, BlocksError> {
        self.allocate_with(count, request, |_| {})
    }

    /// Like [`BlockPool::allocate`]; `leaving` sees the blocks that were evicted for it, in the order
    /// in which they were, while their bytes are still there: they can be written to a slower tier,
    /// and nobody else gets them meanwhile. It is called once where any were evicted, also where the
    /// allocation fails in the end.
    ///
    /// # Errors
    /// As for [`BlockPool::allocate`].
    pub fn allocate_with(
        self: &Arc<Self>,
        count: usize,
        request: &AllocateRequest,
        leaving: impl FnOnce(&[EvictedBlock]),
    ) -> Result<MutableBlocks, BlocksError> {
        let share = self.share_index(request.tenant);
        let mut gathered = Gathered {
            pool: self,
            ids: Vec::new(),
            charged: None,
            evicted: false,
        };
        let outcome = if count <= self.blocks() {
            gathered.ids.reserve_exact(count);
            self.gather(share as usize, (count, request), &mut gathered)
        } else {
            Err(self.exhausted(count, 0))
        };
        if gathered.evicted {
            self.show_evicted(&gathered.ids, leaving);
        }
        if let Err(error) = outcome {
            self.counters.refuse_allocation();
            return Err(error);
        }
        let ids = gathered.take();
        Ok(self.hand_out(ids, share))
    }

    /// Evicts what an allocation of `count` blocks would evict now, and holds it: the caller writes the blocks
    /// to a slower tier, drops them, and allocates with [`BlockPool::allocate_free`]. Where too many blocks are
    /// in use, fewer come than are missing.
    pub fn make_room(self: &Arc<Self>, count: usize, request: &AllocateRequest) -> EvictedBlocks {
        let index = self.share_index(request.tenant) as usize;
        let count = count.min(self.blocks());
        let mut evicted = EvictedBlocks(Owned {
            pool: Arc::clone(self),
            ids: Vec::new(),
        });
        let ids = &mut evicted.0.ids;
        let _gathering = self.gathering.lock();
        let share = self.share(index);
        let beyond = share.used().saturating_add(count);
        let beyond = beyond.saturating_sub(share.limit).min(count);
        if beyond > 0 {
            self.evict_from(index, beyond, request.now, Reason::Quota, ids);
        }
        let missing = count.saturating_sub(self.free.lock().len() + ids.len());
        if missing > 0 {
            self.evict_fairly(missing, request.now, Reason::Room, ids, |_, _| {});
        }
        evicted
    }

    /// Blocks to fill, all of them free ones: it evicts none.
    ///
    /// # Errors
    /// Where fewer blocks are free, or a quota has no room for so many.
    pub fn allocate_free(
        self: &Arc<Self>,
        count: usize,
        request: &AllocateRequest,
    ) -> Result<MutableBlocks, BlocksError> {
        let share = self.share_index(request.tenant);
        let charged = self.share(share as usize);
        let refused = |error| {
            self.counters.refuse_allocation();
            Err(error)
        };
        if !charged.try_charge(count) {
            return refused(BlocksError::QuotaExhausted {
                tenant: request.tenant,
                wanted: count,
                limit: charged.limit,
                used: charged.used(),
            });
        }
        let mut free = self.free.lock();
        let Some(start) = free.len().checked_sub(count) else {
            drop(free);
            charged.discharge(count);
            return refused(self.exhausted(count, 0));
        };
        let ids: Vec<BlockId> = free.drain(start..).collect();
        drop(free);
        Ok(self.hand_out(ids, share))
    }

    /// Blocks that were gathered and charged are the caller's from now on.
    fn hand_out(self: &Arc<Self>, ids: Vec<BlockId>, share: u32) -> MutableBlocks {
        for &id in &ids {
            let slot = self.slots.of(id);
            slot.set_share(share);
            slot.set_state(slot.state().next_generation(Phase::Mutable));
        }
        self.counters.allocate(ids.len());
        MutableBlocks(Owned {
            pool: Arc::clone(self),
            ids,
        })
    }

    /// Charges the blocks and gathers them; on an error they are charged to nobody.
    fn gather(
        &self,
        share: usize,
        (count, request): (usize, &AllocateRequest),
        gathered: &mut Gathered<'_>,
    ) -> Result<(), BlocksError> {
        if self.share(share).try_charge(count) {
            let mut free = self.free.lock();
            if let Some(start) = free.len().checked_sub(count) {
                gathered.ids.extend(free.drain(start..));
                gathered.charged = Some(share);
                return Ok(());
            }
            drop(free);
            self.share(share).discharge(count);
        }
        let _gathering = self.gathering.lock();
        gathered.evicted = true;
        let ids = &mut gathered.ids;
        self.gather_within_quota(count, share, request, ids)?;
        if self.gather_from_all(count, request, ids) {
            gathered.charged = Some(share);
            return Ok(());
        }
        self.share(share).discharge(count);
        Err(self.exhausted(count, gathered.ids.len()))
    }

    /// Charges all blocks, and takes from the share itself what it has too many then.
    fn gather_within_quota(
        &self,
        count: usize,
        index: usize,
        request: &AllocateRequest,
        ids: &mut Vec<BlockId>,
    ) -> Result<(), BlocksError> {
        let share = self.share(index);
        loop {
            // What was evicted is still charged.
            if share.try_charge(count - ids.len()) {
                return Ok(());
            }
            let used = share.used();
            let wanted = (used + count - ids.len()).saturating_sub(share.limit);
            let wanted = wanted.clamp(1, count - ids.len());
            let evicted = self.evict_from(index, wanted, request.now, Reason::Quota, ids);
            if evicted.blocks == 0 {
                share.discharge(ids.len());
                return Err(BlocksError::QuotaExhausted {
                    tenant: request.tenant,
                    wanted: count,
                    limit: share.limit,
                    used,
                });
            }
        }
    }

    /// Fills up with free blocks and evicted ones. False where there are not enough.
    fn gather_from_all(
        &self,
        count: usize,
        request: &AllocateRequest,
        ids: &mut Vec<BlockId>,
    ) -> bool {
        let mut dry = false;
        loop {
            let mut free = self.free.lock();
            let taken = (count - ids.len()).min(free.len());
            let start = free.len() - taken;
            ids.extend(free.drain(start..));
            drop(free);
            let missing = count - ids.len();
            if missing == 0 {
                return true;
            }
            if dry {
                return false;
            }
            dry = self.evict_fairly(missing, request.now, Reason::Room, ids, |share, evicted| {
                share.discharge(evicted);
            }) < missing;
        }
    }

    /// Shows those of `ids` that were evicted, where there are any.
    fn show_evicted(&self, ids: &[BlockId], leaving: impl FnOnce(&[EvictedBlock])) {
        let evicted = ids.iter().filter(|id| {
            let state = self.slots.of(**id).state();
            state.phase() == Phase::Evicted
        });
        let evicted: Vec<EvictedBlock> = evicted.map(|id| self.evicted(*id)).collect();
        if !evicted.is_empty() {
            leaving(&evicted);
        }
    }

    /// What an evicted block still holds.
    pub(super) fn evicted(&self, block: BlockId) -> EvictedBlock {
        EvictedBlock {
            block,
            key: self.slots.of(block).key().key(),
            parent: self.slots.parent(block),
        }
    }

    /// Frees blocks that nobody else has.
    pub(super) fn free(&self, ids: &[BlockId]) {
        let share = |id: &BlockId| self.slots.of(*id).share();
        for run in ids.chunk_by(|a, b| share(a) == share(b)) {
            for &id in run {
                let slot = self.slots.of(id);
                slot.set_state(slot.state().with_phase(Phase::Free).with_parked(false));
            }
            if let Some(index) = run.first().map(share) {
                self.share(index).discharge(run.len());
            }
        }
        self.free.lock().extend_from_slice(ids);
    }

    /// `gathered` blocks are about to be free again.
    fn exhausted(&self, wanted: usize, gathered: usize) -> BlocksError {
        let free = self.free.lock().len() + gathered;
        let cached = self.cached();
        BlocksError::Exhausted {
            wanted,
            blocks: self.blocks(),
            free,
            cached,
            held: self.blocks().saturating_sub(free + cached),
        }
    }

    /// Blocks that are charged to a tenant with a quota, or to all tenants without one.
    #[must_use]
    pub fn used(&self, tenant: TenantId) -> usize {
        self.share(self.share_index(tenant) as usize).used()
    }
}

/// Blocks that were gathered; they are free when this is dropped.
struct Gathered<'p> {
    pool: &'p BlockPool,
    ids: Vec<BlockId>,
    /// The share that they are charged to.
    charged: Option<usize>,
    /// Whether evicted ones may be among them.
    evicted: bool,
}

impl Gathered<'_> {
    fn take(mut self) -> Vec<BlockId> {
        std::mem::take(&mut self.ids)
    }
}

impl Drop for Gathered<'_> {
    fn drop(&mut self) {
        if self.ids.is_empty() {
            return;
        }
        if let Some(share) = self.charged {
            self.pool.share(share).discharge(self.ids.len());
        }
        for &id in &self.ids {
            let slot = self.pool.slots.of(id);
            slot.set_state(slot.state().with_phase(Phase::Free));
        }
        self.pool.free.lock().append(&mut self.ids);
    }
}
