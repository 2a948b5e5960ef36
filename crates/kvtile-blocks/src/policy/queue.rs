//! Queues of blocks, some of which cannot be evicted now: the common part of LRU, ARC and S3-FIFO.
//! They know neither uses nor ghosts. Of chains they know only the latest one, which was used or
//! stored last. A block that continues this chain is queued before the chain's other blocks, so the
//! deepest block is evicted first, regardless of how many calls store the chain.
//!
//! A refused block leaves the line and stays in the queue: it counts in the queue's length. A block
//! that was refused for its cached children keeps its turn. So when it becomes a leaf it precedes
//! all blocks in line, whose turns are later:
//!
//! ```text
//!            next to evict                                           newest
//! leaves   ┌ by turn ┐   line  ┌ oldest ─────────────────────────────────┐ ◄── push
//!          └────▲────┘         └──┬──────────────────────────────────────┘        ▲
//!               │ became_leaf     │ refuse                                         │ released
//!               └──── followed ◄──┴──► pinned ────────────────────────────────────┘
//! ```

use std::collections::BTreeSet;

use super::{
    EvictionRefusal,
    column::{IdColumn, NONE},
    links::{LinkedEntries, ListLinks},
};
use crate::BlockId;

/// The position of a block in its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum QueueStand {
    /// In no queue.
    Out,
    /// In the line of its queue.
    InLine,
    /// Refused, because it has a cached child.
    Followed,
    /// A leaf again after a refusal; it precedes all blocks in line.
    Leaf,
    /// Refused, because it is pinned.
    Pinned,
}

#[derive(Clone, Copy, Debug)]
struct QueueEntry {
    stand: QueueStand,
    queue: u8,
}

/// The entry of a block that is in no queue.
const OUT: QueueEntry = QueueEntry {
    stand: QueueStand::Out,
    queue: 0,
};

#[derive(Clone, Debug)]
struct EvictionQueue {
    line: LinkedEntries,
    /// Blocks that became leaves after a refusal, by their turn.
    leaves: BTreeSet<(u64, u32)>,
    len: usize,
    followed: usize,
    /// The block of the latest chain that is first in line.
    latest: u32,
}

/// A set of queues; a block is in at most one of them.
#[derive(Clone, Debug)]
pub(super) struct EvictionQueues {
    blocks: usize,
    links: ListLinks,
    entries: IdColumn<QueueEntry>,
    queues: IdColumn<EvictionQueue>,
    turns: u64,
    /// The last block of the latest chain.
    chain_end: u32,
}

impl EvictionQueue {
    fn leave_line(&mut self, links: &mut ListLinks, block: u32) {
        if self.latest == block {
            // The next newer entry in line is the block's parent in the chain.
            self.latest = links.newer(block);
        }
        links.remove(&mut self.line, block);
    }
}

impl EvictionQueues {
    /// `queues` empty queues for `blocks` blocks.
    pub(super) fn new(blocks: u32, queues: u8) -> EvictionQueues {
        let empty = EvictionQueue {
            line: LinkedEntries::new(),
            leaves: BTreeSet::new(),
            len: 0,
            followed: 0,
            latest: NONE,
        };
        EvictionQueues {
            blocks: blocks as usize,
            links: ListLinks::new(),
            entries: IdColumn::empty(),
            queues: IdColumn::new(usize::from(queues), empty),
            turns: 0,
            chain_end: NONE,
        }
    }

    /// The number of blocks of a queue, in any position.
    pub(super) fn len(&self, queue: u8) -> usize {
        self.queues[u32::from(queue)].len
    }

    /// The number of blocks of all queues.
    pub(super) fn total(&self) -> usize {
        self.queues.iter().map(|queue| queue.len).sum()
    }

    /// The number of blocks of a queue that are set aside for their cached children.
    pub(super) fn followed(&self, queue: u8) -> usize {
        self.queues[u32::from(queue)].followed
    }

    /// The queue of a block.
    pub(super) fn of(&self, block: BlockId) -> Option<u8> {
        let entry = self.entries.known(block.0)?;
        (entry.stand != QueueStand::Out).then_some(entry.queue)
    }

