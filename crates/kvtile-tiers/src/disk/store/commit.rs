//! Bringing blocks, records and erasures to the disk, in that order.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{MutexGuard, PoisonError},
    thread,
};

use kvtile_layout::broken;

use super::{
    super::{
        folder::{RECORDS_FILE, SLOTS_FILE},
        manifest::{Manifest, file_name},
        medium::MediumFile,
        record::RecordForm,
    },
    LostBlock, SlotStore, Synced, Ticket,
    table::{Commit, Outcome, Pending},
};
use crate::error::TierError;

/// Bytes of records that are written in one call.
const RUN_BYTES_MAX: usize = 256 << 10;

impl SlotStore {
    /// Brings everything that was written or erased before to the disk, and waits for it. Calls
    /// from several threads take turns; one that finds nothing left to do returns at once.
    ///
    /// A failure is told in the report, and the store goes on: blocks that the disk did not take
    /// are lost, everything else is tried again by the next sync. Where the folder or one of its
    /// files was removed, replaced or cut since the store was opened, nothing is durable, what was
    /// before included ([`TierError::FileGone`]).
    pub fn sync(&self) -> Synced {
        if let Err(error) = self.check_process() {
            return Synced {
                durable: Ticket(0),
                blocks: 0,
                erased: 0,
                lost: Vec::new(),
                failure: Some(error),
            };
        }
        let turn = self.turn();
        let commit = self.table().take_commit();
        self.commit(commit, turn)
    }

    /// Blocks that were lost by a sync for which a [`write`](SlotStore::write) had to wait, and that
    /// nobody was told of yet. Their slots are empty.
    #[must_use]
    pub fn take_lost(&self) -> Vec<LostBlock> {
        std::mem::take(&mut *self.unreported())
    }

    fn unreported(&self) -> MutexGuard<'_, Vec<LostBlock>> {
        let unreported = self.unreported.lock();
        unreported.unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`sync`](SlotStore::sync), unless somebody else's sync frees a place meanwhile. Whether
    /// a place was freed, or soon will be.
    pub(super) fn sync_erasures(&self) -> bool {
        let turn = self.turn();
        let commit = {
            let mut table = self.table();
            if table.free_places() > 0 {
                return true;
            }
            if !table.has_stale() {
                let coming = table.has_abandoned();
                drop(table);
                // Another thread gives its place back as soon as its write returns.
                thread::yield_now();
                return coming;
            }
            table.take_commit()
        };
        let synced = self.commit(commit, turn);
        self.unreported().extend(synced.lost);
        synced.erased > 0
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.commit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn commit(&self, commit: Commit, _turn: MutexGuard<'_, ()>) -> Synced {
        // What was taken from the table goes back to it, also where a medium panics: it is unknown then
        // what is on the disk.
        let brought = catch_unwind(AssertUnwindSafe(|| self.bring_to_files(&commit)));
        let (outcome, failure) = brought.unwrap_or_else(|_| {
            let unknown = Outcome {
                blocks: false,
                records: false,
                refused: Vec::new(),
            };
            let what = "a sync of the disk tier";
            (unknown, Some(TierError::Panicked { what }))
        });
        self.counters.syncs.add(u64::from(!commit.is_empty()));
        self.counters
            .sync_failures
            .add(u64::from(failure.is_some()));
        let mut table = self.table();
        let finished = table.finish_commit(commit, &outcome);
        let durable = Ticket(table.durable_epoch());
        drop(table);
        self.counters.lost.add(finished.lost.len() as u64);
        let lost = |lost: &Pending| LostBlock {
            slot: lost.slot,
            key: lost.record.key,
        };
        Synced {
            durable,
            blocks: finished.durable,
            erased: finished.erased,
            lost: finished.lost.iter().map(lost).collect(),
            failure,
        }
    }

    /// As [`bring`](SlotStore::bring), if the files are there, before and after: what writes to a file
    /// that was cut would give it its length back.
    fn bring_to_files(&self, commit: &Commit) -> (Outcome, Option<TierError>) {
        let untouched = Outcome {
            blocks: true,
            records: false,
            refused: Vec::new(),
        };
        if let Err(gone) = self.check_files() {
            return (untouched, Some(gone));
        }
        let (mut outcome, failure) = self.bring(commit);
        match self.check_files() {
            Ok(()) => (outcome, failure),
            Err(gone) => {
                outcome.records = false;
                (outcome, Some(gone))
            }
        }
    }

    /// Blocks first: no record may speak of bytes that are not on the disk.
    fn bring(&self, commit: &Commit) -> (Outcome, Option<TierError>) {
        let failed = |operation, file, error| {
            TierError::file(operation, file_name(&*self.medium, file), error)
        };
        let blocks = match commit.pending.is_empty() {
            true => Ok(()),
            false => self.slots.sync_data(),
        };
        let mut changes = Changes::new(self.record_form);
        commit.stale.iter().for_each(|place| changes.erase(*place));
        if blocks.is_ok() {
            let pending = commit.pending.iter();
            pending.for_each(|pending| changes.record(pending, &self.manifest));
        }
        let records = changes.bring(&*self.records);
        let outcome = Outcome {
            blocks: blocks.is_ok(),
            records: records.synced.is_ok(),
            refused: records.refused,
        };
        let blocks = blocks.map_err(|error| failed("sync", SLOTS_FILE, error));
        let synced = records.synced;
        let synced = synced.map_err(|error| failed("sync", RECORDS_FILE, error));
        let refused = records.refusal;
        let refused = refused.map(|error| failed("write", RECORDS_FILE, error));
        (outcome, blocks.err().or(synced.err()).or(refused))
    }
}

