//! The number of cached children of each cached block, and, by key, of each parent that is not in
//! the pool. It is one table for all tenants and all policies, so the rule that only leaves are
//! evicted holds in one place. It knows neither policies nor pins.
//!
//! ```text
//! counts   by block id   cached children, in a byte; UNLISTED where the block is not cached
//! many     by block id   cached children where a byte is too short
//! absent   by key        cached children of a parent that is not cached
//! ```
//!
//! A child counts under its parent's key, so parent and child may come and go in any order. A
//! parent that is cached after its children takes their count over from `absent`; one that is
//! removed before them leaves their count there.
//!
//! Keys are the caller's, and a hostile one can make a block its own ancestor. No block in such a
//! cycle is a leaf. A block that names itself has no parent here; a longer cycle is cut when a
//! policy has nothing else to offer ([`ChildCounts::cut_cycles`]).

use super::index::BlockIndex;
use super::slot::{BlockSlots, KeyWords};
use crate::BlockId;
use crate::grow::grow;
use std::collections::{HashMap, HashSet};

/// The count of a block that is not cached.
const UNLISTED: u8 = u8::MAX;

/// The count of a block whose children are counted in `many`.
const MANY: u8 = UNLISTED - 1;

/// The slots and the index, to find blocks by key.
#[derive(Clone, Copy)]
pub(super) struct SlotsByKey<'p> {
    pub(super) slots: &'p BlockSlots,
    pub(super) index: &'p BlockIndex,
}

impl SlotsByKey<'_> {
    /// The registered block with this key.
    fn registered(self, key: KeyWords) -> Option<BlockId> {
        let registered = |id| {
            let registered = self.slots.get(id).state().is_registered();
            registered.then_some(BlockId(id))
        };
        self.index.find(self.slots, key, registered)
    }

    /// The key of the block's parent, unless it is the block itself.
    fn parent_key(self, id: BlockId) -> Option<KeyWords> {
        let parent = KeyWords::new(&self.slots.parent(id)?);
        (parent != self.slots.of(id).key()).then_some(parent)
    }
}

/// The counts of cached children.
#[derive(Debug, Default)]
pub(super) struct ChildCounts {
    /// As long as the largest id so far requires.
    counts: Vec<u8>,
    many: HashMap<BlockId, u32>,
    absent: HashMap<KeyWords, u32>,
    /// Cached blocks that their parents do not count, because they would close a cycle.
    cut: HashSet<BlockId>,
    /// Whether a block with children was linked to a cached parent since the last search for
    /// cycles; nothing else closes a cycle.
    joined: bool,
}

impl ChildCounts {
    /// Whether this cached block has a cached child.
    pub(super) fn has(&self, id: BlockId) -> bool {
        !matches!(self.counts.get(id.index()), Some(&(0 | UNLISTED)) | None)
    }

    /// Whether a cached block has this key as its parent, which need not be cached.
    pub(super) fn has_key(&self, blocks: SlotsByKey<'_>, key: KeyWords) -> bool {
        match self.listed(blocks, None, key) {
            Some(id) => self.has(id),
            None => self.absent.contains_key(&key),
        }
    }

    /// Makes room for blocks that [`list`](ChildCounts::list) will add to the table.
    pub(super) fn make_room(&mut self, ids: &[BlockId], slots: &BlockSlots) {
        if let Some(largest) = ids.iter().max() {
            grow(
                &mut self.counts,
                (largest.index() + 1, slots.len()),
                UNLISTED,
            );
        }
    }

    /// Adds a registered block to the table. `before` is a guess of its parent that may save the
    /// search.
    pub(super) fn list(&mut self, blocks: SlotsByKey<'_>, before: Option<BlockId>, id: BlockId) {
        let adopted = match self.absent.is_empty() {
            true => 0,
            false => self.absent.remove(&blocks.slots.of(id).key()).unwrap_or(0),
        };
        let place = self.place(id);
        assert_eq!(*place, UNLISTED, "{id:?} is cached once");
        *place = 0;
        if adopted > 0 {
            self.set(id, adopted);
        }
        let Some(key) = blocks.parent_key(id) else {
            return;
        };
        match self.listed(blocks, before, key) {
            Some(parent) => {
                self.add(parent);
                self.joined |= adopted > 0;
            }
            None => *self.absent.entry(key).or_insert(0) += 1,
        }
    }

    /// Removes a block from the table. Returns its parent if the parent has no cached children now.
    pub(super) fn unlist(&mut self, blocks: SlotsByKey<'_>, id: BlockId) -> Option<BlockId> {
        let byte = std::mem::replace(self.place(id), UNLISTED);
        assert!(byte != UNLISTED, "{id:?} leaves the cache once");
        let left = match byte {
            MANY => self.many.remove(&id).unwrap_or(0),
            count => u32::from(count),
        };
        if left > 0 {
            let key = blocks.slots.of(id).key();
            let before = self.absent.insert(key, left);
            assert_eq!(before, None, "children of {id:?} were counted with it");
        }
        if !self.cut.is_empty() && self.cut.remove(&id) {
            return None;
        }
        let key = blocks.parent_key(id)?;
        // Blocks of a chain that were allocated together have adjacent ids, which saves the search.
        let neighbours = [id.0.wrapping_add(1), id.0.wrapping_sub(1)].map(BlockId);
        let mut neighbours = neighbours.into_iter();
        let near =
            neighbours.find(|&near| self.is_listed(near) && blocks.slots.of(near).key() == key);
        if let Some(parent) = near.or_else(|| self.listed(blocks, None, key)) {
            return self.discount(parent).then_some(parent);
        }
        let count = self.absent.get_mut(&key);
        let left = count.map(|count| {
            *count -= 1;
            *count
        });
        assert!(left.is_some(), "a parent of {id:?} counts it");
        if left == Some(0) {
            self.absent.remove(&key);
        }
        None
    }

