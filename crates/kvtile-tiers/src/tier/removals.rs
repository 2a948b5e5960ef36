//! Removals during writes: a block that is removed while its write is in flight must not become
//! findable when the write ends.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use parking_lot::{Mutex, MutexGuard};

use super::BlockName;

/// The removals of blocks whose writes may be in flight.
///
/// A write takes a [`RemovalTicket`] when it begins, and asks it under its lock before it makes a
/// block findable. A removal is recorded here first, and then removes the blocks that are findable.
/// So each block of a write that began before the removal is removed by one of the two.
#[derive(Debug, Default)]
pub struct Removals {
    state: Mutex<RemovalState>,
}

#[derive(Debug, Default)]
struct RemovalState {
    /// The number of removals so far.
    now: u64,
    /// The last removal of each block, if a write that began before it is in flight.
    blocks: HashMap<BlockName, u64>,
    /// The last removal of all blocks.
    all: u64,
    /// The number of writes in flight that began at each number of removals.
    writes: BTreeMap<u64, usize>,
}

/// A write in flight, until it is dropped.
#[derive(Debug)]
pub struct RemovalTicket {
    removals: Arc<Removals>,
    began: u64,
}

/// The lock of a [`Removals`]. No removal is recorded while it lives.
#[derive(Debug)]
pub struct RemovalGuard<'a> {
    state: MutexGuard<'a, RemovalState>,
    began: u64,
}

impl Removals {
    /// Begins a write.
    #[must_use]
    pub fn begin(self: &Arc<Self>) -> RemovalTicket {
        let mut state = self.state.lock();
        let began = state.now;
        *state.writes.entry(began).or_default() += 1;
        drop(state);
        RemovalTicket {
            removals: Arc::clone(self),
            began,
        }
    }

    /// Records the removal of blocks.
    pub fn remove(&self, blocks: impl IntoIterator<Item = BlockName>) {
        let mut state = self.state.lock();
        state.now += 1;
        if !state.writes.is_empty() {
            let now = state.now;
            state
                .blocks
                .extend(blocks.into_iter().map(|name| (name, now)));
        }
    }

    /// Records the removal of all blocks.
    pub fn remove_all(&self) {
        let mut state = self.state.lock();
        state.now += 1;
        state.all = state.now;
        state.blocks.clear();
    }
}

impl RemovalTicket {
    /// Holds off removals. The write makes its blocks findable while the guard lives, except those
    /// that were removed.
    #[must_use]
    pub fn lock(&self) -> RemovalGuard<'_> {
        RemovalGuard {
            state: self.removals.state.lock(),
            began: self.began,
        }
    }
}

impl RemovalGuard<'_> {
    /// Whether all blocks were removed after the write began.
    #[must_use]
    pub fn is_cleared(&self) -> bool {
        self.state.all > self.began
    }

    /// Whether the block was removed after the write began.
    #[must_use]
    pub fn is_removed(&self, name: &BlockName) -> bool {
        let of_block = self.state.blocks.get(name).copied().unwrap_or(0);
        of_block.max(self.state.all) > self.began
    }
}

impl Drop for RemovalTicket {
    fn drop(&mut self) {
        let mut state = self.removals.state.lock();
        if let Some(writes) = state.writes.get_mut(&self.began) {
            *writes -= 1;
            if *writes == 0 {
                state.writes.remove(&self.began);
            }
        }
        // Only removals after the oldest write in flight still matter.
        match state.writes.keys().next().copied() {
            None => state.blocks.clear(),
            Some(oldest) if oldest > self.began => {
                state.blocks.retain(|_, removal| *removal > oldest);
            }
            Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use kvtile_blocks::{BlockKey, GroupId};

    use super::*;

    fn name(number: u8) -> BlockName {
        BlockName {
            group: GroupId(u32::from(number) % 2),
            key: BlockKey::from_bytes([number; 16]),
        }
    }

    #[test]
    fn a_removal_counts_for_the_writes_before_it() {
        let removals = Arc::new(Removals::default());
        removals.remove([name(1)]);
        let before = removals.begin();
        assert!(!before.lock().is_removed(&name(1)));
        removals.remove([name(1), name(2)]);
        let after = removals.begin();
        for removed in [1, 2] {
            assert!(before.lock().is_removed(&name(removed)));
            assert!(!after.lock().is_removed(&name(removed)));
        }
        assert!(!before.lock().is_removed(&name(3)));
        removals.remove_all();
        assert!(before.lock().is_removed(&name(3)) && after.lock().is_removed(&name(1)));
        assert!(!removals.begin().lock().is_removed(&name(3)));
    }

    #[test]
    fn removals_are_kept_as_long_as_a_write_before_them_is_in_flight() {
        let removals = Arc::new(Removals::default());
        let first = removals.begin();
        removals.remove([name(1)]);
        let second = removals.begin();
        removals.remove([name(2)]);
        let blocks = || {
            let mut blocks: Vec<BlockName> = removals.state.lock().blocks.keys().copied().collect();
            blocks.sort();
            blocks
        };
        assert_eq!(blocks().len(), 2);
        drop(first);
        assert_eq!(blocks(), [name(2)]);
        assert!(second.lock().is_removed(&name(2)));
        drop(second);
        assert_eq!(blocks(), []);
        removals.remove([name(3)]);
        assert_eq!(blocks(), []);
    }
}
