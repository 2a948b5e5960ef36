//! Per-block data of the pool: the key, the state word, and the link of the index. A slot knows
//! neither the index nor the holders of its block.
//!
//! ```text
//! state word   63 … 36      35      34 … 32   31 … 0
//!              generation   parked  phase     references
//! ```
//!
//! The owner of a block in an exclusive phase (free, mutable, complete, evicted) changes it with
//! plain stores. A registered block is changed by compare-and-swap.

use super::sync::{AtomicU32, AtomicU64, Ordering};
use crate::{BlockId, BlockKey};
use std::sync::OnceLock;

/// No block; ends a list.
pub(super) const NONE: u32 = u32::MAX;

/// The phase of a block's life cycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BlockPhase {
    /// In the free list.
    Free,
    /// Its owner is filling it.
    Mutable,
    /// Full and with a key; lookups do not find it yet.
    Complete,
    /// Lookups find it; its reference count is the number of pins.
    Registered,
    /// Selected for eviction, about to leave the index.
    Evicting,
    /// Removed from the cache; the last unpin frees it.
    Withdrawn,
    /// Out of the index; its bytes are still intact.
    Evicted,
}

const PHASE_SHIFT: u32 = 32;
const REFERENCES_MASK: u64 = (1 << PHASE_SHIFT) - 1;
const PHASE_MASK: u64 = 7 << PHASE_SHIFT;
const PARKED: u64 = 1 << 35;
const GENERATION_SHIFT: u32 = 36;
const GENERATION_MASK: u64 = u64::MAX << GENERATION_SHIFT;

/// The state word of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BlockState(u64);

impl BlockState {
    pub(super) const FREE: BlockState = BlockState(0);

    pub(super) const fn phase(self) -> BlockPhase {
        match (self.0 & PHASE_MASK) >> PHASE_SHIFT {
            0 => BlockPhase::Free,
            1 => BlockPhase::Mutable,
            2 => BlockPhase::Complete,
            3 => BlockPhase::Registered,
            4 => BlockPhase::Evicting,
            5 => BlockPhase::Withdrawn,
            _ => BlockPhase::Evicted,
        }
    }

    pub(super) const fn is_registered(self) -> bool {
        self.0 & PHASE_MASK == (BlockPhase::Registered as u64) << PHASE_SHIFT
    }

    pub(super) const fn references(self) -> u64 {
        self.0 & REFERENCES_MASK
    }

    pub(super) const fn is_parked(self) -> bool {
        self.0 & PARKED != 0
    }

    /// Whether the last unpin has further work to do.
    pub(super) const fn needs_settling(self) -> bool {
        self.is_parked() || !self.is_registered()
    }

    pub(super) const fn with_phase(self, phase: BlockPhase) -> BlockState {
        BlockState((self.0 & !PHASE_MASK) | ((phase as u64) << PHASE_SHIFT))
    }

    pub(super) const fn with_references(self, references: u32) -> BlockState {
        BlockState((self.0 & !REFERENCES_MASK) | references as u64)
    }

    pub(super) const fn with_parked(self, parked: bool) -> BlockState {
        if parked {
            BlockState(self.0 | PARKED)
        } else {
            BlockState(self.0 & !PARKED)
        }
    }

    /// Adds a reference. The count stays below 2^32, as each reference is four bytes in a guard.
    pub(super) const fn pinned(self) -> BlockState {
        BlockState(self.0 + 1)
    }

    /// The state of the slot's next life, in a phase without references.
    pub(super) const fn next_generation(self, phase: BlockPhase) -> BlockState {
        let generation = self.0.wrapping_add(1 << GENERATION_SHIFT) & GENERATION_MASK;
        BlockState(generation | ((phase as u64) << PHASE_SHIFT))
    }
}

/// A key as two 64-bit words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct KeyWords {
    low: u64,
    high: u64,
}

impl KeyWords {
    pub(super) fn new(key: &BlockKey) -> KeyWords {
        let whole = u128::from_le_bytes(*key.as_bytes());
        let [low, high] = [whole & u128::from(u64::MAX), whole >> 64];
        KeyWords {
            low: u64::try_from(low).unwrap_or(0),
            high: u64::try_from(high).unwrap_or(0),
        }
    }

