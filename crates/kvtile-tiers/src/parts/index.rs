//! Which parts have which blocks, and which blocks they cover.

use std::{collections::HashMap, sync::Arc};

use kvtile_blocks::{
    BlockKey,
    events::{EventKind, StoredBlock, TierId},
};
use kvtile_layout::broken;

use super::cover::{PartRectangle, cover};
use crate::tier::GroupId;

/// The most parts: a bit for each in [`PartSet`].
pub(super) const PARTS_MAX: usize = 128;

/// The most covers that are kept for later blocks.
const COVERS_MAX: usize = 4096;

/// A set of parts, a bit for each.
type PartSet = u128;

/// The numbers of parts that cover the own rectangle.
pub(super) type PartCover = Arc<[usize]>;

/// The blocks of all parts.
#[derive(Debug)]
pub(super) struct PartsIndex {
    wanted: PartRectangle,
    parts: Vec<PartRectangle>,
    blocks: HashMap<BlockKey, IndexedParts>,
    /// The covers of the sets that occurred.
    covers: HashMap<PartSet, Option<PartCover>>,
    /// The number of covered blocks.
    covered: usize,
}

/// The parts that have a block.
#[derive(Debug)]
struct IndexedParts {
    set: PartSet,
    /// `None` if they do not cover the own rectangle, or if the block was removed here.
    cover: Option<PartCover>,
    /// Whether this cache has removed the block, which the parts still have.
    is_removed: bool,
    parent: Option<BlockKey>,
    tenant: u32,
}

impl PartsIndex {
    pub(super) fn new(wanted: PartRectangle) -> PartsIndex {
        PartsIndex {
            wanted,
            parts: Vec::new(),
            blocks: HashMap::new(),
            covers: HashMap::new(),
            covered: 0,
        }
    }

    /// Adds a part; its number is that of the parts before.
    pub(super) fn add_part(&mut self, part: PartRectangle) {
        assert!(self.parts.len() < PARTS_MAX, "more than {PARTS_MAX} parts");
        self.parts.push(part);
    }

    /// The number of covered blocks.
    pub(super) fn len(&self) -> usize {
        self.covered
    }

    /// The parent and the tenant of a covered block.
    pub(super) fn find(&self, key: &BlockKey) -> Option<(Option<BlockKey>, u32)> {
        let block = self.blocks.get(key).filter(|block| block.cover.is_some())?;
        Some((block.parent, block.tenant))
    }

    /// The parts that cover a block.
    pub(super) fn cover_of(&self, key: &BlockKey) -> Option<PartCover> {
        self.blocks.get(key)?.cover.clone()
    }

    /// A part has a block. Returns the change of the tier.
    pub(super) fn stored(
        &mut self,
        part: usize,
        key: BlockKey,
        (parent, tenant): (Option<BlockKey>, u32),
    ) -> Option<EventKind> {
        let block = self.blocks.entry(key).or_insert(IndexedParts {
            set: 0,
            cover: None,
            is_removed: false,
            parent,
            tenant,
        });
        // A key has one parent, so a part with another one has another block.
        let is_same = block.parent == parent;
        let set = block.set | if is_same { bit(part) } else { 0 };
        self.set(key, set)
    }

    /// A part does not have a block any more. Returns the change of the tier.
    pub(super) fn removed(&mut self, part: usize, key: &BlockKey) -> Option<EventKind> {
        let set = self.blocks.get(key)?.set & !bit(part);
        self.set(*key, set)
    }

    /// A part has no block any more. Returns the changes of the tier.
    pub(super) fn cleared(&mut self, part: usize) -> Vec<EventKind> {
        let of_part = self
            .blocks
            .iter()
            .filter(|(_, block)| block.set & bit(part) != 0);
        let keys: Vec<BlockKey> = of_part.map(|(key, _)| *key).collect();
        keys.iter()
            .filter_map(|key| self.removed(part, key))
            .collect()
    }

    /// Stops finding a block until no part has it any more. Returns the change of the tier.
    pub(super) fn forget(&mut self, key: &BlockKey) -> Option<EventKind> {
        let block = self.blocks.get_mut(key)?;
        block.is_removed = true;
        let set = block.set;
        self.set(*key, set)
    }

    /// Stops finding all blocks that the parts have now. Returns the changes of the tier.
    pub(super) fn forget_all(&mut self) -> Vec<EventKind> {
        let keys: Vec<BlockKey> = self.blocks.keys().copied().collect();
        keys.iter().filter_map(|key| self.forget(key)).collect()
    }

    /// Replaces the set of a block that is in the index.
    fn set(&mut self, key: BlockKey, set: PartSet) -> Option<EventKind> {
        let cover = self.covering(set);
        let Some(block) = self.blocks.get_mut(&key) else {
            broken(format_args!("block {key} is not in the index of parts"))
        };
        let cover = cover.filter(|_| !block.is_removed);
        let (before, now) = (block.cover.is_some(), cover.is_some());
        let parent = block.parent;
        block.set = set;
        block.cover = cover;
        if set == 0 {
            self.blocks.remove(&key);
        }
        match (before, now) {
            (false, true) => {
                self.covered += 1;
                Some(EventKind::Stored { key, parent })
            }
            (true, false) => {
                self.covered -= 1;
                Some(EventKind::Removed { key })
            }
            _ => None,
        }
    }

    fn covering(&mut self, set: PartSet) -> Option<PartCover> {
        if let Some(known) = self.covers.get(&set) {
            return known.clone();
        }
        let parts = self.parts.iter().copied().enumerate();
        let there: Vec<_> = parts.filter(|(part, _)| set & bit(*part) != 0).collect();
        let found = cover(&self.wanted, &there).map(PartCover::from);
        if self.covers.len() >= COVERS_MAX {
            self.covers.clear();
        }
        self.covers.insert(set, found.clone());
        found
    }

    /// Appends the covered blocks.
    pub(super) fn list(&self, (tier, group): (TierId, GroupId), blocks: &mut Vec<StoredBlock>) {
        let covered = self
            .blocks
            .iter()
            .filter(|(_, block)| block.cover.is_some());
        blocks.extend(covered.map(|(key, block)| StoredBlock {
            tier,
            group,
            key: *key,
            parent: block.parent,
        }));
    }

    /// Asserts the invariants.
    pub(super) fn check_integrity(&self) {
        let covered = self.blocks.values().filter(|block| block.cover.is_some());
        assert_eq!(covered.count(), self.covered, "covered blocks");
        for (key, block) in &self.blocks {
            assert_ne!(block.set, 0, "block {key} is in no part");
            let parts = self.parts.iter().copied().enumerate();
            let there: Vec<_> = parts
                .filter(|(part, _)| block.set & bit(*part) != 0)
                .collect();
            let expected = cover(&self.wanted, &there).map(PartCover::from);
            let expected = expected.filter(|_| !block.is_removed);
            assert_eq!(block.cover, expected, "the cover of block {key}");
            for &part in block.cover.iter().flat_map(|cover| cover.iter()) {
                assert_ne!(block.set & bit(part), 0, "part {part} lacks block {key}");
            }
        }
    }
}

fn bit(part: usize) -> PartSet {
    assert!(part < PARTS_MAX, "part {part} of at most {PARTS_MAX}");
    1 << part
}
