//! Allocating blocks, evicting others where too few are free, and freeing blocks.

use super::evict::EvictionTrigger;
use super::owned::{EvictedBlock, EvictedBlocks, MutableBlocks, OwnedBlocks};
use super::settings::AllocateRequest;
use super::slot::BlockPhase;
use super::{BlockPool, TenantId};
use crate::{BlockId, BlocksError};
use std::sync::Arc;

impl BlockPool {
    /// Allocates blocks to fill, evicting others if necessary: all of them or none.
    ///
    /// A tenant at its quota evicts its own blocks. Otherwise the share that exceeds its due the
    /// most loses blocks.
    ///
    /// # Errors
    /// If too many blocks are in use. A block is not evicted before its cached children. So
    /// ancestors of a pinned block stay although they are not pinned themselves, and a block of a
    /// tenant at its quota stays if it has a cached child of another tenant.
    pub fn allocate(
        self: &Arc<Self>,
        count: usize,
        request: &AllocateRequest,
    ) -> Result<MutableBlocks, BlocksError> {
        self.allocate_showing(count, request, None::<fn(&[EvictedBlock])>)
    }

    /// Like [`BlockPool::allocate`]. `leaving` gets the blocks that were evicted for the
    /// allocation, in eviction order, while their bytes are still intact, so that it can write them
    /// to a slower tier. No other allocation gets them during the call. It is called once if any
    /// block was evicted, even if the allocation fails in the end.
    ///
    /// # Errors
    /// As for [`BlockPool::allocate`].
    pub fn allocate_with(
        self: &Arc<Self>,
        count: usize,
        request: &AllocateRequest,
        leaving: impl FnOnce(&[EvictedBlock]),
    ) -> Result<MutableBlocks, BlocksError> {
        self.allocate_showing(count, request, Some(leaving))
    }

    fn allocate_showing(
        self: &Arc<Self>,
        count: usize,
        request: &AllocateRequest,
        leaving: Option<impl FnOnce(&[EvictedBlock])>,
    ) -> Result<MutableBlocks, BlocksError> {
        let share = self.share_index(request.tenant);
        let mut gathered = GatheredBlocks {
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
        if let Some(leaving) = leaving.filter(|_| gathered.evicted) {
            self.show_evicted(&gathered.ids, leaving);
        }
        if let Err(error) = outcome {
            self.counters.refuse_allocation();
            return Err(error);
        }
        let ids = gathered.take();
        Ok(self.hand_out(ids, share))
    }

    /// Evicts the blocks that an allocation of `count` blocks would evict now, and holds them. The
    /// caller writes them to a slower tier, drops them, and allocates with
    /// [`BlockPool::allocate_free`]. If too many blocks are in use, it evicts fewer than are
    /// missing.
    pub fn make_room(self: &Arc<Self>, count: usize, request: &AllocateRequest) -> EvictedBlocks {
        let index = self.share_index(request.tenant) as usize;
        let count = count.min(self.blocks());
        let mut evicted = EvictedBlocks(OwnedBlocks {
            pool: Arc::clone(self),
            ids: Vec::new(),
        });
        let ids = &mut evicted.0.ids;
        let _gathering = self.gathering.lock();
        let share = self.share(index);
        let beyond = share.used().saturating_add(count);
        let beyond = beyond.saturating_sub(share.limit).min(count);
        if beyond > 0 {
            self.evict_from(index, beyond, request.now, EvictionTrigger::Quota, ids);
        }
        let missing = count.saturating_sub(self.free.lock().len() + ids.len());
        if missing > 0 {
            self.evict_fairly(missing, request.now, EvictionTrigger::Room, ids, |_, _| {});
        }
        evicted
    }

    /// Allocates blocks to fill from the free list, without eviction.
    ///
    /// # Errors
    /// If too few blocks are free, or the tenant's quota is too small.
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
        let mut ids = Vec::with_capacity(count.min(self.blocks()));
        let taken = self.free.lock().take(count, &mut ids);
        if !taken {
            charged.discharge(count);
            return refused(self.exhausted(count, 0));
        }
        Ok(self.hand_out(ids, share))
    }

    /// Hands gathered and charged blocks to the caller.
    fn hand_out(self: &Arc<Self>, ids: Vec<BlockId>, share: u32) -> MutableBlocks {
        for &id in &ids {
            let slot = self.slots.of(id);
            slot.set_share(share);
            slot.set_state(slot.state().next_generation(BlockPhase::Mutable));
        }
        self.counters.allocate(ids.len());
        MutableBlocks(OwnedBlocks {
            pool: Arc::clone(self),
            ids,
        })
    }

