//! The blocks that lookups find: those of bundles that the store reported, and staged ones.
//!
//! A positive entry lives until a read of it fails, a negative one for a short time. Neither is a
//! promise of the store. This does not know how bundles are read or written.
//!
//! The parent of a staged block is known, until the cache removes it. Answers of the store have gaps, so
//! a stored block may be known before its parent; it is found with it.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use kvtile_blocks::{
    BlockKey,
    events::{EventLog, StoredBlock, TierId},
};
use kvtile_tiers::tier::{BlockName, GroupId, TierStats};
use parking_lot::{Mutex, MutexGuard};

use super::staged::StagedBytes;

/// The most negative entries, and the most removed blocks that the index remembers.
const REMEMBERED_MAX: usize = 1 << 16;

/// A bundle that the store has, as far as the tier knows.
#[derive(Debug)]
pub(super) struct KnownBundle {
    /// The group and the key of its last block.
    pub(super) name: BlockName,
    /// The keys of its blocks, in their order.
    pub(super) keys: Vec<BlockKey>,
    /// When its lifetime was last renewed, if this process knows.
    pub(super) renewed: Mutex<Option<Instant>>,
}

impl KnownBundle {
    /// The index of a block in the bundle.
    pub(super) fn index_of(&self, key: &BlockKey) -> Option<u32> {
        let index = self.keys.iter().position(|one| one == key)?;
        u32::try_from(index).ok()
    }
}

/// Where the bytes of a block are.
#[derive(Clone, Debug)]
pub(super) enum BlockPlace {
    /// In staging memory.
    Staged(Arc<StagedBytes>),
    /// In the store.
    Stored(Arc<KnownBundle>),
}

/// A block of a chain: what the index knows of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChainedBlock {
    pub(super) name: BlockName,
    pub(super) parent: Option<BlockKey>,
    pub(super) tenant: u32,
    pub(super) position: u32,
}

#[derive(Debug)]
struct KnownBlock {
    chained: ChainedBlock,
    place: BlockPlace,
    used: u64,
}

#[derive(Debug, Default)]
struct KnownState {
    blocks: HashMap<BlockName, KnownBlock>,
    /// The number of known blocks whose parent is this block.
    children: HashMap<BlockName, u32>,
    /// Bundles that are absent, by their last block, and until when.
    absent: HashMap<BlockName, Instant>,
    /// Blocks that this cache removed. Answers of the store do not bring them back.
    removed: HashSet<BlockName>,
    removed_order: VecDeque<BlockName>,
    uses: u64,
    stats: TierStats,
}

impl KnownState {
    /// Whether the block before this one is known, or there is none.
    fn follows(&self, block: &ChainedBlock) -> bool {
        let parent = block.parent.map(|key| BlockName { key, ..block.name });
        parent.is_none_or(|parent| self.blocks.contains_key(&parent))
    }
}

/// What became of a block to stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StagedAs {
    /// It is in the index.
    New,
    /// The index has it already.
    Present,
    /// The index does not have the block before it.
    NoParent,
}

/// The index of a tier.
#[derive(Debug)]
pub(super) struct KnownBlocks {
    id: TierId,
    events: Arc<EventLog>,
    blocks_max: usize,
    state: Mutex<KnownState>,
}

