//! Batched reads of parts, and their assembly.
//!
//! ```text
//! for each part of a cover: start to read and verify it into staging memory
//! for each read, oldest first: wait ─► copy its runs into the host blocks
//! no staging memory is free ─► wait for the oldest read; without one, for another thread
//! a part fails ─► the block is a miss; once more, if other parts cover it now
//! ```

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
    sync::Arc,
};

use kvtile_layout::broken;
use kvtile_transfer::{LeaseMode, completion::Completion};

use super::{
    PartsShared, index::PartCover, part::FollowedPart, slice::SlicedBytes, staging::StagedPlaces,
};
use crate::{
    clock::Clock,
    disk::{BatchReader, GROUP, StoreCounter},
    error::TierError,
    rate::TierRate,
    tier::{BlockRead, ReadReport, ReadSuccess, TierMiss},
};

/// How often a block is tried: the second time with the parts that cover it then.
const TRIES: usize = 2;

/// Counters of a [`PartsTier`](super::PartsTier) since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PartsStats {
    /// Blocks, or pieces of blocks, that were assembled.
    pub assembled: u64,
    /// Blocks of parts that were read and verified.
    pub part_reads: u64,
    /// Requested blocks that were no hit, because parts were absent, damaged or not readable.
    pub misses: u64,
    /// Those of the misses with a part that was damaged or not readable.
    pub damaged: u64,
}

#[derive(Debug, Default)]
pub(super) struct PartsCounters {
    assembled: StoreCounter,
    part_reads: StoreCounter,
    misses: StoreCounter,
    damaged: StoreCounter,
}

impl PartsCounters {
    pub(super) fn snapshot(&self) -> PartsStats {
        PartsStats {
            assembled: self.assembled.get(),
            part_reads: self.part_reads.get(),
            misses: self.misses.get(),
            damaged: self.damaged.get(),
        }
    }

    fn count(&self, outcome: &Result<ReadSuccess, TierMiss>) {
        match outcome {
            Ok(_) => self.assembled.add(1),
            Err(TierMiss::Absent) => self.misses.add(1),
            Err(_) => {
                self.misses.add(1);
                self.damaged.add(1);
            }
        }
    }
}

/// Blocks of a batch, by their indices.
struct AssembledBatch<'a> {
    blocks: &'a mut [BlockRead],
    /// Why blocks did not come.
    missed: BTreeMap<usize, TierMiss>,
    /// Bytes read of the parts.
    bytes: u64,
}

impl BatchReader for PartsShared {
    fn measures(&self) -> (&dyn Clock, &TierRate) {
        (&*self.context.clock, &self.rate)
    }

    /// The tier of a part may have threads of its own.
    fn read_all(
        &self,
        blocks: &mut [BlockRead],
        _: usize,
    ) -> (Vec<Result<ReadSuccess, TierMiss>>, u64) {
        let of_group = blocks.iter().enumerate();
        let of_group = of_group.filter(|(_, block)| block.name.group == GROUP);
        let mut left: Vec<usize> = of_group.map(|(at, _)| at).collect();
        let mut outcomes: Vec<Result<ReadSuccess, TierMiss>> =
            blocks.iter().map(|_| Err(TierMiss::Absent)).collect();
        let mut bytes = 0;
        for _ in 0..TRIES {
            let (parts, of_part, covered) = self.plan(blocks, &left);
            let mut batch = AssembledBatch {
                blocks,
                missed: BTreeMap::new(),
                bytes: 0,
            };
            self.read_parts(&parts, of_part, &mut batch);
            bytes += batch.bytes;
            let mut missed = batch.missed;
            left = missed.keys().copied().collect();
            for at in covered {
                let outcome = match missed.remove(&at) {
                    None => Ok(ReadSuccess::default()),
                    Some(miss) => Err(miss),
                };
                if let Some(one) = outcomes.get_mut(at) {
                    *one = outcome;
                }
            }
            if left.is_empty() {
                break;
            }
            // The tiers of the parts do not find the blocks that failed any more.
            self.absorb();
        }
        for outcome in &outcomes {
            self.counters.count(outcome);
        }
        (outcomes, bytes)
    }
}

/// The parts, the blocks to read of each part, and the blocks that parts cover.
type ReadPlan = (
    Vec<Arc<FollowedPart>>,
    BTreeMap<usize, Vec<usize>>,
    Vec<usize>,
);

impl PartsShared {
    fn plan(&self, blocks: &[BlockRead], left: &[usize]) -> ReadPlan {
        let state = self.state.read();
        let mut of_part: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        let mut covered = Vec::new();
        for &at in left {
            let block = blocks.get(at);
            let cover: Option<PartCover> =
                block.and_then(|block| state.index.cover_of(&block.name.key));
            let Some(cover) = cover else { continue };
            covered.push(at);
            for &part in &*cover {
                of_part.entry(part).or_default().push(at);
            }
        }
        (state.parts.clone(), of_part, covered)
    }

