//! The records that were found when a folder was opened: blocks to offer, and places to erase.

use std::cmp::Reverse;

use super::{
    super::{
        manifest::ManifestGroup,
        medium::MediumFile,
        record::{RecordForm, SlotRecord},
    },
    DroppedSlots, RecordScan, RecoveredBlocks, StoredSlot,
    commit::RecordChanges,
};

/// The scanned records, sorted into blocks to offer and places to erase.
#[derive(Default)]
pub(super) struct FoundRecords {
    pub(super) stored: Vec<(u32, SlotRecord)>,
    /// Places whose records must be erased.
    pub(super) stale: Vec<u32>,
    pub(super) dropped: DroppedSlots,
    pub(super) last_sequence: u64,
}

impl FoundRecords {
    /// Leaves out the blocks that cannot be offered. `lengths` are those of the files before this
    /// open.
    pub(super) fn of(
        scan: RecordScan,
        (group, form): (&ManifestGroup, RecordForm),
        lengths: (u64, u64),
    ) -> FoundRecords {
        let (slots_bytes, records_bytes) = lengths;
        let whole = u32::try_from(records_bytes / form.stride()).unwrap_or(u32::MAX);
        let mut dropped = DroppedSlots {
            torn: count(&scan.torn),
            unreadable: count(&scan.unreadable),
            truncated: group.slots().saturating_sub(whole),
            ..DroppedSlots::default()
        };
        let mut stale = scan.torn;
        stale.extend(scan.unreadable);
        let mut stored = scan.stored;
        let last = stored.iter().map(|(_, record)| record.sequence).max();
        stored.retain(|(place, _)| {
            let end = u64::from(*place) * group.slot_bytes() + group.block_bytes();
            if end > slots_bytes {
                dropped.truncated += 1;
                stale.push(*place);
            }
            end <= slots_bytes
        });
        stored.sort_unstable_by_key(|(_, record)| (record.key, Reverse(record.sequence)));
        stored.dedup_by(|later, first| {
            let same = later.1.key == first.1.key;
            if same {
                dropped.duplicate += 1;
                stale.push(later.0);
            }
            same
        });
        FoundRecords {
            stored,
            stale,
            dropped,
            last_sequence: last.unwrap_or(0),
        }
    }

    /// Leaves out the blocks that a group with this number of places, and with room for `blocks`, has no
    /// room for, and sorts the blocks that stay.
    ///
    /// A crash during a sync can leave more blocks than there are slots: old blocks that the sync
    /// was to erase, and the new blocks that replace them. The blocks that were durable before fit
    /// the slots, so the newest are left out.
    pub(super) fn fit(&mut self, places: u32, blocks: u32) {
        self.stored
            .sort_unstable_by_key(|(_, record)| record.sequence);
        let found = self.stored.len();
        let mut room = usize::try_from(blocks).unwrap_or(usize::MAX);
        let stale = &mut self.stale;
        self.stored.retain(|(place, _)| {
            let fits = *place < places && room > 0;
            if fits {
                room -= 1;
            } else {
                stale.push(*place);
            }
            fits
        });
        let gone = found - self.stored.len();
        self.dropped.over_capacity += u32::try_from(gone).unwrap_or(u32::MAX);
        // The sort is stable, so older blocks stay before newer ones.
        self.stored.sort_by_key(|(_, record)| record.position);
    }

    /// Erases the records of the places left out. Later syncs retry the erasures that the disk
    /// refused.
    pub(super) fn erase(&mut self, (records, form): (&dyn MediumFile, RecordForm), places: u32) {
        let mut changes = RecordChanges::new(form);
        self.stale.iter().for_each(|place| changes.erase(*place));
        let brought = changes.bring(records);
        self.stale.retain(|place| {
            let erased = brought.synced.is_ok() && brought.refused.binary_search(place).is_err();
            !erased && *place < places
        });
    }

    /// The blocks to offer; their slots are 0, 1, ….
    pub(super) fn recovered(&self, created: bool) -> RecoveredBlocks {
        let entry = |(slot, (_, record)): (u32, &(u32, SlotRecord))| StoredSlot {
            slot,
            key: record.key,
            parent: record.parent,
            position: record.position,
            tenant: record.tenant,
            sequence: record.sequence,
        };
        RecoveredBlocks {
            entries: (0..).zip(&self.stored).map(entry).collect(),
            dropped: self.dropped,
            created,
        }
    }
}

fn count(places: &[u32]) -> u32 {
    u32::try_from(places.len()).unwrap_or(u32::MAX)
}