    /// Cuts each cycle of cached blocks and returns the blocks that became leaves. It scans all
    /// blocks, but only if a cycle may have been closed since the last call.
    pub(super) fn cut_cycles(&mut self, blocks: SlotsByKey<'_>) -> Vec<BlockId> {
        let mut leaves = Vec::new();
        if !std::mem::take(&mut self.joined) {
            return leaves;
        }
        // For each block the first walk that visited it.
        let mut walks = vec![NO_WALK; self.counts.len()];
        for walk in (0_u32..).take(self.counts.len()) {
            let mut at = BlockId(walk);
            while self.is_listed(at)
                && let Some(met) = walks.get_mut(at.index())
                && *met == NO_WALK
            {
                *met = walk;
                let Some(parent) = self.counted_parent(blocks, at) else {
                    break;
                };
                if walks.get(parent.index()) == Some(&walk) {
                    self.cut_cycle(blocks, parent, &mut leaves);
                    break;
                }
                at = parent;
            }
        }
        leaves
    }

    /// Cuts every edge of the cycle that contains this block: some policies know some of its blocks
    /// as parents, and this table does not know which.
    fn cut_cycle(&mut self, blocks: SlotsByKey<'_>, block: BlockId, leaves: &mut Vec<BlockId>) {
        let mut at = block;
        while let Some(parent) = self.counted_parent(blocks, at) {
            self.cut.insert(at);
            if self.discount(parent) {
                leaves.push(parent);
            }
            at = parent;
        }
    }

    /// Asserts that the counts match the cached blocks.
    pub(super) fn check(&self, blocks: SlotsByKey<'_>) {
        let ids = || (0_u32..).take(self.counts.len()).map(BlockId);
        let mut counts = vec![0_u32; self.counts.len()];
        let mut absent: HashMap<KeyWords, u32> = HashMap::new();
        for id in ids().filter(|&id| self.is_listed(id)) {
            assert!(blocks.slots.of(id).state().is_registered(), "{id:?}");
            let Some(key) = blocks.parent_key(id).filter(|_| !self.cut.contains(&id)) else {
                continue;
            };
            let parent = self.listed(blocks, None, key);
            match parent.and_then(|parent| counts.get_mut(parent.index())) {
                Some(count) => *count += 1,
                None => *absent.entry(key).or_insert(0) += 1,
            }
        }
        for (id, count) in ids().zip(counts) {
            let counted = if self.is_listed(id) {
                self.count(id)
            } else {
                0
            };
            assert_eq!(counted, count, "children of {id:?}");
            let is_many = self.counts.get(id.index()) == Some(&MANY);
            assert_eq!(is_many, self.many.contains_key(&id), "children of {id:?}");
        }
        assert_eq!(self.absent, absent, "children of absent parents");
        let cut = |id: &BlockId| self.is_listed(*id);
        assert!(self.cut.iter().all(cut), "only cached blocks are cut off");
    }

    /// The number of cached blocks; for tests.
    pub(super) fn len(&self) -> usize {
        let listed = self.counts.iter().filter(|&&count| count != UNLISTED);
        listed.count()
    }

    fn is_listed(&self, id: BlockId) -> bool {
        let count = self.counts.get(id.index());
        count.is_some_and(|&count| count != UNLISTED)
    }

    /// The cached block with this key.
    fn listed(
        &self,
        blocks: SlotsByKey<'_>,
        before: Option<BlockId>,
        key: KeyWords,
    ) -> Option<BlockId> {
        let id = before
            .filter(|&id| blocks.slots.of(id).key() == key)
            .or_else(|| blocks.registered(key))?;
        self.is_listed(id).then_some(id)
    }

    fn counted_parent(&self, blocks: SlotsByKey<'_>, id: BlockId) -> Option<BlockId> {
        let key = blocks.parent_key(id).filter(|_| !self.cut.contains(&id))?;
        self.listed(blocks, None, key)
    }

    /// Subtracts a child. Returns whether none is left.
    fn discount(&mut self, parent: BlockId) -> bool {
        let place = self.place(parent);
        if (1..MANY).contains(place) {
            *place -= 1;
            return *place == 0;
        }
        let count = self.count(parent);
        assert!(count > 0, "children of {parent:?}");
        self.set(parent, count - 1);
        count == 1
    }

    /// Adds a child.
    fn add(&mut self, parent: BlockId) {
        let place = self.place(parent);
        if *place < MANY - 1 {
            *place += 1;
        } else {
            self.set(parent, self.count(parent) + 1);
        }
    }

    /// The number of children of a cached block.
    #[inline]
    fn count(&self, id: BlockId) -> u32 {
        match self.counts.get(id.index()) {
            Some(&MANY) => self.many.get(&id).copied().unwrap_or(0),
            None | Some(&UNLISTED) => 0,
            Some(&count) => u32::from(count),
        }
    }

    /// Sets the number of children; the block is cached then.
    fn set(&mut self, id: BlockId, count: u32) {
        let byte = u8::try_from(count).unwrap_or(MANY).min(MANY);
        let before = std::mem::replace(self.place(id), byte);
        if byte == MANY {
            self.many.insert(id, count);
        } else if before == MANY {
            self.many.remove(&id);
        }
    }

    /// # Panics
    /// If the block was never listed. The pool passes only blocks that are cached.
    #[expect(
        clippy::indexing_slicing,
        reason = "a cached block was listed, which made the table long enough"
    )]
    fn place(&mut self, id: BlockId) -> &mut u8 {
        &mut self.counts[id.index()]
    }
}

/// Marks a block that no walk has visited; there are fewer blocks than this number.
const NO_WALK: u32 = u32::MAX;
