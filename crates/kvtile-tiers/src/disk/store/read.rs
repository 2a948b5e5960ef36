//! Reads blocks in batches.

use std::ops::Range;

use kvtile_blocks::BlockKey;
use kvtile_layout::broken;

use super::{
    super::{medium::FileRead, record::are_whole},
    SlotRead, SlotStore, is_end,
    report::SlotMiss::{self, Buffer, Checksum, Io, Replaced, Truncated},
    table::SlotEntry,
};
use crate::error::{SlotError, TierError};

/// A block of a batch that the table has found.
struct ReadEntry {
    /// Its index in the batch.
    at: usize,
    slot: u32,
    entry: SlotEntry,
    /// The pieces to read; `sums` are the checksums of all pieces.
    pieces: Range<usize>,
    sums: Box<[u64]>,
}

impl SlotStore {
    /// Reads the block of `slot`, which must have the key `key`, and verifies it: a batch of one.
    ///
    /// # Errors
    /// Why the block cannot be read. The content of `buffer` must not be used then.
    pub fn read(&self, slot: u32, key: &BlockKey, buffer: &mut [u8]) -> Result<(), SlotMiss> {
        let key = *key;
        let start = 0;
        let read = SlotRead {
            slot,
            key,
            start,
            buffer,
        };
        match self.read_many(&mut [read]).pop() {
            Some(read) => read,
            None => broken(format_args!("no outcome of the read of slot {slot}")),
        }
    }

    /// Reads blocks, or pieces of them, and verifies them, many at a time. Returns the outcome of
    /// each, in the order of `batch`; the buffer of a failed read must not be used. Buffers aligned
    /// to 4096 bytes are read past the page cache if the file system has direct I/O. Neighbouring
    /// blocks on the disk are read in one operation.
    pub fn read_many(&self, batch: &mut [SlotRead<'_>]) -> Vec<Result<(), SlotMiss>> {
        let found = self.find(batch);
        let mut outcomes = Vec::with_capacity(batch.len());
        let mut entries = Vec::with_capacity(batch.len());
        let mut reads = Vec::with_capacity(batch.len());
        for (read, found) in batch.iter_mut().zip(found) {
            outcomes.push(match found {
                Ok(there) => {
                    reads.push(FileRead {
                        offset: self.offset(there.entry.place) + read.start,
                        bytes: read.buffer,
                    });
                    entries.push(there);
                    None
                }
                Err(miss) => Some(Err(miss)),
            });
        }
        // Each block is verified as soon as its read completes, while others are in flight.
        self.files.slots.read_many(&mut reads, &mut |read, bytes| {
            let Some(there) = entries.get(read) else {
                broken(format_args!("read {read} of {}", entries.len()));
            };
            if let Some(outcome) = outcomes.get_mut(there.at) {
                *outcome = Some(self.verified(there, bytes));
            }
        });
        self.tell_replaced(&entries, &mut outcomes);
        let count = outcomes.len();
        let outcome = |(index, outcome): (usize, Option<_>)| match outcome {
            Some(outcome) => outcome,
            None => broken(format_args!("no outcome of read {index} of {count}")),
        };
        let outcomes: Vec<_> = outcomes.into_iter().enumerate().map(outcome).collect();
        self.count_reads(batch, &outcomes);
        outcomes
    }

    /// Looks up the blocks of a batch in the table.
    fn find(&self, batch: &[SlotRead<'_>]) -> Vec<Result<ReadEntry, SlotMiss>> {
        let table = self.table();
        let find = |(at, read): (usize, &SlotRead<'_>)| {
            let pieces = self.pieces_of(read).map_err(Buffer)?;
            let slot = read.slot;
            Ok(ReadEntry {
                at,
                slot,
                entry: table.find(slot, &read.key)?,
                pieces,
                sums: table.sums(slot).into(),
            })
        };
        batch.iter().enumerate().map(find).collect()
    }

    /// The pieces that fill a buffer.
    fn pieces_of(&self, read: &SlotRead<'_>) -> Result<Range<usize>, TierError> {
        let bytes = read.start..read.start.saturating_add(read.buffer.len() as u64);
        if let Some(pieces) = self.pieces.at(&bytes) {
            return Ok(pieces);
        }
        Err(match read.start {
            0 => TierError::Slot(SlotError::WrongBlockBytes {
                block_bytes: self.block_bytes(),
                found_bytes: bytes.end,
            }),
            _ => TierError::Slot(SlotError::NoSuchPieces {
                start: bytes.start,
                end: bytes.end,
                ends: self.pieces.ends().into(),
            }),
        })
    }

    fn verified(&self, there: &ReadEntry, read: std::io::Result<&[u8]>) -> Result<(), SlotMiss> {
        let bytes = read.map_err(|error| match is_end(&error) {
            true => Truncated,
            false => Io(self.failed("read", error)),
        })?;
        let entry = &there.entry;
        let of = (&entry.key, entry.position, &*there.sums);
        match are_whole(&self.pieces, there.pieces.clone(), of, bytes) {
            true => Ok(()),
            false => Err(Checksum),
        }
    }

    /// A failed read of a place that was reused for another block during the read is no damage.
    fn tell_replaced(&self, entries: &[ReadEntry], outcomes: &mut [Option<Result<(), SlotMiss>>]) {
        let failed = |outcome: &Option<Result<(), SlotMiss>>| matches!(outcome, Some(Err(_)));
        if !outcomes.iter().any(failed) {
            return;
        }
        let table = self.table();
        for there in entries {
            if let Some(outcome) = outcomes.get_mut(there.at)
                && failed(outcome)
                && !table.holds(there.slot, there.entry.write)
            {
                *outcome = Some(Err(Replaced));
            }
        }
    }

    fn count_reads(&self, batch: &[SlotRead<'_>], outcomes: &[Result<(), SlotMiss>]) {
        self.counters.reads.add(outcomes.len() as u64);
        for (read, outcome) in batch.iter().zip(outcomes) {
            match outcome {
                Ok(()) => self.counters.read_bytes.add(read.buffer.len() as u64),
                Err(miss) => self.counters.count_miss(miss),
            }
        }
    }
}
