//! Bringing back what a tier held before a restart, and listing what it holds.

use super::BlockPool;
use super::settings::TenantId;
use super::share::ShareCore;
use super::slot::{KeyWords, Phase};
use crate::events::StoredBlock;
use crate::policy::Hints;
use crate::{BlockId, BlockKey, BlocksError, Tick};

/// A cached block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredEntry {
    /// Where its bytes are.
    pub block: BlockId,
    /// What they are.
    pub key: BlockKey,
    /// The key of the block before it in its chain, `None` for the first one.
    pub parent: Option<BlockKey>,
    /// Who is charged.
    pub tenant: TenantId,
}

/// What was brought back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Blocks that can be found now.
    pub blocks: usize,
    /// Blocks that stay free, because another one has their key or their tenant has its quota.
    pub superfluous: Vec<BlockId>,
}

/// Blocks that policies and the log are told of at a time.
const BATCH: usize = 1_024;

impl BlockPool {
    /// Brings back blocks of a tier that was opened again: inactive ones, to be found at once. Those
    /// that are to be evicted first come first, parents before the blocks that follow them: a policy
    /// learns of a parent only if it is there already. In any other order, too, a block is not evicted
    /// before the blocks that follow it. It is meant for a pool that nobody uses yet:
    /// until it returns, none of the free blocks can be allocated.
    ///
    /// # Errors
    /// Where a block is not of this pool or not free. The entries before it have been restored.
    pub fn restore(
        &self,
        entries: impl IntoIterator<Item = StoredEntry>,
        now: Tick,
    ) -> Result<Restored, BlocksError> {
        let mut restored = Restored::default();
        let mut batch = Vec::with_capacity(BATCH);
        let mut outcome = Ok(());
        // Nobody gets a block meanwhile that an entry may name. The lock is not held, as blocks that
        // are removed at once become free.
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
        free.retain(|id| taken.get(id.index()) == Some(&false));
        self.free.lock().append(&mut free);
        outcome.map(|()| restored)
    }

    /// Whether the block was put into the index; it is pinned then.
    fn restore_one(&self, entry: &StoredEntry) -> Result<bool, BlocksError> {
        let id = entry.block;
        let known = id.index() < self.blocks();
        if !known || self.slots.of(id).state().phase() != Phase::Free {
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
        slot.set_state(free.next_generation(Phase::Complete));
        if self.link_unless_taken(id) {
            return Ok(true);
        }
        slot.set_state(free);
        share.discharge(1);
        Ok(false)
    }

    /// Lists pinned blocks, and lets go of them.
    fn restore_batch(&self, batch: &mut Vec<BlockId>, now: Tick) {
        self.list(batch, Hints::default(), now);
        self.unpin(batch);
        batch.clear();
    }

    /// What is cached, in no order.
    #[must_use]
    pub fn snapshot(&self) -> Vec<StoredEntry> {
        let mut entries = Vec::new();
        for share in 0..self.shares.len() {
            let core = self.share(share).lock();
            entries.extend(self.entries(share, &core));
        }
        entries
    }

    /// What is cached of a share, in no order.
    pub(super) fn entries<'a>(
        &'a self,
        share: usize,
        core: &'a ShareCore,
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

    /// Adds what is cached to the list for a snapshot of the event log; nothing where the pool reports
    /// no events. Each block is listed under the lock under which its events are appended.
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
