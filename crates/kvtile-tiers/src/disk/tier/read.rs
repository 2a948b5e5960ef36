//! Batched reads: many blocks in flight, each verified as soon as it arrives.

use std::sync::Arc;

use kvtile_blocks::{BlockId, BlockKey, pool::PinnedBlocks};
use kvtile_layout::broken;
use kvtile_transfer::completion::Completion;

use super::{DiskTierShared, given_up, group::DiskGroup, threads::DiskThreads};
use crate::{
    clock::Clock,
    disk::{SlotMiss, SlotRead},
    rate::TierRate,
    tier::{BlockRead, OutcomeGather, ReadReport, ReadSuccess, TierMiss},
};

/// The blocks that one thread keeps in flight; a longer batch is split over several threads.
const BLOCKS_PER_THREAD: usize = 32;

/// The reading part of a tier, which its threads share.
pub(crate) trait BatchReader: Send + Sync + 'static {
    /// Reads and verifies blocks, or pieces of them; up to `threads` threads share long blocks. Returns
    /// their outcomes and the number of bytes read.
    fn read_all(
        &self,
        blocks: &mut [BlockRead],
        threads: usize,
    ) -> (Vec<Result<ReadSuccess, TierMiss>>, u64);

    /// The clock that measures the reads, and their rate.
    fn measures(&self) -> (&dyn Clock, &TierRate);
}

/// Starts a batch of reads, split over several threads if it is long.
pub(crate) fn start<R: BatchReader>(
    disk: &Arc<R>,
    threads: &DiskThreads,
    mut blocks: Vec<BlockRead>,
) -> Completion<ReadReport> {
    let lost = || Err(TierMiss::Failed(given_up("a read of the disk tier")));
    let report = |blocks: Vec<Result<ReadSuccess, TierMiss>>, elapsed| ReadReport {
        blocks: blocks.into(),
        elapsed,
    };
    let (completion, mut part) = OutcomeGather::begin(blocks.len(), lost, report);
    let parts = blocks.len().div_ceil(BLOCKS_PER_THREAD);
    let parts = parts.clamp(1, threads.parts());
    let length = blocks.len().div_ceil(parts).max(1);
    let of_part = threads.parts() / parts;
    while !blocks.is_empty() {
        let rest = blocks.split_off(blocks.len().min(length));
        let mut mine = std::mem::replace(&mut blocks, rest);
        let rest = part.split_off(mine.len());
        let ending = std::mem::replace(&mut part, rest);
        let disk = Arc::clone(disk);
        threads.run(move || {
            let (clock, rate) = disk.measures();
            let start = clock.now();
            let (outcomes, bytes) = disk.read_all(&mut mine, of_part);
            drop(mine);
            let elapsed = clock.now().saturating_sub(start);
            rate.measured(bytes, elapsed);
            ending.end(outcomes, elapsed);
        });
    }
    completion
}

/// A block of a batch that is on the disk, with its pin.
struct PinnedRead {
    /// Its index in the batch.
    at: usize,
    key: BlockKey,
    slot: BlockId,
    /// The number of bytes to read.
    bytes: u64,
    _pin: PinnedBlocks,
}

/// The outcome of the read of a block.
pub(super) type DiskReadOutcome = Result<ReadSuccess, TierMiss>;

impl BatchReader for DiskTierShared {
    fn measures(&self) -> (&dyn Clock, &TierRate) {
        (&*self.clock, &self.rate)
    }

    /// Blocks that are damaged or cannot be read are removed.
    fn read_all(&self, blocks: &mut [BlockRead], threads: usize) -> (Vec<DiskReadOutcome>, u64) {
        // Blocks of groups that the tier does not have stay absent.
        let mut outcomes: Vec<DiskReadOutcome> =
            blocks.iter().map(|_| Err(TierMiss::Absent)).collect();
        let mut came = 0;
        for group in &self.groups {
            let of_group = blocks.iter_mut().enumerate();
            let of_group = of_group.filter(|(_, block)| block.name.group == group.id);
            came += group.read_all(of_group, threads, &mut outcomes);
        }
        (outcomes, came)
    }
}

impl DiskGroup {
    /// Reads blocks of the group, each with its index in the batch, and sets their outcomes. Returns
    /// the number of bytes read.
    fn read_all<'b>(
        &self,
        blocks: impl Iterator<Item = (usize, &'b mut BlockRead)>,
        threads: usize,
        outcomes: &mut [DiskReadOutcome],
    ) -> u64 {
        let mut there = Vec::new();
        let mut reads = Vec::new();
        for (at, block) in blocks {
            let key = block.name.key;
            let pin = self.pin(std::slice::from_ref(&key));
            let Some(&slot) = pin.ids().first() else {
                continue;
            };
            let start = block.into.start();
            match block.into.bytes_mut() {
                Ok(buffer) => {
                    let bytes = buffer.len() as u64;
                    reads.push(SlotRead {
                        slot: slot.0,
                        key,
                        start,
                        buffer,
                    });
                    there.push(PinnedRead {
                        at,
                        key,
                        slot,
                        bytes,
                        _pin: pin,
                    });
                }
                Err(error) => set(outcomes, at, Err(TierMiss::Failed(error.into()))),
            }
        }
        let read = self.store.read_with(threads, &mut reads);
        let mut came = 0;
        for (there, read) in there.iter().zip(read) {
            let outcome = match read {
                Ok(()) => {
                    came += there.bytes;
                    Ok(ReadSuccess::default())
                }
                Err(miss) => Err(self.missed(there, miss)),
            };
            set(outcomes, there.at, outcome);
        }
        came
    }
}

impl DiskGroup {
    /// Maps a miss of the slot store to a miss of the tier; a lost block is removed.
    fn missed(&self, there: &PinnedRead, miss: SlotMiss) -> TierMiss {
        let what = miss.to_string();
        let outcome = match miss {
            SlotMiss::Empty | SlotMiss::WrongKey | SlotMiss::Replaced => return TierMiss::Absent,
            SlotMiss::Io(error) | SlotMiss::Buffer(error) => TierMiss::Failed(error),
            SlotMiss::Checksum | SlotMiss::Torn | SlotMiss::Truncated => {
                TierMiss::Damaged { what: what.clone() }
            }
        };
        log::warn!(
            "block {} in slot {} of group {} of the {} tier is lost: {what}",
            there.key,
            there.slot.0,
            self.id.0,
            self.tier
        );
        self.remove_damaged(std::slice::from_ref(&there.key));
        self.erase(&[there.slot]);
        outcome
    }
}

/// Sets the outcome of block `at` of a batch.
pub(in super::super) fn set(outcomes: &mut [DiskReadOutcome], at: usize, outcome: DiskReadOutcome) {
    let blocks = outcomes.len();
    let Some(one) = outcomes.get_mut(at) else {
        broken(format_args!("the outcome of block {at} of {blocks}"))
    };
    *one = outcome;
}
