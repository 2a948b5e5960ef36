//! Sync: makes blocks durable first, then records and erasures.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
};

use kvtile_layout::broken;
use parking_lot::MutexGuard;

use super::{
    super::{
        folder::{RECORDS_FILE, SLOTS_FILE},
        manifest::{Manifest, file_name},
        medium::MediumFile,
        record::RecordForm,
    },
    LostBlock, SlotStore, SlotSyncReport, WriteTicket,
    table::{CommitOutcome, PendingWrite, SlotCommit},
};
use crate::error::{RequestError, TierError};

/// The most bytes of records in one write call.
const RUN_BYTES_MAX: usize = 256 << 10;

impl SlotStore {
    /// Makes everything that was written or erased before durable, and waits for it. Concurrent
    /// calls run one after the other; a call with nothing left to do returns at once.
    ///
    /// After a failure the store stays usable. Blocks that the disk refused are lost and reported
    /// in [`SlotSyncReport::lost`]; the next sync retries everything else. If the folder or one of its
    /// files was removed, replaced or truncated since the store was opened, nothing is durable,
    /// blocks of earlier syncs included ([`FolderError::FileGone`](crate::FolderError::FileGone)).
    pub fn sync(&self) -> SlotSyncReport {
        if let Err(error) = self.check_process() {
            return SlotSyncReport {
                durable: WriteTicket(0),
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

    /// Takes the blocks that were lost by the syncs that a [`write`](SlotStore::write) had to run.
    /// Each is reported once; their slots are empty.
    #[must_use]
    pub fn take_lost(&self) -> Vec<LostBlock> {
        std::mem::take(&mut *self.unreported())
    }

    fn unreported(&self) -> MutexGuard<'_, Vec<LostBlock>> {
        self.unreported.lock()
    }

    /// As [`sync`](SlotStore::sync), unless a concurrent sync frees a place first. Returns whether
    /// a place is free or will be soon.
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
                // Another thread frees its place as soon as its write returns.
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
        self.commit.lock()
    }

    fn commit(&self, commit: SlotCommit, _turn: MutexGuard<'_, ()>) -> SlotSyncReport {
        // The commit returns to the table even if the medium panics. The state of the disk is
        // unknown then.
        let brought = catch_unwind(AssertUnwindSafe(|| self.bring_to_files(&commit)));
        let (outcome, failure) = brought.unwrap_or_else(|_| {
            let unknown = CommitOutcome {
                blocks: false,
                records: false,
                refused: Vec::new(),
            };
            let what = "a sync of the disk tier";
            (
                unknown,
                Some(TierError::Request(RequestError::Panicked { what })),
            )
        });
        self.counters.syncs.add(u64::from(!commit.is_empty()));
        self.counters
            .sync_failures
            .add(u64::from(failure.is_some()));
        let mut table = self.table();
        let finished = table.finish_commit(commit, &outcome);
        let durable = WriteTicket(table.durable_epoch());
        drop(table);
        self.counters.lost.add(finished.lost.len() as u64);
        let lost = |lost: &PendingWrite| LostBlock {
            slot: lost.slot,
            key: lost.record.key,
        };
        SlotSyncReport {
            durable,
            blocks: finished.durable,
            erased: finished.erased,
            lost: finished.lost.iter().map(lost).collect(),
            failure,
        }
    }

    /// As [`bring`](SlotStore::bring), with a check of the files before and after it. The second
    /// check alone could miss a truncated file, because a write to it restores its length.
    fn bring_to_files(&self, commit: &SlotCommit) -> (CommitOutcome, Option<TierError>) {
        let untouched = CommitOutcome {
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

    /// Blocks come first: a durable record must never refer to bytes that are not durable.
    fn bring(&self, commit: &SlotCommit) -> (CommitOutcome, Option<TierError>) {
        let failed = |operation, file, error| {
            TierError::file(operation, file_name(&*self.medium, file), error)
        };
        let blocks = match commit.pending.is_empty() {
            true => Ok(()),
            false => self.slots.sync_data(),
        };
        let mut changes = RecordChanges::new(self.record_form);
        commit.stale.iter().for_each(|place| changes.erase(*place));
        if blocks.is_ok() {
            let pending = commit.pending.iter();
            pending.for_each(|pending| changes.record(pending, &self.manifest));
        }
        let records = changes.bring(&*self.records);
        let outcome = CommitOutcome {
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

/// Records to write or erase in one sync.
#[derive(Debug)]
pub(super) struct RecordChanges {
    form: RecordForm,
    /// Places, and the offset of their record in `bytes`; `None` erases the record.
    changes: Vec<(u32, Option<usize>)>,
    /// The encoded records.
    bytes: Vec<u8>,
}

/// The outcome of writing [`RecordChanges`].
#[derive(Debug)]
pub(super) struct RecordsWritten {
    /// Places whose record the file refused, in ascending order.
    pub(super) refused: Vec<u32>,
    /// The first error of a refused write.
    refusal: Option<io::Error>,
    /// Whether the other records are durable.
    pub(super) synced: io::Result<()>,
}

impl RecordChanges {
    pub(super) fn new(form: RecordForm) -> RecordChanges {
        RecordChanges {
            form,
            changes: Vec::new(),
            bytes: Vec::new(),
        }
    }

    pub(super) fn erase(&mut self, place: u32) {
        self.changes.push((place, None));
    }

    fn record(&mut self, pending: &PendingWrite, manifest: &Manifest) {
        let (place, store) = (pending.place, manifest.store());
        self.changes.push((place, Some(self.bytes.len())));
        let record = &pending.record;
        record.encode(self.form, (store, place), &mut self.bytes);
    }

    /// Writes the records, neighbours in one call, and waits until they are durable.
    pub(super) fn bring(mut self, records: &dyn MediumFile) -> RecordsWritten {
        let mut brought = RecordsWritten {
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

    /// Appends the record at offset `start`, or zeroes for `None`.
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
