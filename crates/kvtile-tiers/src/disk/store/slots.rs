//! The entries of the slot table, 16 bytes and 8 for each piece of a block. They are allocated for
//! the slots up to the last one that was ever written, since a folder may have far more slots than
//! blocks.
//!
//! ```text
//! place     30 bits   the place in the data file; all bits set in an empty slot
//! state      2 bits
//! write     32 bits   the number of the write, modulo 2^32
//! position  32 bits   blocks before it in its chain
//! print     32 bits   a hash of the key
//! ```
//!
//! The pool has the keys; the table only has to notice that a slot holds another block than the
//! caller expects. Two keys with one print are harmless: checksums cover the key.

use kvtile_blocks::BlockKey;
use kvtile_layout::broken;

use super::table::SlotState;

/// The place of an empty slot: none.
pub(super) const NOWHERE: u32 = u32::MAX >> STATE_BITS;

const STATE_BITS: u32 = 2;

/// The fewest slots by which the table grows.
const STEP_MIN: usize = 512;

/// A hash of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SlotPrint(u32);

impl SlotPrint {
    /// The print of a key, which may differ from others in any of its bits.
    pub(super) fn of(key: &BlockKey) -> SlotPrint {
        const ODD: [u64; 2] = [0x9e37_79b9_7f4a_7c15, 0xd6e8_feb8_6659_fd93];
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *key.as_bytes();
        let low = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        let high = u64::from_le_bytes([i, j, k, l, m, n, o, p]);
        let folded = low.wrapping_mul(ODD[0]) ^ high.rotate_left(29).wrapping_mul(ODD[1]);
        let mixed = (folded ^ folded >> 32).wrapping_mul(ODD[0]);
        let [.., a, b, c, d] = mixed.to_le_bytes();
        SlotPrint(u32::from_le_bytes([a, b, c, d]))
    }
}

/// The table's entry for a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SlotEntry {
    pub(super) print: SlotPrint,
    /// The number of the write that filled the slot.
    pub(super) write: u32,
    pub(super) position: u32,
    pub(super) place: u32,
    pub(super) state: SlotState,
}

/// The entry of an empty slot.
pub(super) const EMPTY: SlotEntry = SlotEntry {
    print: SlotPrint(0),
    write: 0,
    position: 0,
    place: NOWHERE,
    state: SlotState::Empty,
};

#[derive(Clone, Copy, Debug)]
struct PackedSlot {
    standing: u32,
    write: u32,
    position: u32,
    print: SlotPrint,
}

impl PackedSlot {
    fn of(entry: &SlotEntry) -> PackedSlot {
        assert!(entry.place <= NOWHERE, "place {}", entry.place);
        let state = match entry.state {
            SlotState::Empty => 0,
            SlotState::Writing => 1,
            SlotState::Written => 2,
            SlotState::Durable => 3,
        };
        PackedSlot {
            standing: entry.place << STATE_BITS | state,
            write: entry.write,
            position: entry.position,
            print: entry.print,
        }
    }

    fn entry(self) -> SlotEntry {
        SlotEntry {
            print: self.print,
            write: self.write,
            position: self.position,
            place: self.standing >> STATE_BITS,
            state: match self.standing & 3 {
                0 => SlotState::Empty,
                1 => SlotState::Writing,
                2 => SlotState::Written,
                _ => SlotState::Durable,
            },
        }
    }
}

/// The entries of all slots, and the checksums of their blocks.
#[derive(Debug)]
pub(super) struct SlotEntries {
    slots: u32,
    /// Pieces per block.
    pieces: usize,
    packed: Vec<PackedSlot>,
    /// The checksums of the pieces of every slot, in the order of the slots.
    sums: Vec<u64>,
}

impl SlotEntries {
    /// Empty slots.
    pub(super) fn new(slots: u32, pieces: usize) -> SlotEntries {
        SlotEntries {
            slots,
            pieces,
            packed: Vec::new(),
            sums: Vec::new(),
        }
    }

    pub(super) fn slots(&self) -> u32 {
        self.slots
    }

    /// The entry of a slot; `None` if there is no such slot.
    pub(super) fn get(&self, slot: u32) -> Option<SlotEntry> {
        match self.packed.get(slot as usize) {
            Some(packed) => Some(packed.entry()),
            None => (slot < self.slots).then_some(EMPTY),
        }
    }

