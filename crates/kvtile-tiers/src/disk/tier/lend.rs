//! Groups that use more take room from groups that use less.
//!
//! ```text
//! a group without room   takes spare bytes of the folder,
//!   below its share      then room of the group that exceeds its own share the most,
//!   else                 then room of the group with the most idle bytes: places without a block, and
//!                        blocks that no lookup found while the folder wrote all of its bytes anew
//! and otherwise evicts blocks of its own
//! ```
//!
//! The giving group evicts what its policy selects. It gives erased places only, so a crash at any
//! moment leaves blocks that fit the capacity.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU32, AtomicU64, Ordering},
};

use kvtile_blocks::BlockId;
use kvtile_layout::broken;
use parking_lot::Mutex;

use super::{DiskTierShared, group::DiskGroup};

/// Blocks are idle after this many turns without a use. In that time the folder has written as many
/// bytes as all of its groups hold.
const IDLE_TURNS: u32 = 16;

/// A group that needs room takes at least one part in this many of its own, because giving room
/// costs a sync.
const LEAST_PART: u32 = 64;

/// A number for each slot, by pieces. A piece in which every number has been 0 is not allocated.
#[derive(Clone)]
pub(super) struct SlotNumbers(Arc<[OnceLock<SlotPiece>]>);

/// Slots of a piece.
const PIECE: usize = 256;

type SlotPiece = Box<[AtomicU32; PIECE]>;

impl SlotNumbers {
    pub(super) fn new(slots: u32) -> SlotNumbers {
        let pieces = (slots as usize).div_ceil(PIECE);
        SlotNumbers((0..pieces).map(|_| OnceLock::new()).collect())
    }

    fn piece(&self, slot: BlockId) -> &OnceLock<SlotPiece> {
        let Some(piece) = self.0.get(slot.index() / PIECE) else {
            broken(format_args!("slot {} of {}", slot.0, self.0.len() * PIECE))
        };
        piece
    }

    pub(super) fn get(&self, slot: BlockId) -> u32 {
        let piece = self.piece(slot).get();
        let number = piece.and_then(|piece| piece.get(slot.index() % PIECE));
        number.map_or(0, |number| number.load(Ordering::Relaxed))
    }

    pub(super) fn set(&self, slot: BlockId, number: u32) {
        let piece = self.piece(slot);
        if number == 0 && piece.get().is_none() {
            return;
        }
        let new = || Box::new([const { AtomicU32::new(0) }; PIECE]);
        if let Some(place) = piece.get_or_init(new).get(slot.index() % PIECE) {
            place.store(number, Ordering::Relaxed);
        }
    }

    /// How many numbers are not 0 and at most `most`.
    fn count_to(&self, most: u32) -> u32 {
        let pieces = self.0.iter().filter_map(OnceLock::get);
        let numbers = pieces.flat_map(|piece| piece.iter());
        let old = |number: &&AtomicU32| (1..=most).contains(&number.load(Ordering::Relaxed));
        u32::try_from(numbers.filter(old).count()).unwrap_or(u32::MAX)
    }
}

/// The turns of a folder: one for each part of its bytes that was written.
#[derive(Debug)]
pub(super) struct FolderTurns {
    written_bytes: AtomicU64,
    turn_bytes: u64,
}

impl FolderTurns {
    pub(super) fn new(data_bytes: u64) -> FolderTurns {
        FolderTurns {
            written_bytes: AtomicU64::new(0),
            turn_bytes: (data_bytes / u64::from(IDLE_TURNS)).max(1),
        }
    }

    /// The number of the turn, from 1.
    pub(super) fn now(&self) -> u32 {
        let turn = self.written_bytes.load(Ordering::Relaxed) / self.turn_bytes;
        u32::try_from(turn).unwrap_or(u32::MAX - 1) + 1
    }

