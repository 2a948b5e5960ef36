//! Counters of a follower.

use super::super::store::StoreCounter;
use crate::tier::{ReadSuccess, TierMiss};

/// Counters of a [`DiskFollower`](super::DiskFollower) since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FollowerStats {
    /// Comparisons of the index with the folder.
    pub refreshes: u64,
    /// Refreshes that failed.
    pub refresh_failures: u64,
    /// Manifests that it has followed: the first one, and one for each folder that was created anew
    /// or resized.
    pub loads: u64,
    /// Manifests that it refused: of another identity, layout, size or version, or damaged.
    pub refusals: u64,
    /// Pages of records that were compared.
    pub compared_pages: u64,
    /// Pages of records that had changed and were decoded.
    pub changed_pages: u64,
    /// Requested blocks: hits and misses.
    pub reads: u64,
    /// Bytes of hits.
    pub read_bytes: u64,
    /// Reads of blocks that the folder does not have, or no longer had when they were read.
    pub misses_absent: u64,
    /// Reads of blocks that fail their checksum or end behind their file.
    pub misses_damaged: u64,
    /// Reads that failed with an I/O error, or whose buffer has no valid length.
    pub misses_io: u64,
}

#[derive(Debug, Default)]
pub(super) struct FollowerCounters {
    pub(super) refreshes: StoreCounter,
    pub(super) refresh_failures: StoreCounter,
    pub(super) loads: StoreCounter,
    pub(super) refusals: StoreCounter,
    pub(super) compared_pages: StoreCounter,
    pub(super) changed_pages: StoreCounter,
    pub(super) reads: StoreCounter,
    pub(super) read_bytes: StoreCounter,
    pub(super) misses_absent: StoreCounter,
    pub(super) misses_damaged: StoreCounter,
    pub(super) misses_io: StoreCounter,
}

impl FollowerCounters {
    /// Counts a batch of reads, of which `bytes` came.
    pub(super) fn count_reads(&self, outcomes: &[Result<ReadSuccess, TierMiss>], bytes: u64) {
        self.reads.add(outcomes.len() as u64);
        self.read_bytes.add(bytes);
        for outcome in outcomes {
            match outcome {
                Ok(_) => {}
                Err(TierMiss::Absent) => self.misses_absent.add(1),
                Err(TierMiss::Damaged { .. }) => self.misses_damaged.add(1),
                Err(TierMiss::Failed(_)) => self.misses_io.add(1),
            }
        }
    }

    pub(super) fn snapshot(&self) -> FollowerStats {
        FollowerStats {
            refreshes: self.refreshes.get(),
            refresh_failures: self.refresh_failures.get(),
            loads: self.loads.get(),
            refusals: self.refusals.get(),
            compared_pages: self.compared_pages.get(),
            changed_pages: self.changed_pages.get(),
            reads: self.reads.get(),
            read_bytes: self.read_bytes.get(),
            misses_absent: self.misses_absent.get(),
            misses_damaged: self.misses_damaged.get(),
            misses_io: self.misses_io.get(),
        }
    }
}