    /// Charges the blocks and gathers them; on an error nothing stays charged.
    fn gather(
        &self,
        share: usize,
        (count, request): (usize, &AllocateRequest),
        gathered: &mut GatheredBlocks<'_>,
    ) -> Result<(), BlocksError> {
        if self.share(share).try_charge(count) {
            let taken = self.free.lock().take(count, &mut gathered.ids);
            if taken {
                gathered.charged = Some(share);
                return Ok(());
            }
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

    /// Charges all blocks, and evicts from the share itself what then exceeds its quota.
    fn gather_within_quota(
        &self,
        count: usize,
        index: usize,
        request: &AllocateRequest,
        ids: &mut Vec<BlockId>,
    ) -> Result<(), BlocksError> {
        let share = self.share(index);
        loop {
            // The evicted blocks are still charged.
            if share.try_charge(count - ids.len()) {
                return Ok(());
            }
            let used = share.used();
            let wanted = (used + count - ids.len()).saturating_sub(share.limit);
            let wanted = wanted.clamp(1, count - ids.len());
            let evicted = self.evict_from(index, wanted, request.now, EvictionTrigger::Quota, ids);
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

    /// Takes free blocks and evicts others until `count` is reached. Returns false if that fails.
    fn gather_from_all(
        &self,
        count: usize,
        request: &AllocateRequest,
        ids: &mut Vec<BlockId>,
    ) -> bool {
        let mut dry = false;
        loop {
            self.free.lock().take_up_to(count - ids.len(), ids);
            let missing = count - ids.len();
            if missing == 0 {
                return true;
            }
            if dry {
                return false;
            }
            dry = self.evict_fairly(
                missing,
                request.now,
                EvictionTrigger::Room,
                ids,
                |share, evicted| {
                    share.discharge(evicted);
                },
            ) < missing;
        }
    }

    /// Passes those of `ids` that were evicted to `leaving`, if there are any.
    fn show_evicted(&self, ids: &[BlockId], leaving: impl FnOnce(&[EvictedBlock])) {
        let evicted = ids.iter().filter(|id| {
            let state = self.slots.of(**id).state();
            state.phase() == BlockPhase::Evicted
        });
        let evicted: Vec<EvictedBlock> = evicted.map(|id| self.evicted(*id)).collect();
        if !evicted.is_empty() {
            leaving(&evicted);
        }
    }

    /// The description of an evicted block.
    pub(super) fn evicted(&self, block: BlockId) -> EvictedBlock {
        EvictedBlock {
            block,
            key: self.slots.of(block).key().key(),
            parent: self.slots.parent(block),
        }
    }

    /// Frees blocks that the caller owns.
    pub(super) fn free(&self, ids: &[BlockId]) {
        let share = |id: &BlockId| self.slots.of(*id).share();
        for run in ids.chunk_by(|a, b| share(a) == share(b)) {
            for &id in run {
                let slot = self.slots.of(id);
                slot.set_state(slot.state().with_phase(BlockPhase::Free).with_parked(false));
            }
            if let Some(index) = run.first().map(share) {
                self.share(index).discharge(run.len());
            }
        }
        self.free.lock().extend(ids);
    }

    /// The error; `gathered` blocks are about to be freed again.
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

    /// Blocks charged to a tenant with a quota, or to all tenants without one.
    #[must_use]
    pub fn used(&self, tenant: TenantId) -> usize {
        self.share(self.share_index(tenant) as usize).used()
    }
}

/// Gathered blocks; dropping this frees them.
struct GatheredBlocks<'p> {
    pool: &'p BlockPool,
    ids: Vec<BlockId>,
    /// The share that they are charged to.
    charged: Option<usize>,
    /// Whether evicted blocks may be among them.
    evicted: bool,
}

impl GatheredBlocks<'_> {
    fn take(mut self) -> Vec<BlockId> {
        std::mem::take(&mut self.ids)
    }
}

impl Drop for GatheredBlocks<'_> {
    fn drop(&mut self) {
        if self.ids.is_empty() {
            return;
        }
        if let Some(share) = self.charged {
            self.pool.share(share).discharge(self.ids.len());
        }
        for &id in &self.ids {
            let slot = self.pool.slots.of(id);
            slot.set_state(slot.state().with_phase(BlockPhase::Free));
        }
        self.pool.free.lock().extend(&self.ids);
    }
}
