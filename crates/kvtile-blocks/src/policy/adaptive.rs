//! ARC, adaptive replacement (Megiddo and Modha, FAST 2003), over leaves. It keeps two lists:
//! blocks used once (T1 in the paper) and blocks used again (T2), each with ghost entries of its
//! evicted blocks (B1, B2). The target length of the first list adapts to which ghosts come back.
//!
//! The paper's rule selects the list to shorten: the first one while it exceeds its target, else
//! the second. Here the oldest leaf of that list is evicted, and if it has none, the oldest leaf of
//! the other list. A list's length counts all of its blocks, including those with children or in
//! use.
//!
//! A pool evicts before the key to store is known, so the target adapts when the block is stored.
//! On the replayed traces this makes no difference.

use super::{
    EvictionPolicy, EvictionRefusal, Insertion, Visit, ghosts::GhostRing, queue::EvictionQueues,
};
use crate::{BlockId, BlockKey, Tick};

/// Blocks used once.
const ONCE: u8 = 0;

/// Blocks used again.
const AGAIN: u8 = 1;

/// The ARC policy.
#[derive(Clone, Debug)]
pub struct AdaptiveReplacement {
    queues: EvictionQueues,
    once_ghosts: GhostRing<()>,
    again_ghosts: GhostRing<()>,
    /// The target number of blocks that were used once.
    once_target: f64,
    blocks: usize,
}

impl AdaptiveReplacement {
    /// A policy for a pool of `blocks` blocks.
    #[must_use]
    pub fn new(blocks: u32) -> AdaptiveReplacement {
        AdaptiveReplacement {
            queues: EvictionQueues::new(blocks, 2),
            once_ghosts: GhostRing::new(),
            again_ghosts: GhostRing::new(),
            once_target: 0.0,
            blocks: blocks as usize,
        }
    }

    /// Adapts the target when a ghost comes back, as its list was too short. `once` and `again` are
    /// the numbers of ghosts, including this one.
    fn adapt(&mut self, left: u8, once: usize, again: usize) {
        let (once, again) = (once as f64, again as f64);
        let target = match left {
            ONCE => self.once_target + (again / once).max(1.0),
            _ => self.once_target - (once / again).max(1.0),
        };
        self.once_target = target.clamp(0.0, self.blocks as f64);
    }

    fn forget(&mut self) {
        let once = self.queues.len(ONCE);
        while self.once_ghosts.len() > 0 && once + self.once_ghosts.len() > self.blocks {
            self.once_ghosts.pop();
        }
        while self.again_ghosts.len() > 0
            && self.len() + self.once_ghosts.len() + self.again_ghosts.len() > 2 * self.blocks
        {
            self.again_ghosts.pop();
        }
    }
}

impl EvictionPolicy for AdaptiveReplacement {
    fn name(&self) -> &'static str {
        "arc"
    }

    fn visited(&mut self, visit: &Visit<'_>) {
        self.queues.push_chain(AGAIN, visit.blocks);
    }

    fn inserted(&mut self, insertion: &Insertion<'_>) {
        self.queues.make_room(insertion.blocks);
        let mut parent = insertion.parent;
        for (&block, key) in insertion.blocks.iter().zip(insertion.keys) {
            assert_eq!(self.queues.of(block), None, "stored twice");
            // The ratio of the ghost lists includes the ghost that comes back.
            let (once, again) = (self.once_ghosts.len(), self.again_ghosts.len());
            let queue = if self.once_ghosts.take(key).is_some() {
                self.adapt(ONCE, once, again);
                AGAIN
            } else if self.again_ghosts.take(key).is_some() {
                self.adapt(AGAIN, once, again);
                AGAIN
            } else {
                ONCE
            };
            self.queues.store(queue, parent, block);
            self.forget();
            parent = Some(block);
        }
    }

    fn candidate(&mut self, _now: Tick) -> Option<BlockId> {
        let many_once = self.queues.len(ONCE) as f64 > self.once_target;
        let order = if many_once {
            [ONCE, AGAIN]
        } else {
            [AGAIN, ONCE]
        };
        order.into_iter().find_map(|queue| self.queues.next(queue))
    }

    fn evicted(&mut self, block: BlockId, key: &BlockKey) {
        match self.queues.remove(block) {
            Some(ONCE) => self.once_ghosts.push(key, ()),
            _ => self.again_ghosts.push(key, ()),
        }
        self.forget();
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
        self.once_ghosts.check();
        self.again_ghosts.check();
        assert!((0.0..=self.blocks as f64).contains(&self.once_target));
        let ghosts = self.once_ghosts.len() + self.again_ghosts.len();
        assert!(self.len() + ghosts <= 2 * self.blocks, "too many ghosts");
    }
}
