//! Reading blocks, many at a time.

use std::ops::Range;

use kvtile_blocks::BlockKey;
use kvtile_layout::broken;

use super::{
    super::{medium::FileRead, record::are_whole},
    SlotRead, SlotStore, is_end,
    report::Miss::{self, Buffer, Checksum, Io, Replaced, Truncated},
    table::Entry,
};
use crate::error::TierError;

/// A block of a batch that is there.
struct There {
    /// Its position in the batch.
    at: usize,
    slot: u32,
    entry: Entry,
    /// The pieces that are read, and the checksums of all.
    pieces: Range<usize>,
    sums: Box<[u64]>,
}

impl SlotStore {
    /// Reads the block of `slot`, which must be `key`, and verifies it: a batch of one.
    ///
    /// # Errors
    /// Why there is no such block. What `buffer` holds then must not be used.
    pub fn read(&self, slot: u32, key: &BlockKey, buffer: &mut [u8]) -> Result<(), Miss> {
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

    /// Reads blocks, or pieces of them, and verifies them, many at a time: the outcome of each, in their order. What the
    /// buffer of one that failed holds must not be used. Buffers whose address is a multiple of 4096 are
    /// read past the page cache where the file system has direct I/O; blocks that are neighbours on the
    /// disk are read in one piece.
    pub fn read_many(&self, batch: &mut [SlotRead<'_>]) -> Vec<Result<(), Miss>> {
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
        // Blocks are verified as they arrive, while others are read.
        self.slots.read_many(&mut reads, &mut |read, bytes| {
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

    /// The blocks that are there.
    fn find(&self, batch: &[SlotRead<'_>]) -> Vec<Result<There, Miss>> {
        let table = self.table();
        let find = |(at, read): (usize, &SlotRead<'_>)| {
            let pieces = self.pieces_of(read).map_err(Buffer)?;
            let slot = read.slot;
            Ok(There {
                at,
                slot,
                entry: table.find(slot, &read.key)?,
                pieces,
                sums: table.sums(slot).into(),
            })
        };
        batch.iter().enumerate().map(find).collect()
    }

    /// The pieces that a buffer is for.
    fn pieces_of(&self, read: &SlotRead<'_>) -> Result<Range<usize>, TierError> {
        let bytes = read.start..read.start.saturating_add(read.buffer.len() as u64);
        if let Some(pieces) = self.pieces.at(&bytes) {
            return Ok(pieces);
        }
        Err(match read.start {
            0 => TierError::WrongBlockBytes {
                block_bytes: self.block_bytes(),
                found_bytes: bytes.end,
            },
            _ => TierError::NoSuchPieces {
                start: bytes.start,
                end: bytes.end,
                ends: self.pieces.ends().into(),
            },
        })
    }

    fn verified(&self, there: &There, read: std::io::Result<&[u8]>) -> Result<(), Miss> {
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

    /// A place that was given to another block meanwhile is no sign of damage.
    fn tell_replaced(&self, entries: &[There], outcomes: &mut [Option<Result<(), Miss>>]) {
        let failed = |outcome: &Option<Result<(), Miss>>| matches!(outcome, Some(Err(_)));
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

    fn count_reads(&self, batch: &[SlotRead<'_>], outcomes: &[Result<(), Miss>]) {
        self.counters.reads.add(outcomes.len() as u64);
        for (read, outcome) in batch.iter().zip(outcomes) {
            match outcome {
                Ok(()) => self.counters.read_bytes.add(read.buffer.len() as u64),
                Err(miss) => self.counters.count_miss(miss),
            }
        }
    }
}
