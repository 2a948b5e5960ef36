//! Batched reads of a follower.
//!
//! ```text
//! index ─► place ─► record, read now ─► is it this block? ─► bytes ─► checksums of the record
//!                        no: absent                             no ─► record, read again
//!                                                          changed: absent    same: damaged
//! ```
//!
//! The writer erases a record on the disk before it writes other bytes to its place. So if bytes do
//! not match a record, and the record is still the same afterwards, the bytes are damaged.

use std::{io, ops::Range, sync::Arc};

use kvtile_blocks::BlockKey;
use kvtile_layout::broken;

use super::{
    super::{
        SlotMiss,
        folder::{records_file, slots_file},
        manifest::file_name,
        medium::FileRead,
        record::{DecodedRecord, SlotRecord},
        store::{ExpectedBlock, ReadSource, is_end, pieces_of, read_expected},
        tier::{BatchReader, set},
    },
    FollowerShared,
    folder::{FollowedFiles, FollowedGroup},
    index::FoundBlock,
};
use crate::{
    clock::Clock,
    error::TierError,
    rate::TierRate,
    tier::{BlockRead, ReadSuccess, TierMiss},
};

type FollowerOutcome = Result<ReadSuccess, TierMiss>;

/// A block of a batch that the index has.
struct FollowedRead<'a> {
    block: SoughtBlock,
    /// The bytes in the data file.
    read: FileRead<'a>,
    pieces: Range<usize>,
}

/// A block of a batch, as the index found it.
#[derive(Clone, Copy)]
struct SoughtBlock {
    /// Its index in the batch.
    at: usize,
    key: BlockKey,
    found: FoundBlock,
}

impl BatchReader for FollowerShared {
    fn measures(&self) -> (&dyn Clock, &TierRate) {
        (&*self.clock, &self.rate)
    }

    /// Blocks that are damaged or cannot be read are not found again until their records change.
    fn read_all(&self, blocks: &mut [BlockRead], threads: usize) -> (Vec<FollowerOutcome>, u64) {
        let mut outcomes: Vec<FollowerOutcome> =
            blocks.iter().map(|_| Err(TierMiss::Absent)).collect();
        let mut came = 0;
        for group in &self.groups {
            let (files, found) = look_up(group, blocks);
            if let Some(files) = files {
                let wanted = wanted(&files, (blocks, found), &mut outcomes);
                came += self.read_wanted((group, &files, threads), wanted, &mut outcomes);
            }
            let ours = blocks.iter().zip(&outcomes);
            let damaged = ours.filter(|(block, outcome)| {
                let is_lost =
                    matches!(outcome, Err(TierMiss::Damaged { .. } | TierMiss::Failed(_)));
                is_lost && block.name.group == group.id
            });
            group.damaged.add(damaged.count() as u64);
        }
        self.counters.count_reads(&outcomes, came);
        (outcomes, came)
    }
}

/// The blocks of a batch that the index has. Sets the outcomes of blocks whose memory has no valid
/// length or is not writable.
fn wanted<'a>(
    files: &FollowedFiles,
    (blocks, found): (&'a mut [BlockRead], Vec<Option<FoundBlock>>),
    outcomes: &mut [FollowerOutcome],
) -> Vec<FollowedRead<'a>> {
    let mut wanted = Vec::with_capacity(blocks.len());
    for ((at, block), found) in blocks.iter_mut().enumerate().zip(found) {
        let Some(found) = found else {
            continue;
        };
        let key = block.name.key;
        let start = block.into.start();
        let bytes = block.into.bytes_mut().map_err(TierError::from);
        let bytes = bytes.and_then(|bytes| {
            let pieces = pieces_of(&files.pieces, (start, bytes.len() as u64))?;
            Ok((pieces, bytes))
        });
        match bytes {
            Err(error) => set(outcomes, at, Err(TierMiss::Failed(error))),
            Ok((pieces, bytes)) => wanted.push(FollowedRead {
                block: SoughtBlock { at, key, found },
                read: FileRead {
                    offset: u64::from(found.place) * files.slot_bytes + start,
                    bytes,
                },
                pieces,
            }),
        }
    }
    wanted
}

/// The files of a group, and what its index knows of each block.
fn look_up(
    group: &FollowedGroup,
    blocks: &[BlockRead],
) -> (Option<Arc<FollowedFiles>>, Vec<Option<FoundBlock>>) {
    let view = group.view.read();
    let find = |block: &BlockRead| match block.name.group == group.id {
        true => view.index.find(&block.name.key),
        false => None,
    };
    (view.files.clone(), blocks.iter().map(find).collect())
}

