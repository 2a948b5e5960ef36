//! Least recently used, without its flaw: a request uses its last block first and its first block
//! last, and what is stored behind a block stands just before it in the queue, so that chains are
//! shortened from their tails.

use super::{
    EvictionPolicy, Insertion, Offer, Visit,
    column::{Column, NONE},
    links::{Links, List},
};
use crate::{BlockId, Tick};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stand {
    /// Not stored.
    Out,
    /// In the queue.
    Queued,
    /// Offered and in use.
    Aside,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    parent: u32,
    /// The birth of the parent: a block that was stored later under its id is another one.
    parent_birth: u32,
    birth: u32,
    stand: Stand,
}

/// Least recently used.
#[derive(Debug)]
pub struct Lru {
    links: Links,
    queue: List,
    entries: Column<Entry>,
    births: u32,
    len: usize,
}

impl Lru {
    /// For a pool of `blocks` blocks.
    #[must_use]
    pub fn new(blocks: u32) -> Lru {
        let entry = Entry {
            parent: NONE,
            parent_birth: 0,
            birth: 0,
            stand: Stand::Out,
        };
        Lru {
            links: Links::new(blocks as usize),
            queue: List::new(),
            entries: Column::new(blocks as usize, entry),
            births: 0,
            len: 0,
        }
    }

    /// The block before one in its chain, while it is stored.
    fn parent(&self, block: u32) -> Option<u32> {
        let entry = self.entries[block];
        let parent = (entry.parent != NONE).then_some(entry.parent)?;
        let of_it = self.entries[parent];
        let same = of_it.stand != Stand::Out && of_it.birth == entry.parent_birth;
        same.then_some(parent)
    }

    /// Queues a block that is in no list: just before the nearest block before it in its chain
    /// that is queued, or as the newest.
    fn queue(&mut self, block: u32) {
        let mut ancestor = self.parent(block);
        while let Some(found) = ancestor
            && self.entries[found].stand != Stand::Queued
        {
            ancestor = self.parent(found);
        }
        match ancestor {
            Some(place) => self.links.push_before(&mut self.queue, place, block),
            None => self.links.push(&mut self.queue, block),
        }
        self.entries[block].stand = Stand::Queued;
    }
}

impl EvictionPolicy for Lru {
    fn name(&self) -> &'static str {
        "lru"
    }

    fn visited(&mut self, visit: &Visit<'_>) {
        for block in visit.blocks.iter().rev() {
            if self.entries[block.0].stand == Stand::Queued {
                self.links.remove(&mut self.queue, block.0);
                self.links.push(&mut self.queue, block.0);
            }
        }
    }

    fn inserted(&mut self, insertion: &Insertion<'_>) {
        let mut parent = insertion.parent;
        for &block in insertion.blocks {
            assert_eq!(self.entries[block.0].stand, Stand::Out, "stored twice");
            self.births = self.births.wrapping_add(1);
            self.entries[block.0] = Entry {
                parent: parent.map_or(NONE, |parent| parent.0),
                parent_birth: parent.map_or(0, |parent| self.entries[parent.0].birth),
                birth: self.births,
                stand: Stand::Out,
            };
            self.queue(block.0);
            self.len += 1;
            parent = Some(block);
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
            && let Some(block) = self.queue.oldest()
        {
            self.links.remove(&mut self.queue, block);
            self.entries[block].stand = match offer(BlockId(block)) {
                Offer::Taken(_) => {
                    self.len -= 1;
                    taken += 1;
                    Stand::Out
                }
                Offer::Pinned => Stand::Aside,
            };
        }
        taken
    }

    fn removed(&mut self, block: BlockId) {
        match self.entries[block.0].stand {
            Stand::Out => return,
            Stand::Queued => self.links.remove(&mut self.queue, block.0),
            Stand::Aside => {}
        }
        self.entries[block.0].stand = Stand::Out;
        self.len -= 1;
    }

    fn released(&mut self, block: BlockId) {
        if self.entries[block.0].stand == Stand::Aside {
            self.queue(block.0);
        }
    }

    fn keeps_prefixes(&self) -> bool {
        true
    }

    fn len(&self) -> usize {
        self.len
    }

    fn check_integrity(&self) {
        self.links.check(&self.queue);
        let count = |stand| self.entries.iter().filter(|e| e.stand == stand).count();
        assert_eq!(count(Stand::Queued), self.queue.len(), "queued blocks");
        assert_eq!(count(Stand::Queued) + count(Stand::Aside), self.len);
        let mut seen = Column::new(self.entries.len(), false);
        for block in self.links.iter(&self.queue) {
            seen[block] = true;
            if let Some(parent) = self.parent(block) {
                assert!(
                    !seen[parent],
                    "{parent} goes before {block}, which follows it"
                );
            }
        }
    }
}
