//! The slot table: which slot holds which block, and in which place of the data file. It is the
//! store without its files.
//!
//! The caller names slots by number. The bytes of a slot are in a *place* of the data file, which
//! the table allocates when the slot is written. There are a few more places than slots, as a
//! reserve of erased ones:
//!
//! ```text
//!          write            sync            erase          sync
//!   free ───────► writing ─► written ─► durable ─► stale ───────► free
//!                    └─ fails: free     └─ or from written
//! ```
//!
//! A place is free only if its record on the disk is known to be erased. The table does no I/O and
//! knows no clock; the store calls it under one lock.

use std::mem;

use kvtile_blocks::BlockKey;

use super::{
    super::record::SlotRecord,
    free::FreePlaces,
    report::SlotMiss,
    slots::{EMPTY, NOWHERE, SlotEntries, SlotEntry, SlotPrint},
};
use crate::{
    error::{SlotError, TierError},
    tier::BlockPieces,
};

/// The state of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotState {
    /// The slot holds no block.
    Empty,
    /// A write is in flight.
    Writing,
    /// The block can be read; a crash would lose it.
    Written,
    /// The block survives a crash.
    Durable,
}

/// A written block whose record is not on the disk yet.
#[derive(Clone, Debug)]
pub(super) struct PendingWrite {
    pub(super) slot: u32,
    pub(super) place: u32,
    pub(super) write: u32,
    pub(super) record: SlotRecord,
}

/// The work of one sync.
#[derive(Debug, Default)]
pub(super) struct SlotCommit {
    pub(super) epoch: u64,
    pub(super) pending: Vec<PendingWrite>,
    /// Places whose records must be erased.
    pub(super) stale: Vec<u32>,
}

/// The outcome of a sync on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CommitOutcome {
    /// Whether the blocks are durable; if not, none of their records was written.
    pub(super) blocks: bool,
    /// Whether the records and erasures are durable; if not, each of them may or may not be.
    pub(super) records: bool,
    /// Places whose record or erasure the file refused, in ascending order.
    pub(super) refused: Vec<u32>,
}

/// The effect of a sync on the table.
#[derive(Debug, Default)]
pub(super) struct FinishedCommit {
    pub(super) durable: usize,
    pub(super) erased: usize,
    pub(super) lost: Vec<PendingWrite>,
}

impl CommitOutcome {
    fn refuses(&self, place: u32) -> bool {
        self.refused.binary_search(&place).is_ok()
    }
}

impl SlotCommit {
    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty() && self.stale.is_empty()
    }
}

#[derive(Debug)]
pub(super) struct SlotTable {
    entries: SlotEntries,
    places: u32,
    free: FreePlaces,
    /// Places that the group does not own: holes of the file, whose bytes other groups may use.
    lent: FreePlaces,
    /// The number of places that are on their way to `lent`.
    leaving: usize,
    stale: Vec<u32>,
    pending: Vec<PendingWrite>,
    /// The number of places that a sync is erasing.
    erasing: usize,
    /// The number of places whose slot was erased while its write was in flight.
    abandoned: usize,
    next_write: u32,
    next_sequence: u64,
    /// The sync that takes everything that is pending now.
    epoch: u64,
    /// The last sync whose work is all durable.
    durable_epoch: u64,
    used: u32,
    /// The number of syncs that failed to make blocks durable. The operating system reports such a
    /// failure once; it may concern every write since the last sync, writes in flight included.
    failed_syncs: u64,
}