impl FollowerShared {
    /// Reads blocks and verifies them with their records. Returns the number of bytes read.
    fn read_wanted(
        &self,
        (group, files, threads): (&FollowedGroup, &FollowedFiles, usize),
        wanted: Vec<FollowedRead<'_>>,
        outcomes: &mut [FollowerOutcome],
    ) -> u64 {
        let records = read_records(files, &wanted);
        let mut there = Vec::with_capacity(wanted.len());
        let mut reads = Vec::with_capacity(wanted.len());
        let mut expected = Vec::with_capacity(wanted.len());
        for (wanted, record) in wanted.into_iter().zip(records) {
            let block = wanted.block;
            match record {
                Ok(DecodedRecord::Stored(record)) if record.key == block.key => {
                    expected.push(ExpectedBlock {
                        key: record.key,
                        position: record.position,
                        pieces: wanted.pieces,
                        sums: record.sums.clone(),
                    });
                    reads.push(wanted.read);
                    there.push((block, record));
                }
                // The writer has erased or replaced the block, and is perhaps doing so now.
                Ok(_) => self.stop_finding(group, &block),
                // The file is shorter than at the last refresh.
                Err(error) if is_end(&error) => {}
                Err(error) => {
                    let file = file_name(&*self.medium, &records_file(files.number));
                    let error = TierError::file("read", file, error);
                    set(outcomes, block.at, Err(TierMiss::Failed(error)));
                    self.stop_finding(group, &block);
                }
            }
        }
        let mut came = 0;
        for (read, ended) in self.read_slots((files, threads), &mut reads, &expected) {
            let (Some((block, record)), Some(bytes)) = (there.get(read), reads.get(read)) else {
                broken(format_args!("read {read} of {}", there.len()))
            };
            let outcome = match ended {
                Ok(()) => {
                    came += bytes.bytes.len() as u64;
                    Ok(ReadSuccess::default())
                }
                Err(miss) => Err(self.missed((group, files), (block, record), miss)),
            };
            set(outcomes, block.at, outcome);
        }
        came
    }

    /// Reads blocks of the data file and verifies them. Returns the index and the outcome of each.
    fn read_slots(
        &self,
        (files, threads): (&FollowedFiles, usize),
        reads: &mut [FileRead<'_>],
        expected: &[ExpectedBlock],
    ) -> Vec<(usize, Result<(), SlotMiss>)> {
        let Some(slots) = files.slots.get() else {
            let missing = (0..reads.len()).map(|read| (read, Err(SlotMiss::Truncated)));
            return missing.collect();
        };
        let file = || file_name(&*self.medium, &slots_file(files.number));
        let mut ended = Vec::with_capacity(reads.len());
        let from = ReadSource {
            slots,
            pieces: &files.pieces,
            threads,
            failed: &|error| TierError::file("read", file(), error),
        };
        read_expected(&from, (reads, expected), &mut |read, outcome| {
            ended.push((read, outcome));
        });
        ended
    }

    /// Maps a failed read to a miss of the tier. The block is damaged only if its record is still
    /// the one that was read before the bytes.
    fn missed(
        &self,
        (group, files): (&FollowedGroup, &FollowedFiles),
        (block, record): (&SoughtBlock, &SlotRecord),
        miss: SlotMiss,
    ) -> TierMiss {
        let now = read_record(files, block.found.place);
        let is_same = matches!(&now, Ok(DecodedRecord::Stored(now)) if now == record);
        if !is_same {
            self.stop_finding(group, block);
            return TierMiss::Absent;
        }
        if !files.are_named() {
            // The records are those of a folder that was cleared or removed.
            return TierMiss::Absent;
        }
        let what = miss.to_string();
        log::warn!(
            "block {} in place {} of the folder that the {} tier follows cannot be used: {what}",
            block.key,
            block.found.place,
            self.id
        );
        self.stop_finding(group, block);
        match miss {
            SlotMiss::Io(error) => TierMiss::Failed(error),
            _ => TierMiss::Damaged { what },
        }
    }

    /// Lookups do not find the block until its record changes.
    fn stop_finding(&self, group: &FollowedGroup, block: &SoughtBlock) {
        let mut view = group.view.write();
        if view.index.drop_block(&block.key, &block.found) {
            self.events.removed(self.id, group.id, &[block.key]);
        }
    }
}

/// Reads the current record of each block.
fn read_records(
    files: &FollowedFiles,
    wanted: &[FollowedRead<'_>],
) -> Vec<io::Result<DecodedRecord>> {
    let Some(file) = files.records.get() else {
        let missing = |_: &FollowedRead<'_>| Err(io::ErrorKind::UnexpectedEof.into());
        return wanted.iter().map(missing).collect();
    };
    let mut buffer = vec![0; wanted.len() * files.form.bytes()];
    let places = wanted.iter().map(|wanted| wanted.block.found.place);
    let each = places
        .clone()
        .zip(buffer.chunks_exact_mut(files.form.bytes()));
    let mut reads: Vec<FileRead<'_>> = each
        .map(|(place, bytes)| FileRead {
            offset: u64::from(place) * files.form.stride(),
            bytes,
        })
        .collect();
    let places: Vec<u32> = places.collect();
    let none = |_: &u32| Err(io::Error::other("the read did not end"));
    let mut records: Vec<io::Result<DecodedRecord>> = places.iter().map(none).collect();
    file.read_many(&mut reads, &mut |read, bytes| {
        let (Some(place), Some(record)) = (places.get(read), records.get_mut(read)) else {
            broken(format_args!("record {read} of {}", places.len()))
        };
        *record = bytes.map(|bytes| decode(files, *place, bytes));
    });
    records
}

/// Reads the current record of one place.
fn read_record(files: &FollowedFiles, place: u32) -> io::Result<DecodedRecord> {
    let file = files.records.get();
    let file = file.ok_or(io::ErrorKind::UnexpectedEof)?;
    let mut bytes = vec![0; files.form.bytes()];
    file.read_exact_at(u64::from(place) * files.form.stride(), &mut bytes)?;
    Ok(decode(files, place, &bytes))
}

fn decode(files: &FollowedFiles, place: u32, bytes: &[u8]) -> DecodedRecord {
    SlotRecord::decode(files.form, bytes, (&files.store, place))
}