/// Records to be changed.
#[derive(Debug)]
pub(super) struct Changes {
    form: RecordForm,
    /// Places, and where the bytes of their records begin; nothing for records of zeroes.
    changes: Vec<(u32, Option<usize>)>,
    /// The bytes of the records.
    bytes: Vec<u8>,
}

/// What became of them.
#[derive(Debug)]
pub(super) struct Brought {
    /// Places that the file did not take, in order.
    pub(super) refused: Vec<u32>,
    /// Why not, the first time.
    refusal: Option<io::Error>,
    /// Whether the others are on the disk.
    pub(super) synced: io::Result<()>,
}

impl Changes {
    pub(super) fn new(form: RecordForm) -> Changes {
        Changes {
            form,
            changes: Vec::new(),
            bytes: Vec::new(),
        }
    }

    pub(super) fn erase(&mut self, place: u32) {
        self.changes.push((place, None));
    }

    fn record(&mut self, pending: &Pending, manifest: &Manifest) {
        let (place, store) = (pending.place, manifest.store());
        self.changes.push((place, Some(self.bytes.len())));
        let record = &pending.record;
        record.encode(self.form, (store, place), &mut self.bytes);
    }

    /// Writes them, neighbours together, and waits until they are on the disk.
    pub(super) fn bring(mut self, records: &dyn MediumFile) -> Brought {
        let mut brought = Brought {
            refused: Vec::new(),
            refusal: None,
            synced: Ok(()),
        };
        if self.changes.is_empty() {
            return brought;
        }
        self.changes.sort_unstable_by_key(|(place, _)| *place);
        let mut run = Vec::new();
        let runs = self
            .changes
            .chunk_by(|a, b| a.0.checked_add(1) == Some(b.0));
        let most = (RUN_BYTES_MAX / self.form.bytes()).max(1);
        for part in runs.flat_map(|run| run.chunks(most)) {
            let Some((first, _)) = part.first() else {
                continue;
            };
            run.clear();
            for (_, start) in part {
                self.append(*start, &mut run);
            }
            let offset = u64::from(*first) * self.form.stride();
            if let Err(error) = records.write_all_at(offset, &run) {
                brought.refused.extend(part.iter().map(|(place, _)| place));
                brought.refusal.get_or_insert(error);
            }
        }
        brought.synced = records.sync_data();
        brought
    }

    /// Appends the record that begins at `start`, or zeroes.
    fn append(&self, start: Option<usize>, run: &mut Vec<u8>) {
        let bytes = self.form.bytes();
        let Some(start) = start else {
            run.resize(run.len() + bytes, 0);
            return;
        };
        match self.bytes.get(start..start + bytes) {
            Some(record) => run.extend(record),
            None => broken(format_args!("record {start} of {} bytes", self.bytes.len())),
        }
    }
}