impl SlotTable {
    /// A table in which the blocks `recovered`, each with its place, are the slots 0, 1, …; `stale`
    /// are places whose records must be erased. The group owns all other places; with `lends` it owns
    /// none of them until [`borrow`](SlotTable::borrow).
    pub(super) fn new(
        (slots, places, pieces): (u32, u32, &BlockPieces),
        recovered: &[(u32, SlotRecord)],
        stale: Vec<u32>,
        (next_sequence, lends): (u64, bool),
    ) -> SlotTable {
        let mut entries = SlotEntries::new(slots, pieces.count());
        let mut taken = vec![false; places as usize];
        let mut mark = |place: u32| {
            if let Some(taken) = taken.get_mut(place as usize) {
                *taken = true;
            }
        };
        for (slot, (place, record)) in (0..slots).zip(recovered) {
            let entry = SlotEntry {
                print: SlotPrint::of(&record.key),
                write: 0,
                position: record.position,
                place: *place,
                state: SlotState::Durable,
            };
            entries.set(slot, &entry);
            entries.set_sums(slot, &record.sums);
            mark(*place);
        }
        stale.iter().copied().for_each(mark);
        let (rest, none) = (FreePlaces::of(&taken), FreePlaces::of(&[]));
        let (free, lent) = if lends { (none, rest) } else { (rest, none) };
        SlotTable {
            used: u32::try_from(recovered.len()).map_or(slots, |count| count.min(slots)),
            free,
            lent,
            leaving: 0,
            entries,
            places,
            stale,
            pending: Vec::new(),
            erasing: 0,
            abandoned: 0,
            next_write: 1,
            next_sequence,
            epoch: 1,
            durable_epoch: 0,
            failed_syncs: 0,
        }
    }

    pub(super) fn slots(&self) -> u32 {
        self.entries.slots()
    }

    pub(super) fn used(&self) -> u32 {
        self.used
    }

    pub(super) fn free_places(&self) -> usize {
        self.free.len()
    }

    /// The places that the group owns, in any state.
    pub(super) fn owned(&self) -> u32 {
        let elsewhere = self.lent.len() + self.leaving;
        self.places - u32::try_from(elsewhere).unwrap_or(self.places)
    }

    /// The holes of the file.
    pub(super) fn lent(&self) -> impl Iterator<Item = u32> {
        self.lent.iter()
    }

    /// Turns up to `count` holes into free places. Returns how many.
    pub(super) fn borrow(&mut self, count: u32) -> u32 {
        self.lent.expect(count as usize);
        let mut taken = 0;
        while taken < count
            && let Some(place) = self.lent.take()
        {
            self.free.insert(place);
            taken += 1;
        }
        taken
    }

    /// Takes up to `count` free places, which become holes: [`lend`](SlotTable::lend) or
    /// [`keep`](SlotTable::keep) follows for all of them.
    pub(super) fn leave(&mut self, count: u32) -> Vec<u32> {
        self.free.expect(count as usize);
        let mut leaving: Vec<u32> = (0..count).map_while(|_| self.free.take()).collect();
        leaving.sort_unstable();
        self.leaving += leaving.len();
        leaving
    }

    /// The leaving places are holes now.
    pub(super) fn lend(&mut self, places: &[u32]) {
        self.leaving -= places.len();
        places.iter().for_each(|place| self.lent.insert(*place));
    }

    /// The leaving places stay.
    pub(super) fn keep(&mut self, places: &[u32]) {
        self.leaving -= places.len();
        places.iter().for_each(|place| self.free.insert(*place));
    }

    pub(super) fn has_stale(&self) -> bool {
        !self.stale.is_empty() || self.erasing > 0
    }

    /// Whether a write is in flight whose place becomes free when it ends.
    pub(super) fn has_abandoned(&self) -> bool {
        self.abandoned > 0
    }

    pub(super) fn durable_epoch(&self) -> u64 {
        self.durable_epoch
    }