    pub(super) fn written(&self, bytes: u64) {
        self.written_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// What the groups of a folder share when they lend room to each other.
#[derive(Debug)]
pub(super) struct DiskLending {
    pub(super) turns: Arc<FolderTurns>,
    /// Held while room moves between groups.
    moving: Mutex<()>,
}

impl DiskLending {
    pub(super) fn new(turns: Arc<FolderTurns>) -> DiskLending {
        DiskLending {
            turns,
            moving: Mutex::new(()),
        }
    }
}

impl DiskTierShared {
    /// Moves room to a group until it has free places for `wanted` blocks, or no other group gives
    /// any.
    pub(super) fn move_room(&self, to: &DiskGroup, wanted: u32) {
        let Some(lending) = &self.lending else {
            return;
        };
        let free = to.store.room().saturating_sub(to.store.used());
        // The pool has no more blocks than slots.
        let most = to.store.slots().saturating_sub(to.store.room());
        let missing = wanted.saturating_sub(free).min(most);
        if missing == 0 {
            return;
        }
        let _moving = lending.moving.lock();
        let mut missing = missing.saturating_sub(to.store.grow(missing));
        let mut dry = vec![false; self.groups.len()];
        while missing > 0 {
            let Some((at, bytes)) = self.giver(to, missing, (lending, &dry)) else {
                return;
            };
            let Some(from) = self.groups.get(at) else {
                broken(format_args!("group {at} of {}", self.groups.len()))
            };
            let given = from.give(bytes.div_ceil(from.slot_bytes()));
            let grown = to.store.grow(missing);
            missing = missing.saturating_sub(grown);
            if let Some(dry) = dry.get_mut(at) {
                *dry = given == 0 || grown == 0;
            }
        }
    }

    /// The group that gives room to `to`, and how many bytes.
    fn giver(
        &self,
        to: &DiskGroup,
        missing: u32,
        (lending, dry): (&DiskLending, &[bool]),
    ) -> Option<(usize, u64)> {
        let slot_bytes = to.slot_bytes();
        let least = to.store.room() / LEAST_PART;
        let wanted = u64::from(missing.max(least)).saturating_mul(slot_bytes);
        let needed = wanted.saturating_sub(to.store.spare_bytes());
        let others = || {
            let groups = self.groups.iter().enumerate().zip(dry);
            let others = groups.filter(|((_, group), dry)| group.id != to.id && !**dry);
            others.map(|(group, _)| group)
        };
        let most = |bytes_of: &dyn Fn(&DiskGroup) -> u64| {
            let each = others().map(|(at, group)| (at, bytes_of(group)));
            each.filter(|(_, bytes)| *bytes > 0)
                .max_by_key(|(_, bytes)| *bytes)
        };
        let (owned, share) = to.store.owned_and_share_bytes();
        let claim = share.saturating_sub(owned).min(needed);
        if claim >= slot_bytes {
            let excess = |group: &DiskGroup| {
                let (owned, share) = group.store.owned_and_share_bytes();
                owned.saturating_sub(share)
            };
            if let Some((at, excess)) = most(&excess) {
                return Some((at, excess.min(claim)));
            }
        }
        let now = lending.turns.now();
        let idle = |group: &DiskGroup| group.idle_bytes(now);
        let (at, idle) = most(&idle)?;
        Some((at, idle.min(needed)))
    }
}

impl DiskGroup {
    fn slot_bytes(&self) -> u64 {
        self.store.group().slot_bytes()
    }

    /// Bytes of the places that hold no block, and of the blocks that were not used for long.
    fn idle_bytes(&self, now: u32) -> u64 {
        let empty = self.store.room().saturating_sub(self.store.used());
        let idle = match now.checked_sub(IDLE_TURNS) {
            None | Some(0) => 0,
            Some(most) => self.uses.count_to(most),
        };
        (u64::from(empty) + u64::from(idle)).saturating_mul(self.slot_bytes())
    }

    /// Gives places to other groups, and evicts the blocks for which no room is left. Returns how many
    /// places; none while a batch is being written to this group.
    fn give(&self, places: u64) -> u32 {
        let Some(_writing) = self.writing.try_lock() else {
            return 0;
        };
        let places = u32::try_from(places).unwrap_or(u32::MAX);
        let left = self.store.room_without(places);
        let over = self.store.used().saturating_sub(left);
        if over > 0 {
            self.evict_for_room(over as usize);
        }
        self.store.shrink(places)
    }

    /// Evicts blocks to make room for blocks of this group or of another one.
    pub(super) fn evict_for_room(&self, blocks: usize) {
        let evicted = self.evict(blocks, self.tick()) as u64;
        self.made_room.fetch_add(evicted, Ordering::Relaxed);
    }
}
