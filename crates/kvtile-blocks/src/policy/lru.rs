//! Least recently used, over leaves. The leaf with the oldest last use is evicted; its parent then
//! ranks by its own last use. Of the blocks of one request the deepest is evicted first.

use super::{EvictionPolicy, EvictionRefusal, Insertion, Visit, queue::EvictionQueues};
use crate::{BlockId, BlockKey, Tick};

/// The only queue.
const USED: u8 = 0;

/// The LRU policy.
#[derive(Clone, Debug)]
pub struct Lru {
    queues: EvictionQueues,
}

impl Lru {
    /// A policy for a pool of `blocks` blocks.
    #[must_use]
    pub fn new(blocks: u32) -> Lru {
        let queues = EvictionQueues::new(blocks, 1);
        Lru { queues }
    }
}

impl EvictionPolicy for Lru {
    fn name(&self) -> &'static str {
        "lru"
    }

    fn visited(&mut self, visit: &Visit<'_>) {
        self.queues.push_chain(USED, visit.blocks);
    }

    fn inserted(&mut self, insertion: &Insertion<'_>) {
        self.queues.make_room(insertion.blocks);
        let mut parent = insertion.parent;
        for &block in insertion.blocks {
            assert_eq!(self.queues.of(block), None, "stored twice");
            self.queues.store(USED, parent, block);
            parent = Some(block);
        }
    }

    fn candidate(&mut self, _now: Tick) -> Option<BlockId> {
        self.queues.next(USED)
    }

    fn evicted(&mut self, block: BlockId, _key: &BlockKey) {
        self.queues.remove(block);
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
    }
}
