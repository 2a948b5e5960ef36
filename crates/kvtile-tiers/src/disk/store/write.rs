//! Writes blocks in batches.
//!
//! The store writes a batch in rounds. A round allocates places for as many blocks as there are
//! erased ones, writes all of them at once, and then records the outcome of each. A block for which
//! no erased place is free waits for a sync; a slot that the batch names a second time waits for
//! the outcome of its first write. Both start a new round, so a batch has the same result as its
//! blocks one by one.

use std::panic::{AssertUnwindSafe, catch_unwind};

use kvtile_layout::broken;

use super::{
    super::{
        medium::FileWrite,
        record::{SlotRecord, piece_sums},
    },
    FailedWrite, SlotStore, SlotWrite, SlotWriteReport, WriteTicket, long,
    slots::SlotEntry,
    table::{BegunWrite, PendingWrite, PlacedWrite},
};
use crate::error::{RequestError, SlotError, TierError};

/// The outcome of a block's write: the checksums of its pieces, or the reason of the failure.
type WrittenSums = Result<Box<[u64]>, TierError>;

impl SlotStore {
    /// Writes blocks to empty slots, many at a time. They can be read when this returns, and are
    /// durable after the next [`sync`](SlotStore::sync). Blocks aligned to 4096 bytes bypass the
    /// page cache if the file system has direct I/O. The blocks of a batch are contiguous and in
    /// its order if a run of free places has room.
    ///
    /// The call waits for a sync only if the slots erased since the last sync exceed the reserve of
    /// erased places. It writes nothing if the folder or one of its files was removed, replaced or
    /// truncated since the store was opened ([`FolderError::FileGone`](crate::FolderError::FileGone)); earlier blocks can still be
    /// read.
    pub fn write(&self, batch: &[SlotWrite<'_>]) -> SlotWriteReport {
        if let Err(error) = self.check_process() {
            // Does not touch the table: a thread that does not exist in the child may hold its
            // lock.
            let fail = |write: &SlotWrite<'_>| FailedWrite {
                slot: write.slot,
                error: error.clone(),
            };
            return SlotWriteReport {
                ticket: WriteTicket(u64::MAX),
                failed: batch.iter().map(fail).collect(),
            };
        }
        let files = match batch.is_empty() {
            true => Ok(()),
            false => self.check_files(),
        };
        let failures = match files {
            Ok(()) => self.write_rounds(batch),
            Err(error) => vec![Some(error); batch.len()],
        };
        let failed: Vec<FailedWrite> = batch
            .iter()
            .zip(failures)
            .filter_map(|(write, error)| {
                let slot = write.slot;
                error.map(|error| FailedWrite { slot, error })
            })
            .collect();
        let (all, failed_count) = (batch.len() as u64, failed.len() as u64);
        self.counters.writes.add(all);
        self.counters.write_failures.add(failed_count);
        let bytes = (all - failed_count) * self.block_bytes();
        self.counters.written_bytes.add(bytes);
        SlotWriteReport {
            ticket: WriteTicket(self.table().epoch()),
            failed,
        }
    }