    pub(super) fn key(self) -> BlockKey {
        let whole = u128::from(self.low) | (u128::from(self.high) << 64);
        BlockKey::from_bytes(whole.to_le_bytes())
    }

    /// Compares both words without a branch.
    pub(super) const fn is(self, other: KeyWords) -> bool {
        (self.low ^ other.low) | (self.high ^ other.high) == 0
    }

    /// Mixes the key to 64 bits. An engine's keys need not be uniform, so every bit counts.
    pub(super) const fn mixed(self) -> u64 {
        const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
        let folded = self.low ^ self.high.rotate_left(29).wrapping_mul(ODD);
        (folded ^ (folded >> 32)).wrapping_mul(ODD)
    }
}

#[derive(Debug)]
struct AtomicKey {
    low: AtomicU64,
    high: AtomicU64,
}

impl AtomicKey {
    fn new() -> AtomicKey {
        AtomicKey {
            low: AtomicU64::new(0),
            high: AtomicU64::new(0),
        }
    }

    // Acquire and release: a reader that sees a key of a later life also sees that the earlier life
    // has ended, so its compare-and-swap of the state fails.
    fn load(&self) -> KeyWords {
        KeyWords {
            low: self.low.load(Ordering::Acquire),
            high: self.high.load(Ordering::Acquire),
        }
    }

    fn store(&self, key: KeyWords) {
        self.low.store(key.low, Ordering::Release);
        self.high.store(key.high, Ordering::Release);
    }
}

/// The fields that a lookup reads: half a cache line.
#[derive(Debug)]
#[repr(align(32))]
pub(super) struct BlockSlot {
    key: AtomicKey,
    state: AtomicU64,
    next: AtomicU32,
    share: AtomicU32,
}

impl BlockSlot {
    fn new() -> BlockSlot {
        BlockSlot {
            key: AtomicKey::new(),
            state: AtomicU64::new(BlockState::FREE.0),
            next: AtomicU32::new(NONE),
            share: AtomicU32::new(0),
        }
    }

    pub(super) fn key(&self) -> KeyWords {
        self.key.load()
    }

    pub(super) fn state(&self) -> BlockState {
        BlockState(self.state.load(Ordering::Acquire))
    }

    /// Only for the owner of a block in an exclusive phase.
    pub(super) fn set_state(&self, state: BlockState) {
        self.state.store(state.0, Ordering::Release);
    }

    /// Changes the state if it is still `current`, else returns the actual state.
    pub(super) fn exchange(&self, current: BlockState, new: BlockState) -> Result<(), BlockState> {
        let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
        match self
            .state
            .compare_exchange(current.0, new.0, success, failure)
        {
            Ok(_) => Ok(()),
            Err(actual) => Err(BlockState(actual)),
        }
    }

    /// Removes a reference. Returns the state before.
    pub(super) fn unpin(&self) -> BlockState {
        BlockState(self.state.fetch_sub(1, Ordering::AcqRel))
    }

    /// Adds a reference if the block is registered under this key.
    pub(super) fn pin(&self, key: KeyWords) -> PinAttempt {
        let mut state = self.state();
        loop {
            if !state.is_registered() {
                return PinAttempt::NotRegistered;
            }
            match self.exchange(state, state.pinned()) {
                Ok(()) => break,
                Err(actual) => state = actual,
            }
        }
        if self.key() == key {
            PinAttempt::Pinned
        } else {
            PinAttempt::AnotherKey
        }
    }

    pub(super) fn next(&self) -> u32 {
        self.next.load(Ordering::Acquire)
    }

    pub(super) fn set_next(&self, next: u32) {
        self.next.store(next, Ordering::Release);
    }

    /// The index of the share that the block is charged to.
    pub(super) fn share(&self) -> usize {
        (self.share.load(Ordering::Relaxed) & SHARE_MASK) as usize
    }

    fn has_parent(&self) -> bool {
        self.share.load(Ordering::Relaxed) & HAS_PARENT != 0
    }

    /// Only for the owner of a block in an exclusive phase. Clears the parent flag.
    pub(super) fn set_share(&self, share: u32) {
        self.share.store(share & SHARE_MASK, Ordering::Relaxed);
    }