    /// Moves a block to the newest end of a queue, from any position. A block that is set aside as
    /// pinned only changes its queue.
    pub(super) fn push(&mut self, queue: u8, block: BlockId) {
        let pinned = self.entries[block.0].stand == QueueStand::Pinned;
        self.remove(block);
        let stand = if pinned {
            QueueStand::Pinned
        } else {
            QueueStand::InLine
        };
        self.entries[block.0] = QueueEntry { stand, queue };
        let queue = &mut self.queues[u32::from(queue)];
        queue.len += 1;
        if !pinned {
            self.links.push(&mut queue.line, block.0);
        }
    }

    /// Moves the blocks of a chain to the newest end of a queue, from any position, the last block
    /// first.
    pub(super) fn push_chain(&mut self, queue: u8, chain: &[BlockId]) {
        self.leave_chain();
        if !self.move_line(queue, chain) {
            for &block in chain.iter().rev() {
                self.push(queue, block);
            }
        }
        if let Some(end) = chain.last() {
            self.chain_end = end.0;
            if self.entries[end.0].stand == QueueStand::InLine {
                self.queues[u32::from(queue)].latest = end.0;
            }
        }
    }

    /// As [`push_chain`](EvictionQueues::push_chain), if the chain's blocks are in line one after the
    /// other, as they are where the last use was of the same chain. Returns false otherwise.
    fn move_line(&mut self, queue: u8, chain: &[BlockId]) -> bool {
        let (Some(first), Some(last)) = (chain.first(), chain.last()) else {
            return false;
        };
        // What is adjacent to a block in line is in the same line, so the stand of one block
        // suffices.
        let entry = self.entries[last.0];
        let adjacent =
            |(before, after): (&BlockId, &BlockId)| self.links.are_adjacent(after.0, before.0);
        let in_line = entry.stand == QueueStand::InLine && entry.queue == queue;
        if !in_line || !chain.iter().zip(chain.iter().skip(1)).rev().all(adjacent) {
            return false;
        }
        let line = &mut self.queues[u32::from(queue)].line;
        self.links.move_to_newest(line, last.0, first.0);
        true
    }

    /// Makes room for blocks that [`store`](EvictionQueues::store) will add.
    pub(super) fn make_room(&mut self, blocks: &[BlockId]) {
        if let Some(largest) = blocks.iter().max() {
            self.links.grow(largest.0, self.blocks);
            self.entries.grow(largest.0, self.blocks, OUT);
        }
    }

    /// Adds a block that is in no queue to a queue. If it continues the latest chain, it is queued
    /// just before that chain's blocks, else at the newest end.
    pub(super) fn store(&mut self, queue: u8, parent: Option<BlockId>, block: BlockId) {
        if parent.is_none_or(|parent| parent.0 != self.chain_end) {
            self.leave_chain();
        }
        self.chain_end = block.0;
        let of = &mut self.queues[u32::from(queue)];
        match std::mem::replace(&mut of.latest, block.0) {
            NONE => self.links.push(&mut of.line, block.0),
            latest => self.links.push_before(&mut of.line, latest, block.0),
        }
        of.len += 1;
        let stand = QueueStand::InLine;
        self.entries[block.0] = QueueEntry { stand, queue };
    }

    /// Ends the latest chain: later blocks are queued at the newest end.
    fn leave_chain(&mut self) {
        self.chain_end = NONE;
        for queue in self.queues.iter_mut() {
            queue.latest = NONE;
        }
    }

    /// The next block of a queue to evict, if any may be evicted.
    pub(super) fn next(&self, queue: u8) -> Option<BlockId> {
        let queue = &self.queues[u32::from(queue)];
        let leaf = queue.leaves.first().map(|&(_, block)| block);
        leaf.or_else(|| queue.line.oldest()).map(BlockId)
    }

    /// Whether a block had its turn and was refused for its cached children.
    pub(super) fn was_passed(&self, block: BlockId) -> bool {
        matches!(
            self.entries[block.0].stand,
            QueueStand::Followed | QueueStand::Leaf
        )
    }

