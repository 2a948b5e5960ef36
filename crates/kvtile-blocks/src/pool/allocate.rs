//! Giving out free blocks, making room where there are not enough, and taking blocks back.

use super::evict::Reason;
use super::owned::{MutableBlocks, Owned};
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
    /// Where too many blocks are in use. Policies that keep prefixes do not give up a block before
    /// those that follow it, so the ancestors of a pinned block stay although nobody has pinned them.
    pub fn allocate(
        self: &Arc<Self>,
        count: usize,
        request: &AllocateRequest,
    ) -> Result<MutableBlocks, BlocksError> {
        let share = self.share_index(request.tenant);
        let mut ids = Vec::new();
        let outcome = if count <= self.blocks() {
            ids.reserve_exact(count);
            self.gather(count, share as usize, request, &mut ids)
        } else {
            Err(self.exhausted(count))
        };
        if let Err(error) = outcome {
            self.counters.refuse_allocation();
            return Err(error);
        }
        for &id in &ids {
            let slot = self.slots.of(id);
            slot.set_share(share);
            slot.set_state(slot.state().next_generation(Phase::Mutable));
        }
        self.counters.allocate(count);
        Ok(MutableBlocks(Owned {
            pool: Arc::clone(self),
            ids,
        }))
    }

    fn gather(
        &self,
        count: usize,
        share: usize,
        request: &AllocateRequest,
        ids: &mut Vec<BlockId>,
    ) -> Result<(), BlocksError> {
        if self.share(share).try_charge(count) {
            let mut free = self.free.lock();
            if let Some(start) = free.len().checked_sub(count) {
                ids.extend(free.drain(start..));
                return Ok(());
            }
            drop(free);
            self.share(share).discharge(count);
        }
        let _gathering = self.gathering.lock();
        self.gather_within_quota(count, share, request, ids)?;
        if self.gather_from_all(count, request, ids) {
            return Ok(());
        }
        self.share(share).discharge(count);
        self.put_back(ids);
        Err(self.exhausted(count))
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
            if evicted == 0 {
                share.discharge(ids.len());
                self.put_back(ids);
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

    /// Frees blocks that are charged to nobody.
    fn put_back(&self, ids: &mut Vec<BlockId>) {
        for &id in &*ids {
            let slot = self.slots.of(id);
            slot.set_state(slot.state().with_phase(Phase::Free));
        }
        self.free.lock().append(ids);
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

    fn exhausted(&self, wanted: usize) -> BlocksError {
        let free = self.free.lock().len();
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
