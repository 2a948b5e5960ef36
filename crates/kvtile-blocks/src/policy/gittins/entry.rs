//! The entry of a run: 20 bytes, since there may be as many runs as blocks. A run is either among
//! the evictable leaves or has child runs, never both, so both share two words:
//!
//! ```text
//! touched   48 bits   the clock at the last use
//! class      8 bits
//! flags      8 bits   listed, use count
//! tail      32 bits   the last block; NONE in a free entry
//! first     32 bits   a child run; older leaves while listed; the next entry while free
//! second    32 bits   the number of child runs; newer leaves while listed
//! ```

use std::ops::{Index, IndexMut};

use super::class::BlockClass;
use crate::{grow::reserve, policy::column::NONE};

/// No link.
pub(super) const NO_LINK: u32 = NONE;

const LISTED: u8 = 0x80;

/// The upper bits of a clock, beyond which it stands still: a million references a second take
/// nine years to reach it.
const CLOCK_MAX: u64 = (1 << 48) - 1;

/// A run.
#[derive(Clone, Copy, Debug)]
pub(super) struct RunEntry {
    touched_low: u32,
    touched_high: u16,
    /// The class of its blocks.
    pub(super) class: BlockClass,
    flags: u8,
    /// Its last block.
    pub(super) tail: u32,
    first: u32,
    second: u32,
}

impl RunEntry {
    /// A run with one block and without child runs, not among the leaves.
    pub(super) fn new(block: u32, clock: u64) -> RunEntry {
        let mut entry = RunEntry {
            touched_low: 0,
            touched_high: 0,
            class: BlockClass::default(),
            flags: 0,
            tail: block,
            first: NO_LINK,
            second: 0,
        };
        entry.set_touched(clock);
        entry
    }

    /// The clock at the last use.
    #[inline]
    pub(super) fn touched(&self) -> u64 {
        u64::from(self.touched_high) << u32::BITS | u64::from(self.touched_low)
    }

    pub(super) fn set_touched(&mut self, clock: u64) {
        let [a, b, c, d, e, f, ..] = clock.min(CLOCK_MAX).to_le_bytes();
        self.touched_low = u32::from_le_bytes([a, b, c, d]);
        self.touched_high = u16::from_le_bytes([e, f]);
    }

    /// The use count.
    pub(super) fn count(&self) -> u8 {
        self.flags & !LISTED
    }

    pub(super) fn set_count(&mut self, count: u8) {
        assert!(count < LISTED, "a use count of {count}");
        self.flags = self.flags & LISTED | count;
    }

    /// Whether it is among the evictable leaves.
    #[inline]
    pub(super) fn is_listed(&self) -> bool {
        self.flags & LISTED != 0
    }

    /// The number of child runs.
    #[inline]
    pub(super) fn children(&self) -> u32 {
        if self.is_listed() { 0 } else { self.second }
    }

    /// One of the child runs, or none.
    pub(super) fn first_child(&self) -> u32 {
        match self.children() {
            0 => NO_LINK,
            _ => self.first,
        }
    }

    /// Sets the number of child runs, and one of them.
    pub(super) fn set_children(&mut self, first: u32, count: u32) {
        assert!(!self.is_listed(), "a leaf has no child runs");
        (self.first, self.second) = (first, count);
    }

    /// The next free entry.
    pub(super) fn next_free(&self) -> u32 {
        self.first
    }

    /// The leaves below this one in its order: the older and the newer ones.
    #[inline]
    pub(super) fn leaves(&self) -> (u32, u32) {
        (self.first, self.second)
    }

    /// Sets the leaves below this one; it is among the leaves from now on.
    pub(super) fn set_leaves(&mut self, older: u32, newer: u32) {
        self.flags |= LISTED;
        (self.first, self.second) = (older, newer);
    }

    pub(super) fn set_older(&mut self, older: u32) {
        self.first = older;
    }

    pub(super) fn set_newer(&mut self, newer: u32) {
        self.second = newer;
    }

    /// Takes it from the leaves; it has no child runs.
    pub(super) fn unlist(&mut self) {
        self.flags &= !LISTED;
        (self.first, self.second) = (NO_LINK, 0);
    }
}

/// The entries, as many as there were runs at a time. An unknown index is a broken invariant and
/// panics.
#[derive(Clone, Debug)]
pub(super) struct RunEntries {
    entries: Vec<RunEntry>,
    most: usize,
}

impl RunEntries {
    /// No entries, and never more than `most`.
    pub(super) fn new(most: usize) -> RunEntries {
        RunEntries {
            entries: Vec::new(),
            most,
        }
    }

    /// Appends an entry. Returns its index.
    pub(super) fn push(&mut self, entry: RunEntry) -> u32 {
        let index = u32::try_from(self.entries.len()).unwrap_or(NONE);
        assert!(index != NONE, "more than u32::MAX - 1 runs");
        reserve(&mut self.entries, (index as usize + 1, self.most));
        self.entries.push(entry);
        index
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn iter(&self) -> std::slice::Iter<'_, RunEntry> {
        self.entries.iter()
    }
}

impl Index<u32> for RunEntries {
    type Output = RunEntry;

    #[expect(
        clippy::indexing_slicing,
        reason = "an unknown run is a broken invariant"
    )]
    #[inline]
    fn index(&self, index: u32) -> &RunEntry {
        &self.entries[index as usize]
    }
}

impl IndexMut<u32> for RunEntries {
    #[expect(
        clippy::indexing_slicing,
        reason = "an unknown run is a broken invariant"
    )]
    #[inline]
    fn index_mut(&mut self, index: u32) -> &mut RunEntry {
        &mut self.entries[index as usize]
    }
}