    /// Sets aside the block that [`next`](EvictionQueues::next) returned.
    pub(super) fn refuse(&mut self, block: BlockId, refusal: EvictionRefusal) {
        let QueueEntry { stand, queue } = self.entries[block.0];
        let queue = &mut self.queues[u32::from(queue)];
        let turn = match stand {
            QueueStand::Leaf => {
                let turn = self.links.number(block.0);
                queue.leaves.remove(&(turn, block.0));
                turn
            }
            _ => {
                assert_eq!(stand, QueueStand::InLine, "{block:?} was offered");
                queue.leave_line(&mut self.links, block.0);
                self.turns += 1;
                self.turns
            }
        };
        self.links.set_number(block.0, turn);
        self.entries[block.0].stand = match refusal {
            EvictionRefusal::Pinned => QueueStand::Pinned,
            EvictionRefusal::Followed => {
                queue.followed += 1;
                QueueStand::Followed
            }
        };
    }

    /// Handles the last unpin of a block: if it was refused as pinned, it becomes the newest of its
    /// queue.
    pub(super) fn released(&mut self, block: BlockId) {
        let QueueEntry { stand, queue } = self.entries[block.0];
        if stand == QueueStand::Pinned {
            self.leave_chain();
            self.entries[block.0].stand = QueueStand::InLine;
            let line = &mut self.queues[u32::from(queue)].line;
            self.links.push(line, block.0);
        }
    }

    /// Handles the removal of a block's last child: if it was refused for its children, it takes
    /// its turn again.
    pub(super) fn became_leaf(&mut self, block: BlockId) {
        let QueueEntry { stand, queue } = self.entries[block.0];
        if stand == QueueStand::Followed {
            self.entries[block.0].stand = QueueStand::Leaf;
            let queue = &mut self.queues[u32::from(queue)];
            queue.followed -= 1;
            queue.leaves.insert((self.links.number(block.0), block.0));
        }
    }

    /// Removes a block from its queue. Returns that queue.
    pub(super) fn remove(&mut self, block: BlockId) -> Option<u8> {
        let QueueEntry { stand, queue: of } = self.entries[block.0];
        let queue = &mut self.queues[u32::from(of)];
        match stand {
            QueueStand::Out => return None,
            QueueStand::InLine => queue.leave_line(&mut self.links, block.0),
            QueueStand::Leaf => {
                queue.leaves.remove(&(self.links.number(block.0), block.0));
            }
            QueueStand::Followed => queue.followed -= 1,
            QueueStand::Pinned => {}
        }
        queue.len -= 1;
        if self.chain_end == block.0 {
            self.chain_end = NONE;
        }
        self.entries[block.0].stand = QueueStand::Out;
        Some(of)
    }

    /// Asserts the invariants.
    pub(super) fn check(&self) {
        for (number, queue) in (0_u8..).zip(self.queues.iter()) {
            self.links.check(&queue.line);
            let of = self.entries.iter().filter(|entry| entry.queue == number);
            let count = |stand| of.clone().filter(|entry| entry.stand == stand).count();
            let line = queue.line.len();
            assert_eq!(count(QueueStand::InLine), line, "line of queue {number}");
            assert_eq!(
                count(QueueStand::Followed),
                queue.followed,
                "queue {number}"
            );
            assert_eq!(
                count(QueueStand::Leaf),
                queue.leaves.len(),
                "queue {number}"
            );
            let stored = of.clone().filter(|entry| entry.stand != QueueStand::Out);
            assert_eq!(stored.count(), queue.len, "length of queue {number}");
            for block in self.links.iter(&queue.line) {
                let QueueEntry { stand, queue } = self.entries[block];
                assert_eq!(
                    (stand, queue),
                    (QueueStand::InLine, number),
                    "block {block}"
                );
            }
            if queue.latest != NONE {
                let QueueEntry { stand, queue } = self.entries[queue.latest];
                assert_eq!((stand, queue), (QueueStand::InLine, number), "latest");
            }
            for &(turn, block) in &queue.leaves {
                assert_eq!(turn, self.links.number(block), "turn of {block}");
                assert_eq!(self.entries[block].stand, QueueStand::Leaf, "block {block}");
            }
        }
    }
}
