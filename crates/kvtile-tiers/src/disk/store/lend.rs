//! Room that the groups of a folder lend to each other.
//!
//! ```text
//!   group a      owned ░░░░░░░░ holes         spare bytes: in no group
//!   group b      owned ░░ holes               owned of all + spare = data bytes of the folder
//! ```
//!
//! A group gives places that are erased on the disk, and the store punches holes into its file. Their
//! bytes are spare until a group takes them. So the files stay within the capacity at every moment,
//! also after a crash: the records of given places were erased before another group wrote.

use kvtile_layout::broken;
use parking_lot::Mutex;

use super::{
    super::{
        capacity,
        lent::{LentCapacity, LentGroup, room},
    },
    SlotStore,
};
use crate::error::TierError;

/// The bytes that the groups of an open folder can take from each other.
#[derive(Debug)]
pub(super) struct FolderLending {
    capacity: LentCapacity,
    spare_bytes: Mutex<u64>,
}

impl FolderLending {
    /// All data bytes are spare.
    pub(super) fn new(capacity: LentCapacity) -> FolderLending {
        FolderLending {
            spare_bytes: Mutex::new(capacity.data_bytes),
            capacity,
        }
    }

    fn group(&self, index: usize) -> &LentGroup {
        match self.capacity.groups.get(index) {
            Some(group) => group,
            None => broken(format_args!(
                "group {index} of {}",
                self.capacity.groups.len()
            )),
        }
    }
}

impl SlotStore {
    /// Whether the groups of the folder lend room to each other.
    pub(in super::super) fn lends(&self) -> bool {
        self.lending().is_some()
    }

    fn lending(&self) -> Option<(&FolderLending, &LentGroup)> {
        let lending = self.folder.lending.as_ref()?;
        Some((lending, lending.group(self.index)))
    }

    /// The blocks for which the group has room in the places that it owns.
    #[must_use]
    pub fn room(&self) -> u32 {
        room(self.table().owned())
    }

    /// The blocks for which the group has room if it gives `places` places away.
    pub(in super::super) fn room_without(&self, places: u32) -> u32 {
        room(self.table().owned().saturating_sub(places))
    }

    /// The slots that hold a block.
    pub(in super::super) fn used(&self) -> u32 {
        self.table().used()
    }

    /// The blocks for which the group has room, with its part of the spare bytes.
    pub(in super::super) fn capacity(&self) -> u32 {
        let Some((lending, group)) = self.lending() else {
            return self.slots();
        };
        let groups = lending.capacity.groups.iter();
        let all: u128 = groups.map(|group| u128::from(group.share_bytes())).sum();
        let spare = u128::from(*lending.spare_bytes.lock());
        let ours = spare * u128::from(group.share_bytes()) / all.max(1);
        let places = u32::try_from(ours / u128::from(group.slot_bytes)).unwrap_or(u32::MAX);
        room(self.table().owned().saturating_add(places)).min(self.slots())
    }

    /// Bytes of the places that the group owns, and of those that it can claim.
    pub(in super::super) fn owned_and_share_bytes(&self) -> (u64, u64) {
        let owned = u64::from(self.table().owned()) * self.group.slot_bytes();
        (
            owned,
            self.lending()
                .map_or(owned, |(_, group)| group.share_bytes()),
        )
    }

    /// The spare bytes of the folder.
    pub(in super::super) fn spare_bytes(&self) -> u64 {
        self.lending()
            .map_or(0, |(lending, _)| *lending.spare_bytes.lock())
    }

    /// Bytes of all places that the groups own together, at most.
    pub(in super::super) fn data_bytes(&self) -> u64 {
        self.lending()
            .map_or(0, |(lending, _)| lending.capacity.data_bytes)
    }

    /// Takes spare bytes for up to `blocks` more blocks. Returns for how many.
    pub(in super::super) fn grow(&self, blocks: u32) -> u32 {
        let Some((lending, group)) = self.lending() else {
            return 0;
        };
        let mut spare = lending.spare_bytes.lock();
        let mut table = self.table();
        let (owned, before) = (table.owned(), room(table.owned()));
        let wanted = capacity::physical_for(before.saturating_add(blocks)).saturating_sub(owned);
        let most = u32::try_from(*spare / group.slot_bytes).unwrap_or(u32::MAX);
        let taken = table.borrow(wanted.min(most));
        *spare -= u64::from(taken) * group.slot_bytes;
        room(table.owned()) - before
    }

    /// Takes spare bytes for the blocks that the group holds already.
    pub(super) fn own_held(&self) {
        let Some((lending, group)) = self.lending() else {
            return;
        };
        let mut spare = lending.spare_bytes.lock();
        let mut table = self.table();
        let least = capacity::physical_for(table.used());
        let free = least.saturating_sub(table.owned());
        table.borrow(free);
        *spare = spare.saturating_sub(u64::from(table.owned()) * group.slot_bytes);
    }

    /// Gives up to `places` places, which hold no block, and makes their bytes spare. Returns how
    /// many. No write to the group may be in flight. The call waits for a sync if it erases places.
    pub(in super::super) fn shrink(&self, places: u32) -> u32 {
        let Some((lending, group)) = self.lending() else {
            return 0;
        };
        let is_short = {
            let table = self.table();
            (table.free_places() as u64) < u64::from(places) && table.has_stale()
        };
        if is_short {
            let synced = self.sync();
            self.unreported().extend(synced.lost);
        }
        let leaving = {
            let mut table = self.table();
            let kept = capacity::physical_for(table.used());
            let most = table.owned().saturating_sub(kept);
            table.leave(places.min(most))
        };
        match self.punch(&leaving) {
            Ok(()) => {
                let mut spare = lending.spare_bytes.lock();
                self.table().lend(&leaving);
                *spare += leaving.len() as u64 * group.slot_bytes;
                u32::try_from(leaving.len()).unwrap_or(places)
            }
            Err(error) => {
                log::warn!(
                    "group {} keeps room that another one needs: {error}",
                    self.index
                );
                self.table().keep(&leaving);
                0
            }
        }
    }

    /// Punches the holes that the file should have: after an open, what an earlier process left there
    /// takes disk space.
    pub(super) fn punch_holes(&self) -> Result<(), TierError> {
        let mut holes: Vec<u32> = self.table().lent().collect();
        holes.sort_unstable();
        self.punch(&holes)
    }

    /// Returns the disk space of all free places. A file of one group, which gives no places away, takes
    /// it again when it is written.
    pub(in super::super) fn release(&self) -> Result<(), TierError> {
        let leaving = self.table().leave(u32::MAX);
        let released = self.punch(&leaving);
        self.table().keep(&leaving);
        released
    }

    /// Punches places, in ascending order, out of the file.
    fn punch(&self, places: &[u32]) -> Result<(), TierError> {
        for run in places.chunk_by(|a, b| a.checked_add(1) == Some(*b)) {
            let Some(first) = run.first() else {
                continue;
            };
            let bytes = run.len() as u64 * self.group.slot_bytes();
            let punched = self.files.slots.punch(self.offset(*first), bytes);
            punched.map_err(|error| self.failed("free space of", error))?;
        }
        Ok(())
    }
}
