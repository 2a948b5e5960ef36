//! Counters of the store.

use std::sync::atomic::{AtomicU64, Ordering};

use super::report::SlotMiss;

/// Counters since the store was opened, and its current fill.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SlotStoreStats {
    /// Slots that hold a block.
    pub used: u64,
    /// Slots in all.
    pub slots: u64,
    /// Erased places that are free for writes.
    pub erased_places: u64,
    /// Requested blocks: hits and misses.
    pub reads: u64,
    /// Bytes of hits.
    pub read_bytes: u64,
    /// Reads of empty slots, of slots with another block, or of slots replaced during the read.
    pub misses_absent: u64,
    /// Reads of blocks that fail their checksum.
    pub misses_checksum: u64,
    /// Reads past the end of a truncated file.
    pub misses_truncated: u64,
    /// Reads that failed with an I/O error, or whose buffer has no valid length.
    pub misses_io: u64,
    /// Blocks passed to writes: written and failed ones.
    pub writes: u64,
    /// Bytes of blocks written.
    pub written_bytes: u64,
    /// Writes that failed.
    pub write_failures: u64,
    /// Writes that waited for a sync because no erased place was free.
    pub erasure_waits: u64,
    /// Slots that were erased.
    pub erased: u64,
    /// Syncs.
    pub syncs: u64,
    /// Syncs that failed.
    pub sync_failures: u64,
    /// Blocks that were written and then lost to a failed sync.
    pub lost: u64,
}

impl SlotStoreStats {
    /// Adds the counts of another store of the same folder.
    pub(crate) fn add(&mut self, other: &SlotStoreStats) {
        let SlotStoreStats {
            used,
            slots,
            erased_places,
            reads,
            read_bytes,
            misses_absent,
            misses_checksum,
            misses_truncated,
            misses_io,
            writes,
            written_bytes,
            write_failures,
            erasure_waits,
            erased,
            syncs,
            sync_failures,
            lost,
        } = other;
        self.used += used;
        self.slots += slots;
        self.erased_places += erased_places;
        self.reads += reads;
        self.read_bytes += read_bytes;
        self.misses_absent += misses_absent;
        self.misses_checksum += misses_checksum;
        self.misses_truncated += misses_truncated;
        self.misses_io += misses_io;
        self.writes += writes;
        self.written_bytes += written_bytes;
        self.write_failures += write_failures;
        self.erasure_waits += erasure_waits;
        self.erased += erased;
        self.syncs += syncs;
        self.sync_failures += sync_failures;
        self.lost += lost;
    }
}

#[derive(Debug, Default)]
pub(super) struct StoreCounters {
    pub(super) reads: StoreCounter,
    pub(super) read_bytes: StoreCounter,
    misses_absent: StoreCounter,
    misses_checksum: StoreCounter,
    misses_truncated: StoreCounter,
    misses_io: StoreCounter,
    pub(super) writes: StoreCounter,
    pub(super) written_bytes: StoreCounter,
    pub(super) write_failures: StoreCounter,
    pub(super) erasure_waits: StoreCounter,
    pub(super) erased: StoreCounter,
    pub(super) syncs: StoreCounter,
    pub(super) sync_failures: StoreCounter,
    pub(super) lost: StoreCounter,
}

/// A counter with relaxed memory ordering: it synchronises nothing.
#[derive(Debug, Default)]
pub(crate) struct StoreCounter(AtomicU64);

impl StoreCounter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl StoreCounters {
    pub(super) fn count_miss(&self, miss: &SlotMiss) {
        let counter = match miss {
            SlotMiss::Empty | SlotMiss::WrongKey | SlotMiss::Replaced => &self.misses_absent,
            SlotMiss::Checksum | SlotMiss::Torn => &self.misses_checksum,
            SlotMiss::Truncated => &self.misses_truncated,
            SlotMiss::Io(_) | SlotMiss::Buffer(_) => &self.misses_io,
        };
        counter.add(1);
    }

    pub(super) fn snapshot(&self) -> SlotStoreStats {
        SlotStoreStats {
            used: 0,
            slots: 0,
            erased_places: 0,
            reads: self.reads.get(),
            read_bytes: self.read_bytes.get(),
            misses_absent: self.misses_absent.get(),
            misses_checksum: self.misses_checksum.get(),
            misses_truncated: self.misses_truncated.get(),
            misses_io: self.misses_io.get(),
            writes: self.writes.get(),
            written_bytes: self.written_bytes.get(),
            write_failures: self.write_failures.get(),
            erasure_waits: self.erasure_waits.get(),
            erased: self.erased.get(),
            syncs: self.syncs.get(),
            sync_failures: self.sync_failures.get(),
            lost: self.lost.get(),
        }
    }
}
