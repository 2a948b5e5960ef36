//! Batches of reads: verified, several at a time.

use std::{sync::Arc, time::Duration};

use kvtile_transfer::completion::Completion;

use super::{Disk, GROUP, given_up, threads::Threads};
use crate::{
    disk::Miss,
    tier::{BlockRead, Came, Gather, ReadReport, TierMiss},
};

/// Starts reading, in as many parts as there are threads.
pub(super) fn start(
    disk: &Arc<Disk>,
    threads: &Threads,
    mut blocks: Vec<BlockRead>,
) -> Completion<ReadReport> {
    let lost = || Err(TierMiss::Failed(given_up("a read of the disk tier")));
    let report = |blocks: Vec<Result<Came, TierMiss>>, elapsed| ReadReport {
        blocks: blocks.into(),
        elapsed,
    };
    let (completion, mut part) = Gather::begin(blocks.len(), lost, report);
    let length = blocks.len().div_ceil(threads.parts()).max(1);
    while !blocks.is_empty() {
        let rest = blocks.split_off(blocks.len().min(length));
        let mine = std::mem::replace(&mut blocks, rest);
        let rest = part.split_off(mine.len());
        let ending = std::mem::replace(&mut part, rest);
        let disk = Arc::clone(disk);
        threads.run(move || {
            let start = disk.clock.now();
            let mut outcomes = Vec::with_capacity(mine.len());
            for block in mine {
                outcomes.push(disk.read(block));
            }
            let elapsed = disk.clock.now().saturating_sub(start);
            let came = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
            disk.measured(came, elapsed);
            ending.end(outcomes, elapsed);
        });
    }
    completion
}

impl Disk {
    fn measured(&self, blocks: usize, elapsed: Duration) {
        let bytes = blocks as u64 * self.store.block_bytes();
        self.rate.measured(bytes, elapsed);
    }

    /// Reads one block and verifies it.
    fn read(&self, mut block: BlockRead) -> Result<Came, TierMiss> {
        let key = block.name.key;
        if block.name.group != GROUP {
            return Err(TierMiss::Absent);
        }
        let pinned = self.pin(std::slice::from_ref(&key));
        let Some(&slot) = pinned.ids().first() else {
            return Err(TierMiss::Absent);
        };
        let bytes = block.into.bytes_mut();
        let bytes = bytes.map_err(|error| TierMiss::Failed(error.into()))?;
        let Err(miss) = self.store.read(slot.0, &key, bytes) else {
            return Ok(Came::default());
        };
        let outcome = match miss.clone() {
            Miss::Empty | Miss::WrongKey | Miss::Replaced => return Err(TierMiss::Absent),
            Miss::Io(error) | Miss::Buffer(error) => TierMiss::Failed(error),
            Miss::Checksum | Miss::Torn | Miss::Truncated => TierMiss::Damaged {
                what: miss.to_string(),
            },
        };
        log::warn!(
            "block {key} in slot {} of the {} tier is lost: {miss}",
            slot.0,
            self.id
        );
        self.remove_damaged(std::slice::from_ref(&key));
        self.erase(&[slot]);
        Err(outcome)
    }
}
