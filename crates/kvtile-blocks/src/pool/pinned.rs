//! The guard of pinned blocks. It does not know the other holders of a block.

use super::BlockPool;
use super::ledger::PinRecord;
use super::owned::{RejectedBlocks, take_range};
use super::settings::PinClaim;
use super::slot::{BlockPhase, BlockState};
use crate::{BlockId, BlockKey, BlocksError};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// Registered blocks that are pinned, and so not evicted, as long as this lives. Other guards may
/// pin them too.
#[must_use = "dropping the guard unpins its blocks"]
pub struct PinnedBlocks {
    pool: Arc<BlockPool>,
    ids: Vec<BlockId>,
    record: Option<PinRecord>,
}

impl PinnedBlocks {
    /// Takes over pins that the caller holds.
    pub(super) fn new(pool: &Arc<BlockPool>, ids: Vec<BlockId>, claim: &PinClaim) -> PinnedBlocks {
        let record = if ids.is_empty() {
            None
        } else {
            pool.ledger.open(claim, ids.len())
        };
        PinnedBlocks {
            pool: Arc::clone(pool),
            ids,
            record,
        }
    }

    /// Their ids.
    #[must_use]
    pub fn ids(&self) -> &[BlockId] {
        &self.ids
    }

    /// The number of blocks.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are no blocks.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The pool that the blocks belong to.
    #[must_use]
    pub fn pool(&self) -> &Arc<BlockPool> {
        &self.pool
    }

    /// The keys of the blocks.
    pub fn keys(&self) -> impl Iterator<Item = BlockKey> {
        let key = |&id: &BlockId| self.pool.slots.of(id).key().key();
        self.ids.iter().map(key)
    }

    /// The keys of the blocks' parents, `None` for the first block of a chain.
    pub fn parents(&self) -> impl Iterator<Item = Option<BlockKey>> {
        self.ids.iter().map(|&id| self.pool.slots.parent(id))
    }

    /// The key of the parent of the block at `position`; `None` for the first block of a chain, and
    /// for a position out of range.
    #[must_use]
    pub fn parent(&self, position: usize) -> Option<BlockKey> {
        let id = *self.ids.get(position)?;
        self.pool.slots.parent(id)
    }

    /// Takes out the blocks from position `at` on; none if there are fewer.
    pub fn split_off(&mut self, at: usize) -> PinnedBlocks {
        self.take(at..usize::MAX)
    }

    /// Takes out the blocks at these positions, as far as they exist. Both parts keep the claim.
    pub fn take(&mut self, range: Range<usize>) -> PinnedBlocks {
        let ids = take_range(&mut self.ids, range);
        let ledger = &self.pool.ledger;
        let record = self.record.as_ref().filter(|_| !ids.is_empty());
        let record = record.and_then(|record| ledger.split(record, ids.len()));
        PinnedBlocks {
            pool: Arc::clone(&self.pool),
            ids,
            record,
        }
    }

    /// Appends blocks. Of two claims the earlier deadline counts.
    ///
    /// # Errors
    /// If they belong to another pool; they are returned.
    pub fn append(&mut self, mut other: PinnedBlocks) -> Result<(), RejectedBlocks<PinnedBlocks>> {
        if !Arc::ptr_eq(&self.pool, &other.pool) {
            return Err(RejectedBlocks {
                blocks: other,
                error: BlocksError::AnotherPool,
            });
        }
        self.ids.append(&mut other.ids);
        match (&self.record, other.record.take()) {
            (Some(record), Some(added)) => {
                self.pool.ledger.merge(record, added);
                self.pool.ledger.resize(record, self.ids.len());
            }
            (Some(record), None) => self.pool.ledger.resize(record, self.ids.len()),
            (None, Some(added)) => {
                self.pool.ledger.resize(&added, self.ids.len());
                self.record = Some(added);
            }
            (None, None) => {}
        }
        Ok(())
    }
}

impl Drop for PinnedBlocks {
    fn drop(&mut self) {
        if let Some(record) = self.record.take() {
            self.pool.ledger.close(record);
        }
        self.pool.unpin(&mut self.ids);
    }
}

impl fmt::Debug for PinnedBlocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PinnedBlocks").field(&self.ids).finish()
    }
}

impl BlockPool {
    /// Unpins the blocks. The order of `ids` is lost.
    pub(super) fn unpin(&self, ids: &mut [BlockId]) {
        let mut parked = 0;
        for position in 0..ids.len() {
            let Some(&id) = ids.get(position) else { break };
            let before = self.slots.of(id).unpin();
            if before.references() != 1 || !before.needs_settling() {
                continue;
            }
            if before.phase() == BlockPhase::Withdrawn {
                self.free(&[id]);
            } else {
                // The slice up to here has been processed, so it can hold the parked blocks.
                ids.swap(parked, position);
                parked += 1;
            }
        }
        let parked = ids.get(..parked).unwrap_or(&[]);
        if !parked.is_empty() {
            self.unpark(parked);
        }
    }

    /// Reports to their policies parked blocks that are not pinned any more.
    fn unpark(&self, ids: &[BlockId]) {
        let share = |id: &BlockId| self.slots.of(*id).share();
        for run in ids.chunk_by(|a, b| share(a) == share(b)) {
            let Some(index) = run.first().map(share) else {
                continue;
            };
            let mut core = self.share(index).lock();
            for &id in run {
                // The block may have been pinned again, or have left and returned, in the meantime.
                // Its current state decides, under the lock under which blocks are parked.
                let slot = self.slots.of(id);
                let state = slot.state();
                let idle = |state: BlockState| {
                    state.is_registered() && state.is_parked() && state.references() == 0
                };
                if slot.share() == index
                    && idle(state)
                    && slot.exchange(state, state.with_parked(false)).is_ok()
                {
                    core.policy.released(id);
                }
            }
        }
    }
}
