//! S3-FIFO (Yang et al., SOSP 2023): a small queue that new blocks have to survive, a main queue
//! with second chances, and the keys of those who did not survive.
//!
//! The small queue has a tenth of the blocks; a block that was used at least twice in it moves on;
//! as many keys are remembered as there are blocks. It knows nothing of chains.

use super::{
    EvictionPolicy, Insertion, Offer, Visit,
    column::Column,
    ghosts::Ghosts,
    links::{Links, List},
};
use crate::{BlockId, BlockKey, Tick};

/// Uses that are counted.
const USES_MAX: u8 = 3;

/// Uses in the small queue that are enough to move on.
const USES_ENOUGH: u8 = 2;

/// The small queue has one block in so many.
const SMALL_PART: usize = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stand {
    Out,
    Small,
    Main,
    /// Offered from the small queue, and in use.
    SmallAside,
    /// Offered from the main queue, and in use.
    MainAside,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    stand: Stand,
    uses: u8,
}

/// Three FIFO queues.
#[derive(Debug)]
pub struct S3Fifo {
    links: Links,
    small: List,
    main: List,
    entries: Column<Entry>,
    ghosts: Ghosts<()>,
    blocks: usize,
    small_blocks: usize,
    len: usize,
}

impl S3Fifo {
    /// For a pool of `blocks` blocks.
    #[must_use]
    pub fn new(blocks: u32) -> S3Fifo {
        let blocks = blocks as usize;
        let entry = Entry {
            stand: Stand::Out,
            uses: 0,
        };
        S3Fifo {
            links: Links::new(blocks),
            small: List::new(),
            main: List::new(),
            entries: Column::new(blocks, entry),
            ghosts: Ghosts::new(),
            blocks,
            small_blocks: (blocks / SMALL_PART).max(1),
            len: 0,
        }
    }

    fn put(&mut self, block: u32, stand: Stand, uses: u8) {
        self.entries[block] = Entry { stand, uses };
        match stand {
            Stand::Small => self.links.push(&mut self.small, block),
            Stand::Main => self.links.push(&mut self.main, block),
            Stand::Out | Stand::SmallAside | Stand::MainAside => {}
        }
    }

    /// The block that would go next, out of its queue.
    fn next(&mut self) -> Option<(u32, Stand)> {
        if self.small.len() >= self.small_blocks || self.main.len() == 0 {
            while let Some(block) = self.small.oldest() {
                self.links.remove(&mut self.small, block);
                if self.entries[block].uses < USES_ENOUGH {
                    return Some((block, Stand::Small));
                }
                self.put(block, Stand::Main, 0);
                if self.main.len() > self.blocks - self.small_blocks {
                    break;
                }
            }
        }
        while let Some(block) = self.main.oldest() {
            self.links.remove(&mut self.main, block);
            let uses = self.entries[block].uses;
            if uses == 0 {
                return Some((block, Stand::Main));
            }
            self.put(block, Stand::Main, uses - 1);
        }
        // Only the small queue is left, and it is shorter than it should be.
        let block = self.small.oldest()?;
        self.links.remove(&mut self.small, block);
        Some((block, Stand::Small))
    }

    fn remember(&mut self, key: &BlockKey) {
        self.ghosts.push(key, ());
        if self.ghosts.len() > self.blocks {
            self.ghosts.pop();
        }
    }
}

impl EvictionPolicy for S3Fifo {
    fn name(&self) -> &'static str {
        "s3-fifo"
    }

    fn visited(&mut self, visit: &Visit<'_>) {
        for block in visit.blocks {
            let uses = &mut self.entries[block.0].uses;
            *uses = (*uses + 1).min(USES_MAX);
        }
    }

    fn inserted(&mut self, insertion: &Insertion<'_>) {
        for (block, key) in insertion.blocks.iter().zip(insertion.keys).rev() {
            assert_eq!(self.entries[block.0].stand, Stand::Out, "stored twice");
            let stand = match self.ghosts.take(key) {
                Some(()) => Stand::Main,
                None => Stand::Small,
            };
            self.put(block.0, stand, 0);
            self.len += 1;
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
            let uses = self.entries[block].uses;
            match (offer(BlockId(block)), from) {
                (Offer::Taken(key), _) => {
                    self.put(block, Stand::Out, 0);
                    self.len -= 1;
                    taken += 1;
                    if from == Stand::Small {
                        self.remember(&key);
                    }
                }
                (Offer::Pinned, Stand::Small) => self.put(block, Stand::SmallAside, uses),
                (Offer::Pinned, _) => self.put(block, Stand::MainAside, uses),
            }
        }
        taken
    }

    fn removed(&mut self, block: BlockId) {
        match self.entries[block.0].stand {
            Stand::Out => return,
            Stand::Small => self.links.remove(&mut self.small, block.0),
            Stand::Main => self.links.remove(&mut self.main, block.0),
            Stand::SmallAside | Stand::MainAside => {}
        }
        self.put(block.0, Stand::Out, 0);
        self.len -= 1;
    }

    fn released(&mut self, block: BlockId) {
        let uses = self.entries[block.0].uses;
        match self.entries[block.0].stand {
            Stand::SmallAside => self.put(block.0, Stand::Small, uses),
            Stand::MainAside => self.put(block.0, Stand::Main, uses),
            Stand::Out | Stand::Small | Stand::Main => {}
        }
    }

    fn keeps_prefixes(&self) -> bool {
        false
    }

    fn len(&self) -> usize {
        self.len
    }

    fn check_integrity(&self) {
        self.links.check(&self.small);
        self.links.check(&self.main);
        self.ghosts.check();
        assert!(self.ghosts.len() <= self.blocks, "too many ghosts");
        let count = |stand| self.entries.iter().filter(|e| e.stand == stand).count();
        assert_eq!(count(Stand::Small), self.small.len(), "small queue");
        assert_eq!(count(Stand::Main), self.main.len(), "main queue");
        let aside = count(Stand::SmallAside) + count(Stand::MainAside);
        assert_eq!(self.small.len() + self.main.len() + aside, self.len);
    }
}