    fn set_has_parent(&self, has_parent: bool) {
        let share = self.share.load(Ordering::Relaxed) & SHARE_MASK;
        let flag = if has_parent { HAS_PARENT } else { 0 };
        self.share.store(share | flag, Ordering::Relaxed);
    }
}

const HAS_PARENT: u32 = 1 << 31;
const SHARE_MASK: u32 = HAS_PARENT - 1;

/// The outcome of an attempt to pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PinAttempt {
    Pinned,
    /// The block is not registered; its state is unchanged.
    NotRegistered,
    /// The slot now has another key and was pinned; the caller must unpin it.
    AnotherKey,
}

/// The slots of all blocks of a pool.
#[derive(Debug)]
pub(super) struct BlockSlots {
    slots: Box<[BlockSlot]>,
    /// Keys of parents, [`PARENTS`] blocks a piece. A piece is allocated for its first parent, since
    /// blocks of many pools have none.
    parents: Box<[OnceLock<Box<[AtomicKey]>>]>,
}

/// Allocates a piece of parents' keys.
#[cold]
fn first_parent(piece: &OnceLock<Box<[AtomicKey]>>) -> Option<&[AtomicKey]> {
    let new = (0..PARENTS).map(|_| AtomicKey::new()).collect();
    // Another thread may have been faster; its piece is as good.
    drop(piece.set(new));
    piece.get().map(Box::as_ref)
}

/// Blocks of a piece of parents' keys.
const PARENTS: usize = 256;

impl BlockSlots {
    pub(super) fn new(blocks: usize) -> BlockSlots {
        BlockSlots {
            slots: (0..blocks).map(|_| BlockSlot::new()).collect(),
            parents: (0..blocks.div_ceil(PARENTS))
                .map(|_| OnceLock::new())
                .collect(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// # Panics
    /// If the id is not of this pool. Guards hold only ids of their own pool.
    #[expect(
        clippy::indexing_slicing,
        reason = "ids come from the pool's own lists, which hold ids below the number of slots"
    )]
    pub(super) fn get(&self, id: u32) -> &BlockSlot {
        &self.slots[id as usize]
    }

    /// The slot with this id, or the last slot if the id is out of range.
    #[expect(
        clippy::indexing_slicing,
        reason = "a pool without blocks is refused, so there is a last slot"
    )]
    pub(super) fn get_or_last(&self, id: u32) -> &BlockSlot {
        let slots = &*self.slots;
        &slots[(id as usize).min(slots.len() - 1)]
    }

    pub(super) fn of(&self, id: BlockId) -> &BlockSlot {
        self.get(id.0)
    }

    /// The neighbour of a slot that has this key. Blocks of a chain that were allocated together are
    /// neighbours.
    pub(super) fn beside(&self, id: u32, key: KeyWords) -> Option<u32> {
        let mut neighbours = [id.wrapping_sub(1), id.wrapping_add(1)].into_iter();
        neighbours.find(|&near| self.has(near, key))
    }

    /// Whether there is a slot with this id and this key.
    pub(super) fn has(&self, id: u32, key: KeyWords) -> bool {
        let slot = self.slots.get(id as usize);
        slot.is_some_and(|slot| slot.key().is(key))
    }

    /// Stores the key and the parent of a block. Only for the owner of a block in an exclusive
    /// phase.
    pub(super) fn describe(&self, id: BlockId, key: &BlockKey, parent: Option<&BlockKey>) {
        let slot = self.of(id);
        slot.key.store(KeyWords::new(key));
        slot.set_has_parent(parent.is_some());
        if let Some(parent) = parent {
            let piece = self.parents.get(id.index() / PARENTS);
            let places = piece.and_then(|piece| match piece.get() {
                Some(places) => Some(&**places),
                None => first_parent(piece),
            });
            if let Some(place) = places.and_then(|places| places.get(id.index() % PARENTS)) {
                place.store(KeyWords::new(parent));
            }
        }
    }

    /// The key of the block's parent.
    pub(super) fn parent(&self, id: BlockId) -> Option<BlockKey> {
        if !self.of(id).has_parent() {
            return None;
        }
        let piece = self.parents.get(id.index() / PARENTS)?;
        let place = piece.get()?.get(id.index() % PARENTS)?;
        Some(place.load().key())
    }
}