impl KnownBlocks {
    pub(super) fn new(id: TierId, events: Arc<EventLog>, blocks_max: usize) -> KnownBlocks {
        KnownBlocks {
            id,
            events,
            blocks_max: blocks_max.max(1),
            state: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, KnownState> {
        self.state.lock()
    }

    /// The leading blocks of `keys`; with `only_staged` those in staging memory, because the store
    /// cannot be read now.
    pub(super) fn leading(
        &self,
        group: GroupId,
        keys: &[BlockKey],
        (is_use, only_staged): (bool, bool),
    ) -> Vec<ChainedBlock> {
        let mut state = self.lock();
        state.uses += 1;
        let uses = state.uses;
        let mut found = Vec::new();
        for &key in keys {
            let Some(block) = state.blocks.get_mut(&BlockName { group, key }) else {
                break;
            };
            if only_staged && matches!(block.place, BlockPlace::Stored(_)) {
                break;
            }
            if is_use {
                block.used = uses;
            }
            found.push(block.chained);
        }
        found
    }

    pub(super) fn has(&self, name: &BlockName) -> bool {
        self.lock().blocks.contains_key(name)
    }

    /// Where a block is.
    pub(super) fn place(&self, name: &BlockName) -> Option<(ChainedBlock, BlockPlace)> {
        let state = self.lock();
        let block = state.blocks.get(name)?;
        Some((block.chained, block.place.clone()))
    }

    /// Adds a staged block, also if it was removed before. The block before it may have been evicted since the caller
    /// looked.
    pub(super) fn add_staged(&self, block: ChainedBlock, bytes: &Arc<StagedBytes>) -> StagedAs {
        let mut state = self.lock();
        if state.blocks.contains_key(&block.name) {
            return StagedAs::Present;
        }
        if !state.follows(&block) {
            return StagedAs::NoParent;
        }
        state.removed.remove(&block.name);
        self.insert(&mut state, block, BlockPlace::Staged(Arc::clone(bytes)));
        StagedAs::New
    }

    /// The store has a bundle, whose blocks are `blocks`. `may_lead`: also without the block before it, which a query may
    /// find later.
    pub(super) fn add_stored(
        &self,
        bundle: &Arc<KnownBundle>,
        blocks: &[ChainedBlock],
        may_lead: bool,
    ) {
        let mut state = self.lock();
        state.absent.remove(&bundle.name);
        for block in blocks {
            let place = BlockPlace::Stored(Arc::clone(bundle));
            if let Some(known) = state.blocks.get_mut(&block.name) {
                if matches!(known.place, BlockPlace::Staged(_)) {
                    known.place = place;
                }
            } else if !state.removed.contains(&block.name) && (may_lead || state.follows(block)) {
                self.insert(&mut state, *block, place);
            }
        }
    }

    fn insert(&self, state: &mut KnownState, block: ChainedBlock, place: BlockPlace) {
        let BlockName { group, key } = block.name;
        // Before the search for leaves, of which the parent is none any more.
        if let Some(parent) = block.parent {
            let parent = BlockName { group, key: parent };
            *state.children.entry(parent).or_default() += 1;
        }
        if state.blocks.len() >= self.blocks_max {
            // Many at once, so that the search for leaves is rare.
            let blocks = (self.blocks_max / 16).max(1);
            let is_stored = |block: &KnownBlock| matches!(block.place, BlockPlace::Stored(_));
            let evicted = self.evict_leaves(state, blocks, is_stored);
            state.stats.evicted_for_room += evicted as u64;
        }
        state.uses += 1;
        let known = KnownBlock {
            chained: block,
            place,
            used: state.uses,
        };
        state.blocks.insert(block.name, known);
        self.events.stored(self.id, group, block.parent, &[key]);
    }

    fn delete(&self, state: &mut KnownState, name: &BlockName) -> Option<KnownBlock> {
        let block = state.blocks.remove(name)?;
        if let Some(key) = block.chained.parent {
            let parent = BlockName { key, ..*name };
            if let Some(children) = state.children.get_mut(&parent) {
                *children -= 1;
                if *children == 0 {
                    state.children.remove(&parent);
                }
            }
        }
        self.events.removed(self.id, name.group, &[name.key]);
        Some(block)
    }

    /// A bundle is not there, or not readable: its blocks are not found any more, and it counts as
    /// absent for a time.
    pub(super) fn drop_bundle(&self, bundle: &KnownBundle, absent_for: Duration, is_damaged: bool) {
        let mut state = self.lock();
        let mut dropped = Vec::new();
        for &key in &bundle.keys {
            let name = BlockName {
                group: bundle.name.group,
                key,
            };
            let is_of_it = |block: &KnownBlock| match &block.place {
                BlockPlace::Stored(stored) => stored.name == bundle.name,
                BlockPlace::Staged(_) => false,
            };
            if state.blocks.get(&name).is_some_and(is_of_it) {
                self.delete(&mut state, &name);
                dropped.push(name);
            }
        }
        if is_damaged {
            state.stats.damaged += dropped.len() as u64;
        }
        self.delete_descendants(&mut state, dropped);
        KnownBlocks::mark_absent(&mut state, bundle.name, absent_for);
    }

    /// Staged bytes of a bundle are given up: blocks that are nowhere else are not found any more. Returns
    /// their number. `is_lost`: the store failed to take them. Otherwise blocks with descendants stay, because another
    /// bundle begins with the same blocks.
    pub(super) fn drop_staged(
        &self,
        blocks: &[(BlockName, Arc<StagedBytes>)],
        is_lost: bool,
    ) -> usize {
        let mut state = self.lock();
        let mut dropped = Vec::new();
        for (name, bytes) in blocks.iter().rev() {
            if !is_lost && state.children.contains_key(name) {
                continue;
            }
            let is_it = |block: &KnownBlock| match &block.place {
                BlockPlace::Staged(staged) => Arc::ptr_eq(staged, bytes),
                BlockPlace::Stored(_) => false,
            };
            if state.blocks.get(name).is_some_and(is_it) {
                self.delete(&mut state, name);
                dropped.push(*name);
            }
        }
        let mut count = dropped.len();
        if is_lost {
            count += self.delete_descendants(&mut state, dropped);
            state.stats.damaged += count as u64;
        }
        count
    }

    /// Deletes the staged blocks whose parents were deleted, and so on. Returns their number. Stored ones stay: a query
    /// may be of keys that are no chain.
    fn delete_descendants(&self, state: &mut KnownState, mut deleted: Vec<BlockName>) -> usize {
        deleted.retain(|name| state.children.contains_key(name));
        if deleted.is_empty() {
            return 0;
        }
        let mut children: HashMap<BlockName, Vec<BlockName>> = HashMap::new();
        let is_staged = |block: &KnownBlock| matches!(block.place, BlockPlace::Staged(_));
        for (name, block) in state.blocks.iter().filter(|(_, block)| is_staged(block)) {
            if let Some(key) = block.chained.parent {
                let parent = BlockName { key, ..*name };
                children.entry(parent).or_default().push(*name);
            }
        }
        let mut count = 0;
        while let Some(name) = deleted.pop() {
            for child in children.remove(&name).unwrap_or_default() {
                self.delete(state, &child);
                count += 1;
                deleted.push(child);
            }
        }
        count
    }

    /// Remembers for a time that a bundle is absent.
    pub(super) fn is_absent(&self, bundle: BlockName, absent_for: Duration) {
        KnownBlocks::mark_absent(&mut self.lock(), bundle, absent_for);
    }

    fn mark_absent(state: &mut KnownState, bundle: BlockName, absent_for: Duration) {
        let now = Instant::now();
        if state.absent.len() >= REMEMBERED_MAX {
            state.absent.retain(|_, until| *until > now);
        }
        if state.absent.len() < REMEMBERED_MAX
            && let Some(until) = now.checked_add(absent_for)
        {
            state.absent.insert(bundle, until);
        }
    }

    /// Whether a bundle with these blocks needs a query to the store.
    pub(super) fn is_unknown(&self, bundle: &BlockName, keys: &[BlockKey]) -> bool {
        let mut state = self.lock();
        let now = Instant::now();
        if let Some(until) = state.absent.get(bundle) {
            if *until > now {
                return false;
            }
            state.absent.remove(bundle);
        }
        let is_known = |key: &BlockKey| {
            let name = BlockName {
                group: bundle.group,
                key: *key,
            };
            state.blocks.contains_key(&name) || state.removed.contains(&name)
        };
        !keys.iter().all(is_known)
    }

    /// Removes blocks for this cache. Returns how many it had.
    pub(super) fn remove(&self, group: GroupId, keys: &[BlockKey]) -> usize {
        let mut state = self.lock();
        let mut removed = 0;
        for &key in keys {
            let name = BlockName { group, key };
            if self.delete(&mut state, &name).is_some() {
                remember_removed(&mut state, name);
                removed += 1;
            }
        }
        state.stats.removed += removed as u64;
        removed
    }

    /// Removes up to `blocks` blocks for this cache, the least recently used leaves first.
    pub(super) fn evict(&self, blocks: usize) -> usize {
        let mut state = self.lock();
        let before: HashSet<BlockName> = state.blocks.keys().copied().collect();
        let evicted = self.evict_leaves(&mut state, blocks, |_| true);
        for name in before {
            if !state.blocks.contains_key(&name) {
                remember_removed(&mut state, name);
            }
        }
        state.stats.removed += evicted as u64;
        evicted
    }

    fn evict_leaves(
        &self,
        state: &mut KnownState,
        blocks: usize,
        may: impl Fn(&KnownBlock) -> bool,
    ) -> usize {
        let is_leaf = |state: &KnownState, name: &BlockName| !state.children.contains_key(name);
        let leaves = state.blocks.iter().filter(|(name, _)| is_leaf(state, name));
        let leaves = leaves.filter(|(_, block)| may(block));
        let mut leaves: BinaryHeap<Reverse<(u64, BlockName)>> = leaves
            .map(|(name, block)| Reverse((block.used, *name)))
            .collect();
        let mut evicted = 0;
        while evicted < blocks {
            let Some(Reverse((_, name))) = leaves.pop() else {
                break;
            };
            let Some(block) = self.delete(state, &name) else {
                continue;
            };
            evicted += 1;
            let Some(key) = block.chained.parent else {
                continue;
            };
            let parent = BlockName { key, ..name };
            if is_leaf(state, &parent)
                && let Some(block) = state.blocks.get(&parent).filter(|block| may(block))
            {
                leaves.push(Reverse((block.used, parent)));
            }
        }
        evicted
    }

    pub(super) fn stats(&self) -> TierStats {
        let state = self.lock();
        let mut stats = state.stats.clone();
        stats.present = state.blocks.len() as u64;
        stats
    }

    pub(super) fn list(&self, blocks: &mut Vec<StoredBlock>) {
        let state = self.lock();
        blocks.extend(state.blocks.values().map(|block| StoredBlock {
            tier: self.id,
            group: block.chained.name.group,
            key: block.chained.name.key,
            parent: block.chained.parent,
        }));
    }

    pub(super) fn check_integrity(&self) {
        let state = self.lock();
        let mut children: HashMap<BlockName, u32> = HashMap::new();
        for (name, block) in &state.blocks {
            assert_eq!(*name, block.chained.name, "the name of a known block");
            if let BlockPlace::Stored(bundle) = &block.place {
                assert!(
                    bundle.index_of(&name.key).is_some(),
                    "{name:?} in {bundle:?}"
                );
            }
            if let Some(key) = block.chained.parent {
                *children.entry(BlockName { key, ..*name }).or_default() += 1;
            }
        }
        assert_eq!(children, state.children, "children of known blocks");
        assert!(state.removed.len() <= REMEMBERED_MAX, "removed blocks");
    }
}

fn remember_removed(state: &mut KnownState, name: BlockName) {
    if state.removed.insert(name) {
        state.removed_order.push_back(name);
    }
    while state.removed_order.len() > REMEMBERED_MAX {
        if let Some(oldest) = state.removed_order.pop_front() {
            state.removed.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::{super::staged::StagingRoom, *};

    fn known_blocks(blocks_max: usize) -> KnownBlocks {
        let events = Arc::new(EventLog::new(NonZeroUsize::new(64).unwrap()).unwrap());
        KnownBlocks::new(TierId::SHARED, events, blocks_max)
    }

    /// A chain, and bytes for all of its blocks.
    fn chain<const N: usize>() -> ([ChainedBlock; N], Arc<StagedBytes>) {
        let key = |at: usize| BlockKey::from_bytes([u8::try_from(at).unwrap(); 16]);
        let group = GroupId(0);
        let block = |at: usize| ChainedBlock {
            name: BlockName {
                group,
                key: key(at),
            },
            parent: at.checked_sub(1).map(key),
            tenant: 0,
            position: u32::try_from(at).unwrap(),
        };
        let bytes = StagingRoom::new(1 << 20).copy(&key(0), 0, &[7; 64]);
        (std::array::from_fn(block), bytes.unwrap())
    }

    fn bundle(blocks: &[ChainedBlock]) -> Arc<KnownBundle> {
        Arc::new(KnownBundle {
            name: blocks.last().unwrap().name,
            keys: blocks.iter().map(|block| block.name.key).collect(),
            renewed: Mutex::default(),
        })
    }

    #[test]
    fn blocks_are_not_known_after_their_parent_is_lost() {
        let known = known_blocks(16);
        let (blocks, bytes) = chain::<6>();
        let staged = |range: std::ops::Range<usize>| -> Vec<(BlockName, Arc<StagedBytes>)> {
            let staged = |block: &ChainedBlock| (block.name, Arc::clone(&bytes));
            blocks[range].iter().map(staged).collect()
        };
        for block in &blocks {
            assert_eq!(known.add_staged(*block, &bytes), StagedAs::New);
        }
        // The last bundle is given up, and then the first one, which the others follow.
        assert_eq!(known.drop_staged(&staged(4..6), false), 2);
        assert_eq!(known.drop_staged(&staged(0..2), false), 0);
        assert_eq!(known.drop_staged(&staged(0..2), true), 4);
        assert_eq!(known.stats().present, 0);
        // A write that ends does not bring its bundle back without the one before it, a query does.
        let (first, second) = (bundle(&blocks[..2]), bundle(&blocks[2..4]));
        known.add_stored(&second, &blocks[2..4], false);
        assert_eq!(known.stats().present, 0);
        known.add_stored(&second, &blocks[2..4], true);
        known.add_stored(&first, &blocks[..2], false);
        assert_eq!(known.stats().present, 4);
        // A bundle that cannot be read takes the staged blocks after it along, and no stored ones.
        assert_eq!(known.add_staged(blocks[4], &bytes), StagedAs::New);
        known.drop_bundle(&second, Duration::ZERO, true);
        let stats = known.stats();
        assert_eq!((stats.present, stats.damaged), (2, 6));
        known.add_stored(&second, &blocks[2..4], false);
        known.drop_bundle(&first, Duration::ZERO, false);
        assert_eq!(known.stats().present, 2);
        known.check_integrity();
    }

    #[test]
    fn a_block_does_not_evict_its_parent() {
        let known = known_blocks(2);
        let (blocks, bytes) = chain::<2>();
        let mut other = blocks[0];
        other.name.key = BlockKey::from_bytes([9; 16]);
        known.add_stored(&bundle(&blocks[..1]), &blocks[..1], true);
        known.add_stored(&bundle(&[other]), &[other], true);
        // The parent is the block whose last use is longest ago.
        assert_eq!(known.add_staged(blocks[1], &bytes), StagedAs::New);
        assert!(known.has(&blocks[0].name) && !known.has(&other.name));
        known.check_integrity();
    }

    #[test]
    fn a_block_whose_parent_was_evicted_since_is_not_added() {
        let known = known_blocks(16);
        let ([first, second], bytes) = chain::<2>();
        assert_eq!(known.add_staged(first, &bytes), StagedAs::New);
        assert_eq!(known.evict(1), 1);
        assert_eq!(known.add_staged(second, &bytes), StagedAs::NoParent);
        assert!(!known.has(&second.name));
        assert_eq!(known.add_staged(first, &bytes), StagedAs::New);
        assert_eq!(known.add_staged(second, &bytes), StagedAs::New);
        assert_eq!(known.add_staged(second, &bytes), StagedAs::Present);
        // Now it is no leaf any more.
        assert_eq!(known.evict(1), 1);
        assert!(known.has(&first.name) && !known.has(&second.name));
    }
}
