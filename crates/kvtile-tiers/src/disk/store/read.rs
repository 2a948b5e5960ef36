//! Reads blocks in batches.

use std::{io, ops::Range};

use kvtile_blocks::BlockKey;
use kvtile_layout::broken;

use super::{
    super::{
        medium::{FileRead, MediumFile},
        record::are_whole,
    },
    SlotRead, SlotStore, is_end, long,
    report::SlotMiss::{self, Buffer, Checksum, Io, Replaced, Truncated},
    slots::SlotEntry,
};
use crate::{
    error::{SlotError, TierError},
    tier::BlockPieces,
};

/// A block of a batch that the table has found.
struct ReadEntry {
    /// Its index in the batch.
    at: usize,
    slot: u32,
    entry: SlotEntry,
}

/// The facts that verify a read.
pub(in super::super) struct ExpectedBlock {
    pub(in super::super) key: BlockKey,
    pub(in super::super) position: u32,
    /// The pieces to read.
    pub(in super::super) pieces: Range<usize>,
    /// The checksums of all pieces of the block.
    pub(in super::super) sums: Box<[u64]>,
}

/// Where blocks are read from, and by how many threads a long one is.
#[derive(Clone, Copy)]
pub(in super::super) struct ReadSource<'a> {
    pub(in super::super) slots: &'a dyn MediumFile,
    pub(in super::super) pieces: &'a BlockPieces,
    pub(in super::super) threads: usize,
    /// The error of a failed read.
    pub(in super::super) failed: &'a (dyn Fn(io::Error) -> TierError + Sync),
}

impl ReadSource<'_> {
    /// The outcome of a read of the pieces `which` of a block.
    pub(super) fn verified(
        &self,
        (block, which): (&ExpectedBlock, Range<usize>),
        bytes: io::Result<&[u8]>,
    ) -> Result<(), SlotMiss> {
        let of = (&block.key, block.position, &*block.sums);
        match bytes {
            Ok(bytes) if are_whole(self.pieces, which, of, bytes) => Ok(()),
            Ok(_) => Err(Checksum),
            Err(error) if is_end(&error) => Err(Truncated),
            Err(error) => Err(Io((self.failed)(error))),
        }
    }
}

/// Reads blocks of the data file, many at a time, and verifies each as soon as its bytes arrive,
/// while others are in flight. `reads` and `expected` belong together; `ended` receives the index
/// and the outcome of each.
pub(in super::super) fn read_expected(
    from: &ReadSource<'_>,
    (reads, expected): (&mut [FileRead<'_>], &[ExpectedBlock]),
    ended: &mut dyn FnMut(usize, Result<(), SlotMiss>),
) {
    if long::is_long(from.pieces) {
        let outcomes = long::read(from, (reads, expected));
        let outcomes = outcomes.into_iter().enumerate();
        return outcomes.for_each(|(read, outcome)| ended(read, outcome));
    }
    from.slots.read_many(reads, &mut |read, bytes| {
        let Some(block) = expected.get(read) else {
            broken(format_args!("read {read} of {}", expected.len()));
        };
        ended(read, from.verified((block, block.pieces.clone()), bytes));
    });
}

/// The pieces of a block that are exactly the `length` bytes from `start` on.
pub(in super::super) fn pieces_of(
    pieces: &BlockPieces,
    (start, length): (u64, u64),
) -> Result<Range<usize>, TierError> {
    let bytes = start..start.saturating_add(length);
    if let Some(pieces) = pieces.at(&bytes) {
        return Ok(pieces);
    }
    Err(match start {
        0 => TierError::Slot(SlotError::WrongBlockBytes {
            block_bytes: pieces.block_bytes(),
            found_bytes: bytes.end,
        }),
        _ => TierError::Slot(SlotError::NoSuchPieces {
            start: bytes.start,
            end: bytes.end,
            ends: pieces.ends().into(),
        }),
    })
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
        self.read_with(1, batch)
    }

    /// As [`read_many`](SlotStore::read_many), with up to `threads` threads, which share the pieces of
    /// blocks that are longer than a piece may be ([`BlockPieces::BYTES_MAX`]). A batch that is not much
    /// longer than that is read on the caller's thread.
    pub fn read_with(
        &self,
        threads: usize,
        batch: &mut [SlotRead<'_>],
    ) -> Vec<Result<(), SlotMiss>> {
        let found = self.find(batch);
        let mut outcomes = Vec::with_capacity(batch.len());
        let mut entries = Vec::with_capacity(batch.len());
        let mut expected = Vec::with_capacity(batch.len());
        let mut reads = Vec::with_capacity(batch.len());
        for (read, found) in batch.iter_mut().zip(found) {
            outcomes.push(match found {
                Ok((there, block)) => {
                    reads.push(FileRead {
                        offset: self.offset(there.entry.place) + read.start,
                        bytes: read.buffer,
                    });
                    entries.push(there);
                    expected.push(block);
                    None
                }
                Err(miss) => Some(Err(miss)),
            });
        }
        let from = ReadSource {
            slots: &*self.files.slots,
            pieces: &self.pieces,
            threads,
            failed: &|error| self.failed("read", error),
        };
        read_expected(&from, (&mut reads, &expected), &mut |read, ended| {
            let at = entries.get(read).map(|there| there.at);
            if let Some(outcome) = at.and_then(|at| outcomes.get_mut(at)) {
                *outcome = Some(ended);
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
    fn find(&self, batch: &[SlotRead<'_>]) -> Vec<Result<(ReadEntry, ExpectedBlock), SlotMiss>> {
        let table = self.table();
        let find = |(at, read): (usize, &SlotRead<'_>)| {
            let bytes = (read.start, read.buffer.len() as u64);
            let pieces = pieces_of(&self.pieces, bytes).map_err(Buffer)?;
            let slot = read.slot;
            let entry = table.find(slot, &read.key)?;
            let expected = ExpectedBlock {
                key: read.key,
                position: entry.position,
                pieces,
                sums: table.sums(slot).into(),
            };
            Ok((ReadEntry { at, slot, entry }, expected))
        };
        batch.iter().enumerate().map(find).collect()
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
                && !table.holds(there.slot, (there.entry.place, there.entry.write))
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