    /// The sync that makes the writes so far durable.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(super) fn entry(&self, slot: u32) -> Option<SlotEntry> {
        self.entries.get(slot)
    }

    /// Whether `slot` still holds the block of the write with this place and number. Numbers repeat
    /// after 2^32 writes, but a place is not given to another block before the writes and syncs that
    /// name it have ended.
    pub(super) fn holds(&self, slot: u32, (place, write): (u32, u32)) -> bool {
        self.entry(slot).is_some_and(|entry| {
            entry.state != SlotState::Empty && (entry.place, entry.write) == (place, write)
        })
    }

    fn holds_write(&self, pending: &PendingWrite) -> bool {
        self.holds(pending.slot, (pending.place, pending.write))
    }

    /// The checksums of the block in `slot`, in the order of its pieces.
    pub(super) fn sums(&self, slot: u32) -> &[u64] {
        self.entries.sums(slot)
    }

    /// The entry of `slot`, if its block can be read and has the key `key`.
    pub(super) fn find(&self, slot: u32, key: &BlockKey) -> Result<SlotEntry, SlotMiss> {
        match self.entry(slot) {
            Some(entry) if matches!(entry.state, SlotState::Written | SlotState::Durable) => {
                if entry.print == SlotPrint::of(key) {
                    Ok(entry)
                } else {
                    Err(SlotMiss::WrongKey)
                }
            }
            _ => Err(SlotMiss::Empty),
        }
    }

    /// Prepares for `count` writes whose blocks should be contiguous.
    pub(super) fn expect_writes(&mut self, count: usize) {
        self.free.expect(count);
    }

    /// Allocates a place for a write; [`BegunWrite::NoPlace`] if no erased place is free.
    pub(super) fn begin(&mut self, slot: u32, key: &BlockKey, position: u32) -> BegunWrite {
        let slots = self.slots();
        let Some(entry) = self.entries.get(slot) else {
            return BegunWrite::Refused(TierError::Slot(SlotError::SlotOutOfRange { slot, slots }));
        };
        if entry.state != SlotState::Empty {
            return BegunWrite::Refused(TierError::Slot(SlotError::SlotOccupied { slot }));
        }
        let Some(place) = self.free.take() else {
            return BegunWrite::NoPlace;
        };
        let write = self.next_write;
        self.next_write = write.wrapping_add(1);
        let entry = SlotEntry {
            print: SlotPrint::of(key),
            write,
            position,
            place,
            state: SlotState::Writing,
        };
        self.entries.set(slot, &entry);
        self.used += 1;
        BegunWrite::Place(PlacedWrite {
            place,
            write,
            failed_syncs: self.failed_syncs,
        })
    }

    /// Records a write whose bytes are in the file. Returns false, and discards the write, if a
    /// sync has failed since the write began: that failure may have concerned these bytes.
    pub(super) fn written(&mut self, mut pending: PendingWrite, failed_syncs: u64) -> bool {
        if failed_syncs != self.failed_syncs {
            self.failed(pending.slot, (pending.place, pending.write));
            return false;
        }
        if self.holds_write(&pending) {
            self.entries.set_state(pending.slot, SlotState::Written);
            self.entries.set_sums(pending.slot, &pending.record.sums);
            // Assigned here, so that writes of a later sync have larger numbers.
            pending.record.sequence = self.next_sequence;
            self.next_sequence += 1;
            self.pending.push(pending);
        } else {
            self.give_up(pending.place);
        }
        true
    }

    /// Discards a write that failed.
    pub(super) fn failed(&mut self, slot: u32, (place, write): (u32, u32)) {
        if self.holds(slot, (place, write)) {
            self.clear(slot);
            self.free.insert(place);
        } else {
            self.give_up(place);
        }
    }

    /// Frees the place of a write whose slot was erased in flight; no record of it was ever
    /// written.
    fn give_up(&mut self, place: u32) {
        self.abandoned = self.abandoned.saturating_sub(1);
        self.free.insert(place);
    }

    fn clear(&mut self, slot: u32) {
        self.entries.set(slot, &EMPTY);
        self.used -= 1;
    }

    /// Empties a slot; returns whether it held a block.
    pub(super) fn erase(&mut self, slot: u32) -> bool {
        let Some(entry) = self.entries.get(slot) else {
            return false;
        };
        match entry.state {
            SlotState::Empty => return false,
            SlotState::Writing => self.abandoned += 1,
            SlotState::Written | SlotState::Durable => self.stale.push(entry.place),
        }
        self.clear(slot);
        true
    }

    /// Takes the work of the next sync. It leaves out blocks that were erased before the sync;
    /// their places are among the stale ones.
    pub(super) fn take_commit(&mut self) -> SlotCommit {
        let pending = mem::take(&mut self.pending);
        let stale = mem::take(&mut self.stale);
        let epoch = self.epoch;
        self.epoch += 1;
        self.erasing = stale.len();
        let pending = pending
            .into_iter()
            .filter(|pending| self.holds_write(pending))
            .collect();
        SlotCommit {
            epoch,
            pending,
            stale,
        }
    }

    /// Applies the outcome of a sync.
    pub(super) fn finish_commit(
        &mut self,
        commit: SlotCommit,
        outcome: &CommitOutcome,
    ) -> FinishedCommit {
        self.erasing = 0;
        let is_lost = |pending: &PendingWrite| !outcome.blocks || outcome.refuses(pending.place);
        let (mut lost, mut kept): (Vec<_>, Vec<_>) = commit.pending.into_iter().partition(is_lost);
        if !outcome.blocks {
            self.failed_syncs += 1;
            lost.append(&mut self.pending);
        }
        // Blocks that were erased during the sync are stale already and do not count as lost.
        lost.retain(|pending| self.holds_write(pending));
        for pending in &lost {
            self.clear(pending.slot);
            self.stale.push(pending.place);
        }
        let mut finished = FinishedCommit {
            lost,
            ..FinishedCommit::default()
        };
        if outcome.records {
            let refused = |place: &u32| outcome.refuses(*place);
            let (again, erased): (Vec<_>, Vec<_>) = commit.stale.into_iter().partition(refused);
            finished.erased = erased.len();
            self.stale.extend(again);
            erased.into_iter().for_each(|place| self.free.insert(place));
            finished.durable = kept.iter().filter(|pending| self.promote(pending)).count();
            self.durable_epoch = commit.epoch;
        } else {
            self.stale.extend(commit.stale);
            self.pending.append(&mut kept);
        }
        finished
    }

    /// Marks a block durable, if its slot still holds it; returns whether it does.
    fn promote(&mut self, pending: &PendingWrite) -> bool {
        let is_written = |entry: SlotEntry| entry.state == SlotState::Written;
        let holds = self.holds_write(pending) && self.entry(pending.slot).is_some_and(is_written);
        if holds {
            self.entries.set_state(pending.slot, SlotState::Durable);
        }
        holds
    }

    /// Asserts that every place is in exactly one state, and that the counters are correct.
    pub(super) fn check_integrity(&self) {
        let mut seen = vec![false; self.places as usize];
        let mut count = 0;
        let mut see = |place: u32, what: &str| {
            let before = seen.get_mut(place as usize);
            assert_eq!(before.as_deref(), Some(&false), "{what} place {place}");
            if let Some(before) = before {
                *before = true;
            }
            count += 1;
        };
        let mut used = 0;
        for entry in self.entries.iter() {
            if entry.state == SlotState::Empty {
                assert_eq!(entry.place, NOWHERE, "an empty slot has a place");
            } else {
                see(entry.place, "held");
                used += 1;
            }
        }
        self.free.check_integrity();
        self.free.iter().for_each(|place| see(place, "free"));
        self.lent.check_integrity();
        self.lent.iter().for_each(|place| see(place, "lent"));
        self.stale.iter().for_each(|place| see(*place, "stale"));
        let elsewhere = self.erasing + self.abandoned + self.leaving;
        assert_eq!(count + elsewhere, self.places as usize, "places are lost");
        assert_eq!(used, self.used, "the number of used slots");
        assert!(
            self.durable_epoch < self.epoch,
            "the durable epoch is not before the current one"
        );
        let written = self.entries.iter();
        let written = written.filter(|entry| entry.state == SlotState::Written);
        let pending = self.pending.iter();
        let pending = pending.filter(|pending| self.holds_write(pending));
        let (written, pending) = (written.count(), pending.count());
        assert!(pending <= written, "{pending} pending, {written} written");
    }
}

/// The outcome of [`SlotTable::begin`].
#[derive(Debug)]
pub(super) enum BegunWrite {
    Place(PlacedWrite),
    NoPlace,
    Refused(TierError),
}

/// The place and the number of a write.
#[derive(Clone, Copy, Debug)]
pub(super) struct PlacedWrite {
    pub(super) place: u32,
    pub(super) write: u32,
    /// The table's `failed_syncs` when the write began.
    pub(super) failed_syncs: u64,
}
