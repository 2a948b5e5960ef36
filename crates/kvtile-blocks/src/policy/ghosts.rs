//! Who has left: the keys of blocks that were evicted, each with a few words about it, in the order
//! in which they left, at most a given number of them.
//!
//! A key is remembered by 64 of its bits. Two keys that share them are taken for one; that falsifies
//! a statistic, never a block.

use super::{
    column::{Column, NONE},
    links::{Links, List},
};
use crate::BlockKey;

#[derive(Clone, Copy, Debug)]
struct Ghost<T> {
    print: u64,
    value: T,
}

/// The blocks that left last.
#[derive(Clone, Debug)]
pub(super) struct Ghosts<T> {
    /// Grows to the number of ghosts, and no further.
    ghosts: Column<Ghost<T>>,
    links: Links,
    order: List,
    /// Entries of `ghosts` that nobody uses.
    free: Vec<u32>,
    /// An open-addressed table of entries of `ghosts`, at most half full.
    table: Column<u32>,
    mask: u64,
}

impl<T: Copy> Ghosts<T> {
    /// Nobody has left yet.
    pub(super) fn new() -> Ghosts<T> {
        Ghosts {
            ghosts: Column::empty(),
            links: Links::new(0),
            order: List::new(),
            free: Vec::new(),
            table: Column::new(16, NONE),
            mask: 15,
        }
    }

    /// How many are remembered.
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    /// Remembers one more.
    pub(super) fn push(&mut self, key: &BlockKey, value: T) {
        let ghost = Ghost {
            print: print(key),
            value,
        };
        let entry = match self.free.pop() {
            Some(entry) => {
                self.ghosts[entry] = ghost;
                entry
            }
            None => {
                self.links.grow();
                self.ghosts.push(ghost)
            }
        };
        self.links.push(&mut self.order, entry);
        if self.order.len() * 2 > self.table.len() {
            self.grow();
        } else {
            self.enter(entry);
        }
    }

    /// Forgets a key; what was known about it.
    pub(super) fn take(&mut self, key: &BlockKey) -> Option<T> {
        let print = print(key);
        let mut slot = print & self.mask;
        loop {
            match self.table[index(slot)] {
                NONE => return None,
                entry if self.ghosts[entry].print == print => {
                    return Some(self.forget(slot, entry));
                }
                _ => slot = (slot + 1) & self.mask,
            }
        }
    }

    /// Forgets the one who left first; what was known about it.
    pub(super) fn pop(&mut self) -> Option<T> {
        let entry = self.order.oldest()?;
        let mut slot = self.ghosts[entry].print & self.mask;
        while self.table[index(slot)] != entry {
            slot = (slot + 1) & self.mask;
        }
        Some(self.forget(slot, entry))
    }

    /// What is known about those who left, the first first.
    pub(super) fn iter(&self) -> impl Iterator<Item = T> + '_ {
        let entries = self.links.iter(&self.order);
        entries.map(|entry| self.ghosts[entry].value)
    }

    fn forget(&mut self, slot: u64, entry: u32) -> T {
        self.links.remove(&mut self.order, entry);
        self.free.push(entry);
        self.close(slot);
        self.ghosts[entry].value
    }

    /// Empties a slot and moves up who would not be found behind it.
    fn close(&mut self, slot: u64) {
        let mut hole = slot;
        let mut at = slot;
        loop {
            at = (at + 1) & self.mask;
            let entry = self.table[index(at)];
            if entry == NONE {
                break;
            }
            let home = self.ghosts[entry].print & self.mask;
            let from_home = at.wrapping_sub(home) & self.mask;
            if from_home >= (at.wrapping_sub(hole) & self.mask) {
                self.table[index(hole)] = entry;
                hole = at;
            }
        }
        self.table[index(hole)] = NONE;
    }

    fn enter(&mut self, entry: u32) {
        let mut slot = self.ghosts[entry].print & self.mask;
        while self.table[index(slot)] != NONE {
            slot = (slot + 1) & self.mask;
        }
        self.table[index(slot)] = entry;
    }

    fn grow(&mut self) {
        let slots = self.table.len() * 2;
        self.table = Column::new(slots, NONE);
        self.mask = self.mask * 2 + 1;
        let entries: Vec<u32> = self.links.iter(&self.order).collect();
        for entry in entries {
            self.enter(entry);
        }
    }

    /// Asserts what must hold between the parts.
    pub(super) fn check(&self) {
        self.links.check(&self.order);
        assert_eq!(self.order.len() + self.free.len(), self.ghosts.len());
        let entered = self.table.iter().filter(|&&entry| entry != NONE).count();
        assert_eq!(entered, self.order.len(), "ghosts in the table");
        for entry in self.links.iter(&self.order) {
            let mut slot = self.ghosts[entry].print & self.mask;
            while self.table[index(slot)] != entry {
                assert!(self.table[index(slot)] != NONE, "ghost {entry} is lost");
                slot = (slot + 1) & self.mask;
            }
        }
    }
}

/// 64 bits of a key, mixed: keys that somebody else made may differ in any of their bits.
fn print(key: &BlockKey) -> u64 {
    let bits = u128::from_le_bytes(*key.as_bytes());
    let mixed = bits.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
    let folded = (mixed >> 64) ^ mixed ^ (bits >> 64);
    let low = u64::try_from(folded & u128::from(u64::MAX)).unwrap_or_default();
    let product = u128::from(low) * 0xd6e8_feb8_6659_fd93;
    let folded = (product >> 64) ^ product;
    u64::try_from(folded & u128::from(u64::MAX)).unwrap_or_default()
}

/// A slot of the table as an index: the mask keeps it far below `u32::MAX`.
fn index(slot: u64) -> u32 {
    u32::try_from(slot).unwrap_or(NONE)
}
