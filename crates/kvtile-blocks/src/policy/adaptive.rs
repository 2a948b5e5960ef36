//! Adaptive replacement, ARC (Megiddo and Modha, FAST 2003): blocks that were used once and blocks
//! that were used again, each with the keys of those who left, and a target for how many of the
//! first kind to keep that moves to where keys come back.
//!
//! A pool makes room before it knows for which key, so the target moves when the block is stored.
//! On the traces of the replay that makes no difference. It knows nothing of chains.

use super::{
    EvictionPolicy, Insertion, Offer, Visit,
    column::Column,
    ghosts::Ghosts,
    links::{Links, List},
};
use crate::{BlockId, Tick};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stand {
    Out,
    Once,
    Again,
    /// Offered while it was used once, and in use.
    OnceAside,
    /// Offered while it was used again, and in use.
    AgainAside,
}

/// Adaptive replacement.
#[derive(Debug)]
pub struct AdaptiveReplacement {
    links: Links,
    once: List,
    again: List,
    stands: Column<Stand>,
    once_ghosts: Ghosts<()>,
    again_ghosts: Ghosts<()>,
    /// How many blocks that were used once should be kept.
    once_target: f64,
    blocks: usize,
    len: usize,
}

impl AdaptiveReplacement {
    /// For a pool of `blocks` blocks.
    #[must_use]
    pub fn new(blocks: u32) -> AdaptiveReplacement {
        let blocks = blocks as usize;
        AdaptiveReplacement {
            links: Links::new(blocks),
            once: List::new(),
            again: List::new(),
            stands: Column::new(blocks, Stand::Out),
            once_ghosts: Ghosts::new(),
            again_ghosts: Ghosts::new(),
            once_target: 0.0,
            blocks,
            len: 0,
        }
    }

    fn put(&mut self, block: u32, stand: Stand) {
        self.stands[block] = stand;
        match stand {
            Stand::Once => self.links.push(&mut self.once, block),
            Stand::Again => self.links.push(&mut self.again, block),
            Stand::Out | Stand::OnceAside | Stand::AgainAside => {}
        }
    }

    /// The block that would go next, out of its list.
    fn next(&mut self) -> Option<(u32, Stand)> {
        let many_once = self.once.len() as f64 > self.once_target;
        let from_once = self.once.len() > 0 && (many_once || self.again.len() == 0);
        if from_once {
            let block = self.once.oldest()?;
            self.links.remove(&mut self.once, block);
            Some((block, Stand::Once))
        } else {
            let block = self.again.oldest()?;
            self.links.remove(&mut self.again, block);
            Some((block, Stand::Again))
        }
    }

    /// A key came back: the list that it had left was too short. With how many ghosts, itself
    /// among them.
    fn adapt(&mut self, left: Stand, once: usize, again: usize) {
        let (once, again) = (once as f64, again as f64);
        let target = match left {
            Stand::Once => self.once_target + (again / once).max(1.0),
            _ => self.once_target - (once / again).max(1.0),
        };
        self.once_target = target.clamp(0.0, self.blocks as f64);
    }

    fn forget(&mut self) {
        while self.once_ghosts.len() > 0 && self.once.len() + self.once_ghosts.len() > self.blocks {
            self.once_ghosts.pop();
        }
        while self.again_ghosts.len() > 0
            && self.len + self.once_ghosts.len() + self.again_ghosts.len() > 2 * self.blocks
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
        for block in visit.blocks.iter().rev() {
            match self.stands[block.0] {
                Stand::Once => self.links.remove(&mut self.once, block.0),
                Stand::Again => self.links.remove(&mut self.again, block.0),
                Stand::OnceAside | Stand::AgainAside | Stand::Out => {
                    self.stands[block.0] = Stand::AgainAside;
                    continue;
                }
            }
            self.put(block.0, Stand::Again);
        }
    }

    fn inserted(&mut self, insertion: &Insertion<'_>) {
        for (block, key) in insertion.blocks.iter().zip(insertion.keys).rev() {
            assert_eq!(self.stands[block.0], Stand::Out, "stored twice");
            // The ratio of the ghosts counts the one that comes back.
            let (once, again) = (self.once_ghosts.len(), self.again_ghosts.len());
            let stand = if self.once_ghosts.take(key).is_some() {
                self.adapt(Stand::Once, once, again);
                Stand::Again
            } else if self.again_ghosts.take(key).is_some() {
                self.adapt(Stand::Again, once, again);
                Stand::Again
            } else {
                Stand::Once
            };
            self.put(block.0, stand);
            self.len += 1;
            self.forget();
        }
    }

    fn evict(
        &mut self,
        wanted: usize,
        _now: Tick,
        offer: &mut dyn FnMut(BlockId) -> Offer,
    ) -> usize {
        let mut taken = 0;
        while taken < wanted
            && let Some((block, from)) = self.next()
        {
            match (offer(BlockId(block)), from) {
                (Offer::Taken(key), _) => {
                    self.put(block, Stand::Out);
                    self.len -= 1;
                    taken += 1;
                    if from == Stand::Once {
                        self.once_ghosts.push(&key, ());
                    } else {
                        self.again_ghosts.push(&key, ());
                    }
                    self.forget();
                }
                (Offer::Pinned, Stand::Once) => self.put(block, Stand::OnceAside),
                (Offer::Pinned, _) => self.put(block, Stand::AgainAside),
            }
        }
        taken
    }

    fn removed(&mut self, block: BlockId) {
        match self.stands[block.0] {
            Stand::Out => return,
            Stand::Once => self.links.remove(&mut self.once, block.0),
            Stand::Again => self.links.remove(&mut self.again, block.0),
            Stand::OnceAside | Stand::AgainAside => {}
        }
        self.put(block.0, Stand::Out);
        self.len -= 1;
    }

    fn released(&mut self, block: BlockId) {
        match self.stands[block.0] {
            Stand::OnceAside => self.put(block.0, Stand::Once),
            Stand::AgainAside => self.put(block.0, Stand::Again),
            Stand::Out | Stand::Once | Stand::Again => {}
        }
    }

    fn keeps_prefixes(&self) -> bool {
        false
    }

    fn len(&self) -> usize {
        self.len
    }

    fn check_integrity(&self) {
        self.links.check(&self.once);
        self.links.check(&self.again);
        self.once_ghosts.check();
        self.again_ghosts.check();
        let count = |stand| self.stands.iter().filter(|&&s| s == stand).count();
        assert_eq!(count(Stand::Once), self.once.len(), "used once");
        assert_eq!(count(Stand::Again), self.again.len(), "used again");
        let aside = count(Stand::OnceAside) + count(Stand::AgainAside);
        assert_eq!(self.once.len() + self.again.len() + aside, self.len);
        assert!((0.0..=self.blocks as f64).contains(&self.once_target));
        let ghosts = self.once_ghosts.len() + self.again_ghosts.len();
        assert!(self.len + ghosts <= 2 * self.blocks, "too many ghosts");
    }
}