    /// Writes the batch; returns the error of each block that was not written.
    fn write_rounds(&self, batch: &[SlotWrite<'_>]) -> Vec<Option<TierError>> {
        let mut failures = vec![None; batch.len()];
        let mut next = 0;
        let mut waits = false;
        while next < batch.len() {
            let (round, end) = self.begin_round(batch, next, &mut failures);
            if end > next {
                waits = false;
            }
            next = end;
            if !round.is_empty() {
                self.write_round(batch, &round, &mut failures);
            } else if next < batch.len() {
                self.counters.erasure_waits.add(u64::from(!waits));
                waits = true;
                // Other threads may take the freed places first. There are places for all slots, so
                // the write fails only if the disk erases none.
                if !self.sync_erasures() {
                    let syncs_failed = self.counters.sync_failures.get();
                    if let Some(failure) = failures.get_mut(next) {
                        *failure = Some(TierError::Slot(SlotError::NoErasedSlot {
                            failures: syncs_failed,
                        }));
                    }
                    (next, waits) = (next + 1, false);
                }
            }
        }
        failures
    }

    /// Allocates places for the blocks from `first` on, as many as one round takes. Returns their
    /// indices and places, and the index of the first block that remains for the next round.
    fn begin_round(
        &self,
        batch: &[SlotWrite<'_>],
        first: usize,
        failures: &mut [Option<TierError>],
    ) -> (Vec<(usize, PlacedWrite)>, usize) {
        let block_bytes = self.block_bytes();
        let mut round: Vec<(usize, PlacedWrite)> = Vec::new();
        let mut table = self.table();
        table.expect_writes(batch.len() - first);
        for (index, write) in batch.iter().enumerate().skip(first) {
            let found_bytes = write.bytes.len() as u64;
            let begun = match found_bytes == block_bytes {
                true => table.begin(write.slot, &write.key, write.position),
                false => BegunWrite::Refused(TierError::Slot(SlotError::WrongBlockBytes {
                    block_bytes,
                    found_bytes,
                })),
            };
            match begun {
                BegunWrite::Place(placed) => round.push((index, placed)),
                BegunWrite::NoPlace => return (round, index),
                BegunWrite::Refused(TierError::Slot(SlotError::SlotOccupied { slot }))
                    if is_in_round(&round, table.entry(slot)) =>
                {
                    return (round, index);
                }
                BegunWrite::Refused(error) => {
                    if let Some(failure) = failures.get_mut(index) {
                        *failure = Some(error);
                    }
                }
            }
        }
        (round, batch.len())
    }

    /// Writes the blocks of a round and records the outcome of each.
    fn write_round(
        &self,
        batch: &[SlotWrite<'_>],
        round: &[(usize, PlacedWrite)],
        failures: &mut [Option<TierError>],
    ) {
        let landed = self.write_to_places(batch, round);
        let mut table = self.table();
        for ((index, placed), landed) in round.iter().zip(landed) {
            let Some(write) = batch.get(*index) else {
                broken(format_args!("block {index} of {}", batch.len()));
            };
            let (slot, place) = (write.slot, placed.place);
            let error = match landed {
                Err(error) => {
                    table.failed(slot, (place, placed.write));
                    Some(error)
                }
                Ok(sums) => {
                    let pending = PendingWrite {
                        slot,
                        place,
                        write: placed.write,
                        record: record(write, sums),
                    };
                    let counts = table.written(pending, placed.failed_syncs);
                    (!counts).then_some(TierError::Slot(SlotError::SyncFailedMeanwhile { slot }))
                }
            };
            if let Some(failure) = failures.get_mut(*index) {
                *failure = error;
            }
        }
    }

    /// Writes the bytes of a round.
    fn write_to_places(
        &self,
        batch: &[SlotWrite<'_>],
        round: &[(usize, PlacedWrite)],
    ) -> Vec<WrittenSums> {
        let blocks: Vec<&SlotWrite<'_>> = round
            .iter()
            .filter_map(|(index, _)| batch.get(*index))
            .collect();
        let writes: Vec<FileWrite<'_>> = blocks
            .iter()
            .zip(round)
            .map(|(write, (_, placed))| FileWrite {
                offset: self.offset(placed.place),
                bytes: write.bytes,
            })
            .collect();
        // If the medium panics, the slots of the round must not stay in `Writing`. A block without
        // an outcome by then counts as not written.
        let panicked = TierError::Request(RequestError::Panicked {
            what: "a write to the disk tier",
        });
        let mut landed: Vec<WrittenSums> = vec![Err(panicked); writes.len()];
        let failed = |error| self.failed("write", error);
        // The panic hook has logged the panic's message.
        let _ = catch_unwind(AssertUnwindSafe(|| {
            if long::is_long(&self.pieces) {
                let places = writes.iter().map(|write| write.offset);
                let blocks: Vec<_> = places.zip(blocks.iter().copied()).collect();
                let to = (&*self.files.slots, &self.pieces);
                return long::write(to, &blocks, &failed, &mut landed);
            }
            self.files.slots.write_many(&writes, &mut |index, outcome| {
                // The checksums of a block are computed while other blocks are being written.
                let outcome = outcome.map_err(failed);
                if let (Some(landed), Some(write)) = (landed.get_mut(index), blocks.get(index)) {
                    let sums = || piece_sums(&self.pieces, &write.key, write.position, write.bytes);
                    *landed = outcome.map(|()| sums());
                }
            });
        }));
        landed
    }
}

/// Whether this round writes the block that the slot holds.
fn is_in_round(round: &[(usize, PlacedWrite)], held: Option<SlotEntry>) -> bool {
    held.is_some_and(|held| round.iter().any(|(_, placed)| placed.place == held.place))
}

fn record(write: &SlotWrite<'_>, sums: Box<[u64]>) -> SlotRecord {
    SlotRecord {
        key: write.key,
        parent: write.parent,
        position: write.position,
        tenant: write.tenant,
        sequence: 0,
        sums,
    }
}