    /// Replaces the entry of a slot.
    pub(super) fn set(&mut self, slot: u32, entry: &SlotEntry) {
        assert!(slot < self.slots, "slot {slot} of {}", self.slots);
        self.grow(slot as usize + 1);
        match self.packed.get_mut(slot as usize) {
            Some(packed) => *packed = PackedSlot::of(entry),
            None => broken(format_args!("no entry of slot {slot}")),
        }
    }

    /// Changes the state of a slot that was set.
    pub(super) fn set_state(&mut self, slot: u32, state: SlotState) {
        match self.get(slot) {
            Some(entry) => self.set(slot, &SlotEntry { state, ..entry }),
            None => broken(format_args!("the state of slot {slot}")),
        }
    }

    /// The checksums of the block in `slot`, in the order of its pieces.
    pub(super) fn sums(&self, slot: u32) -> &[u64] {
        let start = slot as usize * self.pieces;
        match self.sums.get(start..start + self.pieces) {
            Some(sums) => sums,
            None => broken(format_args!("the checksums of slot {slot}")),
        }
    }

    /// Sets the checksums of the block in `slot`, whose entry was set.
    pub(super) fn set_sums(&mut self, slot: u32, sums: &[u64]) {
        let start = slot as usize * self.pieces;
        match self.sums.get_mut(start..start + self.pieces) {
            Some(kept) => kept.copy_from_slice(sums),
            None => broken(format_args!("the checksums of slot {slot}")),
        }
    }

    /// The entries of all slots that were ever set.
    pub(super) fn iter(&self) -> impl Iterator<Item = SlotEntry> + '_ {
        self.packed.iter().map(|packed| packed.entry())
    }

    /// Makes entries for at least `len` slots. Growth by an eighth wastes little of a full table.
    fn grow(&mut self, len: usize) {
        if len <= self.packed.len() {
            return;
        }
        let room = self.packed.len() + (self.packed.len() / 8).max(STEP_MIN);
        let room = room.min(self.slots as usize).max(len);
        self.packed.reserve_exact(room - self.packed.len());
        self.packed.resize(room, PackedSlot::of(&EMPTY));
        let sums = room * self.pieces;
        self.sums.reserve_exact(sums - self.sums.len());
        self.sums.resize(sums, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_packed_without_loss_and_slots_are_empty_until_they_are_set() {
        let mut slots = SlotEntries::new(700, 2);
        assert_eq!((slots.get(699), slots.get(700)), (Some(EMPTY), None));
        assert_eq!(slots.packed.capacity(), 0);
        let key = BlockKey::from_bytes([7; 16]);
        for (slot, state) in [
            (3, SlotState::Writing),
            (699, SlotState::Written),
            (4, SlotState::Durable),
            (5, SlotState::Empty),
        ] {
            let entry = SlotEntry {
                print: SlotPrint::of(&key),
                write: u32::MAX - slot,
                position: u32::MAX,
                place: NOWHERE - slot,
                state,
            };
            slots.set(slot, &entry);
            slots.set_sums(slot, &[u64::from(slot), u64::MAX]);
            assert_eq!(slots.get(slot), Some(entry));
        }
        assert_eq!(slots.sums(699), [699, u64::MAX]);
        assert_eq!((slots.get(2), slots.get(6)), (Some(EMPTY), Some(EMPTY)));
        assert_eq!(
            (slots.packed.capacity(), slots.sums.capacity()),
            (700, 1_400)
        );
    }

    #[test]
    fn prints_differ_where_keys_differ_in_either_half() {
        let shapes: [fn(u128) -> u128; 3] = [
            |number| number,
            |number| number << 64,
            |number| number << 64 | number,
        ];
        let keys = shapes.iter().flat_map(|shape| (1..20_000_u128).map(shape));
        let prints = keys.map(|key| SlotPrint::of(&BlockKey::from_bytes(key.to_le_bytes())).0);
        let all: std::collections::HashSet<u32> = prints.collect();
        // Of 60,000 numbers of 32 bits, 0.4 are equal to another one.
        let count = 3 * 19_999;
        assert!(all.len() + 10 > count, "{} of {count}", all.len());
    }
}
