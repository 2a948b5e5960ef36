//! Reading blocks, many at a time.

use kvtile_blocks::BlockKey;
use kvtile_layout::broken;

use super::{
    super::{medium::FileRead, record::content_checksum},
    SlotRead, SlotStore, is_end,
    report::Miss::{self, Buffer, Checksum, Io, Replaced, Truncated},
    table::Entry,
};
use crate::error::TierError;

impl SlotStore {
    /// Reads the block of `slot`, which must be `key`, and verifies it: a batch of one.
    ///
    /// # Errors
    /// Why there is no such block. What `buffer` holds then must not be used.
    pub fn read(&self, slot: u32, key: &BlockKey, buffer: &mut [u8]) -> Result<(), Miss> {
        let key = *key;
        match self.read_many(&mut [SlotRead { slot, key, buffer }]).pop() {
            Some(read) => read,
            None => broken(format_args!("no outcome of the read of slot {slot}")),
        }
    }

    /// Reads blocks and verifies them, many at a time: the outcome of each, in their order. What the
    /// buffer of one that failed holds must not be used. Buffers whose address is a multiple of 4096 are
    /// read past the page cache where the file system has direct I/O; blocks that are neighbours on the
    /// disk are read in one piece.
    pub fn read_many(&self, batch: &mut [SlotRead<'_>]) -> Vec<Result<(), Miss>> {
        let found = self.find(batch);
        let mut outcomes = Vec::with_capacity(batch.len());
        let mut entries = Vec::with_capacity(batch.len());
        let mut reads = Vec::with_capacity(batch.len());
        for (index, (read, found)) in batch.iter_mut().zip(found).enumerate() {
            outcomes.push(match found {
                Ok(entry) => {
                    entries.push((index, read.slot, entry));
                    reads.push(FileRead {
                        offset: self.offset(entry.place),
                        bytes: read.buffer,
                    });
                    None
                }
                Err(miss) => Some(Err(miss)),
            });
        }
        // Blocks are verified as they arrive, while others are read.
        self.slots.read_many(&mut reads, &mut |read, bytes| {
            let Some((index, _, entry)) = entries.get(read) else {
                broken(format_args!("read {read} of {}", entries.len()));
            };
            if let Some(outcome) = outcomes.get_mut(*index) {
                *outcome = Some(self.verified(entry, bytes));
            }
        });
        self.tell_replaced(&entries, &mut outcomes);
        let count = outcomes.len();
        let outcome = |(index, outcome): (usize, Option<_>)| match outcome {
            Some(outcome) => outcome,
            None => broken(format_args!("no outcome of read {index} of {count}")),
        };
        let outcomes: Vec<_> = outcomes.into_iter().enumerate().map(outcome).collect();
        self.count_reads(&outcomes);
        outcomes
    }

    /// The entries of the blocks that are there.
    fn find(&self, batch: &[SlotRead<'_>]) -> Vec<Result<Entry, Miss>> {
        let block_bytes = self.block_bytes();
        let table = self.table();
        let find = |read: &SlotRead<'_>| {
            let found_bytes = read.buffer.len() as u64;
            if found_bytes != block_bytes {
                return Err(Buffer(TierError::WrongBlockBytes {
                    block_bytes,
                    found_bytes,
                }));
            }
            table.find(read.slot, &read.key)
        };
        batch.iter().map(find).collect()
    }

    fn verified(&self, entry: &Entry, read: std::io::Result<&[u8]>) -> Result<(), Miss> {
        let bytes = read.map_err(|error| match is_end(&error) {
            true => Truncated,
            false => Io(self.failed("read", error)),
        })?;
        match content_checksum(&entry.key, entry.position, bytes) == entry.content {
            true => Ok(()),
            false => Err(Checksum),
        }
    }

    /// A place that was given to another block meanwhile is no sign of damage.
    fn tell_replaced(
        &self,
        entries: &[(usize, u32, Entry)],
        outcomes: &mut [Option<Result<(), Miss>>],
    ) {
        let failed = |outcome: &Option<Result<(), Miss>>| matches!(outcome, Some(Err(_)));
        if !outcomes.iter().any(failed) {
            return;
        }
        let table = self.table();
        for (index, slot, entry) in entries {
            if let Some(outcome) = outcomes.get_mut(*index)
                && failed(outcome)
                && !table.holds(*slot, entry.write)
            {
                *outcome = Some(Err(Replaced));
            }
        }
    }

    fn count_reads(&self, outcomes: &[Result<(), Miss>]) {
        self.counters.reads.add(outcomes.len() as u64);
        for outcome in outcomes {
            match outcome {
                Ok(()) => self.counters.read_bytes.add(self.block_bytes()),
                Err(miss) => self.counters.count_miss(miss),
            }
        }
    }
}
