//! A queue of lookup hits for the policy. Matching appends them under a lock of its own, held for
//! some nanoseconds a block, and the next holder of the policy's lock processes them. The memory is
//! allocated once.
//!
//! A visit is queued while its blocks are pinned, and processed before the holder of the policy's
//! lock does anything else. So if a visited block has left and its id was reused, the new block is
//! not listed yet when the visit is processed. Ids therefore suffice to distinguish the two.

use super::sync::PoolLock;
use crate::policy::EvictionHints;
use crate::{BlockId, Tick};

/// One visit: the next `blocks` blocks of the list.
#[derive(Clone, Copy, Debug)]
pub(super) struct VisitBatch {
    pub(super) blocks: usize,
    pub(super) continues: bool,
    pub(super) hints: EvictionHints,
    pub(super) now: Tick,
}

/// Visits in order.
#[derive(Debug, Default)]
pub(super) struct VisitList {
    batches: Vec<VisitBatch>,
    blocks: Vec<BlockId>,
}

impl VisitList {
    pub(super) fn new(blocks: usize) -> VisitList {
        VisitList {
            batches: Vec::with_capacity(batches_max(blocks)),
            blocks: Vec::with_capacity(blocks),
        }
    }

    fn has_room(&self, blocks: usize) -> bool {
        self.blocks.capacity() - self.blocks.len() >= blocks
            && self.batches.len() < self.batches.capacity()
    }

    fn push(&mut self, blocks: &[BlockId], batch: VisitBatch) {
        self.blocks.extend_from_slice(blocks);
        self.batches.push(batch);
    }

    /// The visits, each with its blocks.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&VisitBatch, &[BlockId])> {
        let mut start = 0;
        self.batches.iter().map(move |batch| {
            let end = start + batch.blocks;
            let blocks = self.blocks.get(start..end).unwrap_or(&[]);
            start = end;
            (batch, blocks)
        })
    }

    pub(super) fn clear(&mut self) {
        self.batches.clear();
        self.blocks.clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }
}

/// Sized for visits of several blocks on average; visits of single blocks fill the queue sooner.
fn batches_max(blocks: usize) -> usize {
    (blocks / 8).max(1)
}

#[derive(Debug)]
pub(super) struct VisitQueue {
    list: PoolLock<VisitList>,
}

impl VisitQueue {
    pub(super) fn new(blocks: usize) -> VisitQueue {
        VisitQueue {
            list: PoolLock::new(VisitList::new(blocks)),
        }
    }

    /// Queues a visit of blocks that the caller has pinned. Returns false if there is no room.
    pub(super) fn push(&self, blocks: &[BlockId], batch: VisitBatch) -> bool {
        let mut list = self.list.lock();
        let room = list.has_room(blocks.len());
        if room {
            list.push(blocks, batch);
        }
        room
    }

    /// Swaps the queued visits for an empty list.
    pub(super) fn swap(&self, empty: &mut VisitList) {
        std::mem::swap(&mut *self.list.lock(), empty);
    }
}
