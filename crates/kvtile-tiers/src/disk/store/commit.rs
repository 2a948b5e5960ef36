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
        manifest::file_name,
        medium::MediumFile,
        record::{RecordForm, StoreId},
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
        only(sync_all(&[self]))
    }

    /// Takes the blocks that were lost by the syncs that a [`write`](SlotStore::write) had to run.
    /// Each is reported once; their slots are empty.
    #[must_use]
    pub fn take_lost(&self) -> Vec<LostBlock> {
        std::mem::take(&mut *self.unreported())
    }

    pub(super) fn unreported(&self) -> MutexGuard<'_, Vec<LostBlock>> {
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
        let synced = only(commit_all(&[self], vec![commit], vec![turn]));
        self.unreported().extend(synced.lost);
        synced.erased > 0
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.commit.lock()
    }

    /// Applies the outcome of a sync to the table.
    fn finish(
        &self,
        commit: SlotCommit,
        (outcome, failure): (CommitOutcome, Option<TierError>),
    ) -> SlotSyncReport {
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

    /// Waits until the bytes of a commit are durable.
    fn bring_blocks(&self, commit: &SlotCommit) -> io::Result<()> {
        match commit.pending.is_empty() {
            true => Ok(()),
            false => self.files.slots.sync_data(),
        }
    }

    /// Writes the records and erasures of a commit and waits until they are durable. `blocks` is the
    /// outcome of [`bring_blocks`](SlotStore::bring_blocks): no record is written after a failure.
    fn bring_records(
        &self,
        commit: &SlotCommit,
        blocks: io::Result<()>,
    ) -> (CommitOutcome, Option<TierError>) {
        let failed = |operation, file: &str, error| {
            TierError::file(operation, file_name(&*self.folder.medium, file), error)
        };
        let mut changes = RecordChanges::new(self.record_form);
        commit.stale.iter().for_each(|place| changes.erase(*place));
        if blocks.is_ok() {
            let pending = commit.pending.iter();
            pending.for_each(|pending| changes.record(pending, &self.id));
        }
        let files = &self.files;
        let records = changes.bring(&*files.records);
        let outcome = CommitOutcome {
            blocks: blocks.is_ok(),
            records: records.synced.is_ok(),
            refused: records.refused,
        };
        let blocks = blocks.map_err(|error| failed("sync", &files.slots_name, error));
        let synced = records.synced;
        let synced = synced.map_err(|error| failed("sync", &files.records_name, error));
        let refused = records.refusal;
        let refused = refused.map(|error| failed("write", &files.records_name, error));
        (outcome, blocks.err().or(synced.err()).or(refused))
    }
}

/// The outcome of a commit on the disk, and the first error.
type BroughtCommit = (CommitOutcome, Option<TierError>);

/// Syncs stores of one folder, which are different groups in ascending order.
pub(super) fn sync_all(stores: &[&SlotStore]) -> Vec<SlotSyncReport> {
    let forked = |store: &&SlotStore| {
        let error = store.check_process().err()?;
        Some(SlotSyncReport {
            durable: WriteTicket(0),
            blocks: 0,
            erased: 0,
            lost: Vec::new(),
            failure: Some(error),
        })
    };
    let refused: Vec<SlotSyncReport> = stores.iter().filter_map(forked).collect();
    if !refused.is_empty() {
        return refused;
    }
    let turns = stores.iter().map(|store| store.turn()).collect();
    let commits = stores.iter().map(|store| store.table().take_commit());
    let commits = commits.collect();
    commit_all(stores, commits, turns)
}

fn commit_all(
    stores: &[&SlotStore],
    commits: Vec<SlotCommit>,
    _turns: Vec<MutexGuard<'_, ()>>,
) -> Vec<SlotSyncReport> {
    // The commits return to their tables even if the medium panics. The state of the disk is
    // unknown then.
    let brought = catch_unwind(AssertUnwindSafe(|| bring_to_files(stores, &commits)));
    let brought = brought.unwrap_or_else(|_| {
        let what = "a sync of the disk tier";
        let panicked = TierError::Request(RequestError::Panicked { what });
        alike(stores, false, &panicked)
    });
    let ended = stores.iter().zip(commits).zip(brought);
    ended
        .map(|((store, commit), brought)| store.finish(commit, brought))
        .collect()
}

/// As [`bring`], with a check of the files before and after it. The second check alone could miss a
/// truncated file, because a write to it restores its length.
fn bring_to_files(stores: &[&SlotStore], commits: &[SlotCommit]) -> Vec<BroughtCommit> {
    let check = || {
        stores
            .iter()
            .take(1)
            .try_for_each(|store| store.check_files())
    };
    if let Err(gone) = check() {
        return alike(stores, true, &gone);
    }
    let mut brought = bring(stores, commits);
    if let Err(gone) = check() {
        for (outcome, failure) in &mut brought {
            outcome.records = false;
            *failure = Some(gone.clone());
        }
    }
    brought
}

/// The blocks of all stores come first: a durable record must never refer to bytes that are not
/// durable.
fn bring(stores: &[&SlotStore], commits: &[SlotCommit]) -> Vec<BroughtCommit> {
    let pairs = || stores.iter().zip(commits);
    let blocks: Vec<io::Result<()>> = pairs()
        .map(|(store, commit)| store.bring_blocks(commit))
        .collect();
    pairs()
        .zip(blocks)
        .map(|((store, commit), blocks)| store.bring_records(commit, blocks))
        .collect()
}

/// The same failure for each store, with nothing written; `blocks` is whether the blocks are on the
/// disk for all that is known.
fn alike(stores: &[&SlotStore], blocks: bool, failure: &TierError) -> Vec<BroughtCommit> {
    let one = |_| {
        let outcome = CommitOutcome {
            blocks,
            records: false,
            refused: Vec::new(),
        };
        (outcome, Some(failure.clone()))
    };
    stores.iter().map(one).collect()
}

/// The report of the only store of a sync.
fn only(reports: Vec<SlotSyncReport>) -> SlotSyncReport {
    let count = reports.len();
    match reports.into_iter().next() {
        Some(report) if count == 1 => report,
        _ => broken(format_args!("{count} reports of a sync of one group")),
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

    fn record(&mut self, pending: &PendingWrite, store: &StoreId) {
        let place = pending.place;
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