    /// Reads blocks of parts, and copies what they have of the own blocks. It starts the reads of all parts before it waits
    /// for the first of them, as far as there is staging memory.
    fn read_parts(
        &self,
        parts: &[Arc<FollowedPart>],
        of_part: BTreeMap<usize, Vec<usize>>,
        batch: &mut AssembledBatch<'_>,
    ) {
        let mut started: VecDeque<StartedRead<'_>> = VecDeque::new();
        for (number, mut left) in of_part {
            let Some(part) = parts.get(number) else {
                continue;
            };
            loop {
                // A block that lacks another part is lost already.
                left.retain(|at| !batch.missed.contains_key(at));
                if left.is_empty() {
                    break;
                }
                let places = match part.staging.try_take(left.len()) {
                    Some(places) => places,
                    None => match started.pop_front() {
                        Some(oldest) => {
                            batch.finish(oldest, &self.counters);
                            continue;
                        }
                        // This thread holds no memory for which another one may wait.
                        None => part.staging.take(left.len()),
                    },
                };
                let rest = left.split_off(left.len().min(places.blocks.len()));
                match batch.start(part, &left, places) {
                    // A tier without threads has ended it, and its bytes are still in the core's cache.
                    Some(read) if read.completion.is_complete() => {
                        batch.finish(read, &self.counters);
                    }
                    read => started.extend(read),
                }
                left = rest;
            }
        }
        for read in started {
            batch.finish(read, &self.counters);
        }
    }
}

/// Reads of blocks of a part that have begun, with the memory that they read into.
struct StartedRead<'a> {
    part: &'a FollowedPart,
    completion: Completion<ReadReport>,
    /// The block of the batch, its place in staging memory and its pieces, for each block that is read.
    sought: Vec<(usize, usize, Range<usize>)>,
    places: StagedPlaces<'a>,
}

impl AssembledBatch<'_> {
    /// A block did not come. Its first miss is the outcome.
    fn miss(&mut self, at: usize, miss: TierMiss) {
        self.missed.entry(at).or_insert(miss);
    }

    /// Starts to read blocks of a part, each into one of `places`.
    fn start<'a>(
        &mut self,
        part: &'a FollowedPart,
        blocks: &[usize],
        places: StagedPlaces<'a>,
    ) -> Option<StartedRead<'a>> {
        let mut reads = Vec::with_capacity(blocks.len());
        let mut sought = Vec::with_capacity(blocks.len());
        for (&at, &place) in blocks.iter().zip(&places.blocks) {
            match self.begin(part, (at, place)) {
                Ok(None) => {}
                Ok(Some((read, pieces))) => {
                    reads.push(read);
                    sought.push((at, place, pieces));
                }
                Err(error) => self.miss(at, TierMiss::Failed(error)),
            }
        }
        (!reads.is_empty()).then(|| StartedRead {
            part,
            // Tiers end it by their deadlines.
            completion: part.tier.read(reads),
            sought,
            places,
        })
    }

    /// Waits for reads, and copies what came.
    fn finish(&mut self, read: StartedRead<'_>, counters: &PartsCounters) {
        let StartedRead {
            part,
            completion,
            sought,
            places,
        } = read;
        let report = completion.wait();
        for ((at, place, pieces), outcome) in sought.into_iter().zip(report.blocks.iter()) {
            let copied = match outcome {
                Err(miss) => Err(miss.clone()),
                Ok(_) => {
                    counters.part_reads.add(1);
                    let from = part.staging.lease(place, &pieces, LeaseMode::Read);
                    from.and_then(|from| {
                        self.bytes += from.bytes()?.len() as u64;
                        self.copy(part, at, (from.start(), from.bytes()?))
                    })
                    .map_err(TierMiss::Failed)
                }
            };
            if let Err(miss) = copied {
                self.miss(at, miss);
            }
        }
        drop(places);
    }

    fn block(&mut self, at: usize) -> &mut BlockRead {
        let blocks = self.blocks.len();
        match self.blocks.get_mut(at) {
            Some(block) => block,
            None => broken(format_args!("block {at} of a batch of {blocks}")),
        }
    }

    /// The read of a part's block; `None` if the part has nothing of the requested pieces.
    fn begin(
        &mut self,
        part: &FollowedPart,
        (at, place): (usize, usize),
    ) -> Result<Option<(BlockRead, Range<usize>)>, TierError> {
        let block = self.block(at);
        let start = block.into.start();
        let wanted = start..start + block.into.bytes()?.len() as u64;
        let Some(pieces) = part.slice.pieces(wanted, &part.staging.pieces) else {
            return Ok(None);
        };
        let into = part.staging.lease(place, &pieces, LeaseMode::Write)?;
        let name = block.name;
        Ok(Some((BlockRead { name, into }, pieces)))
    }

    fn copy(
        &mut self,
        part: &FollowedPart,
        at: usize,
        (start, bytes): (u64, &[u8]),
    ) -> Result<(), TierError> {
        let block = self.block(at);
        let mut into = SlicedBytes {
            start: block.into.start(),
            bytes: block.into.bytes_mut()?,
        };
        let from = SlicedBytes { start, bytes };
        match part.slice.copy(&from, &mut into) {
            Some(_) => Ok(()),
            None => broken(format_args!(
                "runs of part {} outside the bytes {start}.. that were read",
                part.part
            )),
        }
    }
}
