//! Restoring the blocks of a tier after a restart, and listing the cached blocks.

use super::BlockPool;
use super::settings::TenantId;
use super::share::PoolShareCore;
use super::slot::{BlockPhase, KeyWords};
use crate::events::StoredBlock;
use crate::policy::EvictionHints;
use crate::{BlockId, BlockKey, BlocksError, Tick};

/// A cached block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredEntry {
    /// The block that has the bytes.
    pub block: BlockId,
    /// The key of the content.
    pub key: BlockKey,
    /// The key of the block before it in its chain, `None` for the first one.
    pub parent: Option<BlockKey>,
    /// The tenant that is charged.
    pub tenant: TenantId,
}

/// The result of a restore.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RestoredBlocks {
    /// The number of blocks that lookups now find.
    pub blocks: usize,
    /// Blocks that stay free, because their key is registered already or their tenant's quota is
    /// full.
    pub superfluous: Vec<BlockId>,
}

/// Blocks that are reported to policies and the log at a time.
const BATCH: usize = 1_024;

impl BlockPool {
    /// Restores the blocks of a reopened tier as inactive blocks that lookups find at once. Pass
    /// first what is to be evicted first, but parents before their children: a policy learns of a
    /// parent only if it is stored already. In any other order, too, no block is evicted before its
    /// cached children. It is meant for a pool that is not in use yet: until it returns, none of
    /// the free blocks can be allocated.
    ///
    /// # Errors
    /// If a block is not of this pool or not free. The entries before it have been restored.
    pub fn restore(
        &self,
        entries: impl IntoIterator<Item = StoredEntry>,
        now: Tick,
    ) -> Result<RestoredBlocks, BlocksError> {
        let mut restored = RestoredBlocks::default();
        let mut batch = Vec::with_capacity(BATCH);
        let mut outcome = Ok(());
        // The free list is emptied, so that no allocation gets a block that an entry may name. Its
        // lock is not held, as blocks that are removed concurrently are freed.
        let mut free = std::mem::take(&mut *self.free.lock());
        let mut taken = vec![false; self.blocks()];
        for entry in entries {
            match self.restore_one(&entry) {
                Ok(true) => {
                    batch.push(entry.block);
                    if let Some(taken) = taken.get_mut(entry.block.index()) {
                        *taken = true;
                    }
                }
                Ok(false) => restored.superfluous.push(entry.block),
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
            if batch.len() == BATCH {
                restored.blocks += BATCH;
                self.restore_batch(&mut batch, now);
            }
        }
        restored.blocks += batch.len();
        self.restore_batch(&mut batch, now);
        free.remove(|id| taken.get(id.index()) == Some(&true));
        self.free.lock().put_below(free);
        outcome.map(|()| restored)
    }

    /// Links the block into the index and pins it. Returns false if its key is taken or its quota
    /// full.
    fn restore_one(&self, entry: &StoredEntry) -> Result<bool, BlocksError> {
        let id = entry.block;
        let known = id.index() < self.blocks();
        if !known || self.slots.of(id).state().phase() != BlockPhase::Free {
            return Err(BlocksError::NotRestorable {
                block: id,
                blocks: self.blocks(),
            });
        }
        let index = self.share_index(entry.tenant);
        let share = self.share(index as usize);
        if self.registered(KeyWords::new(&entry.key)).is_some() || !share.try_charge(1) {
            return Ok(false);
        }
        let slot = self.slots.of(id);
        let free = slot.state();
        slot.set_share(index);
        self.slots.describe(id, &entry.key, entry.parent.as_ref());
        slot.set_state(free.next_generation(BlockPhase::Complete));
        if self.link_unless_taken(id) {
            return Ok(true);
        }
        slot.set_state(free);
        share.discharge(1);
        Ok(false)
    }

    /// Lists the blocks with the policies, and unpins them.
    fn restore_batch(&self, batch: &mut Vec<BlockId>, now: Tick) {
        self.list(batch, EvictionHints::default(), now);
        self.unpin(batch);
        batch.clear();
    }

    /// The cached blocks, in no order.
    #[must_use]
    pub fn snapshot(&self) -> Vec<StoredEntry> {
        let mut entries = Vec::new();
        for share in 0..self.shares.len() {
            let core = self.share(share).lock();
            entries.extend(self.entries(share, &core));
        }
        entries
    }

    /// The cached blocks of a share, in no order.
    pub(super) fn entries<'a>(
        &'a self,
        share: usize,
        core: &'a PoolShareCore,
    ) -> impl Iterator<Item = StoredEntry> + 'a {
        let quota = share
            .checked_sub(1)
            .and_then(|quota| self.settings.quotas.get(quota));
        let tenant = quota.map_or_else(TenantId::default, |quota| quota.tenant);
        core.listed.iter().map(move |block| StoredEntry {
            block,
            key: self.slots.of(block).key().key(),
            parent: self.slots.parent(block),
            tenant,
        })
    }

    /// Appends the cached blocks to `out`, for a snapshot of the event log; nothing if the pool
    /// reports no events. Each block is listed under the lock under which its events are appended.
    pub fn list_stored(&self, out: &mut Vec<StoredBlock>) {
        let Some(events) = &self.events else { return };
        out.extend(self.snapshot().into_iter().map(|entry| StoredBlock {
            tier: events.tier,
            group: events.group,
            key: entry.key,
            parent: entry.parent,
        }));
    }
}
