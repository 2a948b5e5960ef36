//! S3-FIFO (Yang et al., SOSP 2023), over leaves: a small queue for new blocks, a main queue with
//! second chances, and ghost entries of blocks that were evicted from the small queue.
//!
//! The small queue holds a tenth of the blocks. A block that is used at least twice in it moves to
//! the main queue. The number of ghosts is at most the number of blocks. The paper's rule selects
//! the queue to shorten: the small one while it has its tenth, else the main one. Here the oldest
//! leaf without remaining chances of that queue is evicted, and if it has none, the oldest leaf of
//! the other queue.
//!
//! A block of the small queue that reaches its turn while it has children waits for them to be
//! evicted. It does not count in the tenth, which new blocks need for themselves. With its second
//! use it moves to the main queue, as it would have done at its turn.

use super::{
    EvictionPolicy, EvictionRefusal, Insertion, Visit, column::IdColumn, ghosts::GhostRing,
    queue::EvictionQueues,
};
use crate::{BlockId, BlockKey, Tick};

/// The cap of the use counter.
const USES_MAX: u8 = 3;

/// Uses in the small queue that promote a block to the main queue.
const USES_ENOUGH: u8 = 2;

/// The small queue holds one block in this many.
const SMALL_PART: usize = 10;

/// Recently stored blocks.
const SMALL: u8 = 0;

/// Blocks that survived the small queue, or whose ghost came back.
const MAIN: u8 = 1;

/// The S3-FIFO policy.
#[derive(Clone, Debug)]
pub struct S3Fifo {
    queues: EvictionQueues,
    uses: IdColumn<u8>,
    ghosts: GhostRing<()>,
    blocks: usize,
    small_blocks: usize,
}

impl S3Fifo {
    /// A policy for a pool of `blocks` blocks.
    #[must_use]
    pub fn new(blocks: u32) -> S3Fifo {
        S3Fifo {
            queues: EvictionQueues::new(blocks, 2),
            uses: IdColumn::new(blocks as usize, 0),
            ghosts: GhostRing::new(),
            blocks: blocks as usize,
            small_blocks: (blocks as usize / SMALL_PART).max(1),
        }
    }

    /// Promotes a block from the small queue to the main queue.
    fn move_on(&mut self, block: BlockId) {
        self.uses[block.0] = 0;
        self.queues.push(MAIN, block);
    }

    /// The small queue's candidate, if the queue is long enough.
    fn small_candidate(&mut self) -> Option<BlockId> {
        let len = self.queues.len(SMALL) - self.queues.followed(SMALL);
        if len < self.small_blocks && self.queues.len(MAIN) > 0 {
            return None;
        }
        while let Some(block) = self.queues.next(SMALL) {
            if self.uses[block.0] < USES_ENOUGH {
                return Some(block);
            }
            self.move_on(block);
            if self.queues.len(MAIN) > self.blocks - self.small_blocks {
                return None;
            }
        }
        None
    }

    /// The main queue's candidate.
    fn main_candidate(&mut self) -> Option<BlockId> {
        while let Some(block) = self.queues.next(MAIN) {
            let uses = &mut self.uses[block.0];
            if *uses == 0 {
                return Some(block);
            }
            *uses -= 1;
            self.queues.push(MAIN, block);
        }
        None
    }
}

impl EvictionPolicy for S3Fifo {
    fn name(&self) -> &'static str {
        "s3-fifo"
    }

    fn visited(&mut self, visit: &Visit<'_>) {
        for &block in visit.blocks.iter().rev() {
            let uses = &mut self.uses[block.0];
            *uses = (*uses + 1).min(USES_MAX);
            let enough = *uses >= USES_ENOUGH;
            if enough && self.queues.of(block) == Some(SMALL) && self.queues.was_passed(block) {
                self.move_on(block);
            }
        }
    }

    fn inserted(&mut self, insertion: &Insertion<'_>) {
        self.queues.make_room(insertion.blocks);
        let mut parent = insertion.parent;
        for (&block, key) in insertion.blocks.iter().zip(insertion.keys) {
            assert_eq!(self.queues.of(block), None, "stored twice");
            let queue = match self.ghosts.take(key) {
                Some(()) => MAIN,
                None => SMALL,
            };
            self.uses[block.0] = 0;
            self.queues.store(queue, parent, block);
            parent = Some(block);
        }
    }

    fn candidate(&mut self, _now: Tick) -> Option<BlockId> {
        let small = self.small_candidate();
        let candidate = small.or_else(|| self.main_candidate());
        // Only the small queue has candidates left, although it is shorter than its tenth.
        candidate.or_else(|| self.queues.next(SMALL))
    }

    fn evicted(&mut self, block: BlockId, key: &BlockKey) {
        if self.queues.remove(block) == Some(SMALL) {
            self.ghosts.push(key, ());
            if self.ghosts.len() > self.blocks {
                self.ghosts.pop();
            }
        }
    }

    fn refused(&mut self, block: BlockId, refusal: EvictionRefusal) {
        self.queues.refuse(block, refusal);
    }

    fn removed(&mut self, block: BlockId) {
        self.queues.remove(block);
    }

    fn released(&mut self, block: BlockId) {
        self.queues.released(block);
    }

    fn became_leaf(&mut self, block: BlockId) {
        self.queues.became_leaf(block);
    }

    fn copy(&self) -> Box<dyn EvictionPolicy> {
        Box::new(self.clone())
    }

    fn len(&self) -> usize {
        self.queues.total()
    }

    fn check_integrity(&self) {
        self.queues.check();
        self.ghosts.check();
        assert!(self.ghosts.len() <= self.blocks, "too many ghosts");
    }
}
