//! What was found and the policy does not know yet. Matching writes it down under a lock of its own,
//! held for some nanoseconds a block, and whoever has the policy's lock reads it later. The memory
//! is allocated once.
//!
//! A visit is written down while its blocks are pinned, and read before the policy's lock does anything
//! else. So a block that is stored under the id of one that was visited and has left is not listed yet when
//! the visit is read: ids are enough to tell the two apart.

use super::sync::Lock;
use crate::policy::Hints;
use crate::{BlockId, Tick};

/// One visit: so many of the blocks, from where the one before ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct VisitBatch {
    pub(super) blocks: usize,
    pub(super) continues: bool,
    pub(super) hints: Hints,
    pub(super) now: Tick,
}

/// Visits in their order.
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

/// Most visits are of several blocks; one that is not fills the queue sooner.
fn batches_max(blocks: usize) -> usize {
    (blocks / 8).max(1)
}

#[derive(Debug)]
pub(super) struct VisitQueue {
    list: Lock<VisitList>,
}

impl VisitQueue {
    pub(super) fn new(blocks: usize) -> VisitQueue {
        VisitQueue {
            list: Lock::new(VisitList::new(blocks)),
        }
    }

    /// Adds a visit of blocks that the caller has pinned. False where there is no room.
    pub(super) fn push(&self, blocks: &[BlockId], batch: VisitBatch) -> bool {
        let mut list = self.list.lock();
        let room = list.has_room(blocks.len());
        if room {
            list.push(blocks, batch);
        }
        room
    }

    /// Gives what has been written down for an empty list.
    pub(super) fn swap(&self, empty: &mut VisitList) {
        std::mem::swap(&mut *self.list.lock(), empty);
    }
}
