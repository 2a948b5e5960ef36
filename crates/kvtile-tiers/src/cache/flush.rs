//! Flushes: what is in host memory to the disk, what is worth most first, and durable.

use std::{collections::HashSet, time::Duration};

use kvtile_blocks::{BlockKey, pool::PinnedBlocks};

use super::{Inner, demote::Unwritten, stored::Stored};

/// A flush gives up after so many failures of the disk in a row.
const FAILURES_MAX: usize = 4;

/// What a flush came to. Each block that it was to bring is durable, or one of those that have a reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FlushReport {
    /// Blocks that were in host memory when the flush began.
    pub wanted: usize,
    /// Blocks that were written by this call; the others were on disk already.
    pub written: usize,
    /// Blocks that are not on disk because it has no room for them; they are worth less than those that are.
    pub no_room: usize,
    /// Blocks that are not on disk because the time was over.
    pub late: usize,
    /// Blocks that are not on disk because it failed, or that it lost.
    pub failed: usize,
    /// Whether all blocks that were in host memory, or on their way from there to the disk, outlive a
    /// crash now. Without a disk tier nothing does.
    pub durable: bool,
}

/// What a flush has done so far.
#[derive(Default)]
struct Progress {
    written: usize,
    no_room: usize,
    late: usize,
    failures: usize,
    /// What is to be on disk in the end, pinned there.
    kept: Vec<PinnedBlocks>,
}

impl Inner {
    /// Brings blocks of host memory to the disk that are not there, and waits until they are durable.
    ///
    /// The disk's room goes to those that the policy of host memory would give up last; each is written
    /// at most once. `within` bounds the writing, not the sync behind it. `belonging_only` leaves out
    /// those that the settings would not write when they are evicted.
    pub(super) fn flush(&self, within: Option<Duration>, belonging_only: bool) -> FlushReport {
        let Some(disk) = &self.disk else {
            return FlushReport::default();
        };
        let deadline = self.later(within);
        let keys = self.keys_by_worth(disk, belonging_only);
        let failures_before = disk.health.failures();
        let progress = self.write_by_worth(disk, &keys, deadline);
        // What left host memory before it was listed, or before it was held, other threads write.
        disk.wait_for_demotions();
        let synced = self.sync_disk(disk);
        let volatile = keys.len() - disk.durable(&keys);
        let has_failed = disk.health.failures() != failures_before;
        let no_room = progress.no_room.min(volatile);
        let late = progress.late.min(volatile - no_room);
        FlushReport {
            wanted: keys.len(),
            written: progress.written.saturating_sub(synced.lost),
            no_room,
            late,
            failed: volatile - no_room - late,
            durable: synced.durable && volatile == 0 && !has_failed,
        }
    }

    /// The keys of host blocks that a lookup finds, those first that are worth most; no block comes before
    /// its ancestors.
    fn keys_by_worth(&self, disk: &Stored, belonging_only: bool) -> Vec<BlockKey> {
        let order = self.host.pool.eviction_order(self.tick());
        let mut found = HashSet::with_capacity(order.len());
        let mut keys = Vec::with_capacity(order.len());
        for entry in order.into_iter().rev() {
            // Where the disk lost an ancestor, no lookup comes as far as this block.
            let follows = |parent: BlockKey| found.contains(&parent) || disk.has(&parent);
            if entry.parent.is_none_or(follows) {
                found.insert(entry.key);
                let belongs = || self.belongs_on_disk(entry.block) || disk.has(&entry.key);
                if !belonging_only || belongs() {
                    keys.push(entry.key);
                }
            }
        }
        keys
    }

    fn write_by_worth(
        &self,
        disk: &Stored,
        keys: &[BlockKey],
        deadline: Option<Duration>,
    ) -> Progress {
        let mut progress = Progress::default();
        let slots = disk.pool.blocks();
        let (wanted, rest) = keys.split_at(keys.len().min(slots));
        // First those that are there: what is written for others may not push them out.
        progress
            .kept
            .extend(wanted.iter().filter_map(|key| disk.hold(key)));
        for (at, key) in wanted.iter().enumerate() {
            if self.is_past(deadline) {
                let left = wanted.get(at..).unwrap_or_default();
                progress.late += left.iter().filter(|key| !disk.has(key)).count();
                break;
            }
            if progress.failures >= FAILURES_MAX {
                break;
            }
            match self.write_now(disk, key) {
                Ok((written, pinned)) => {
                    progress.failures = 0;
                    progress.written += written;
                    progress.kept.push(pinned);
                }
                Err(Unwritten::NoRoom) => progress.no_room += 1,
                // It has left host memory since, or its ancestor was not written: the end shows it.
                Err(Unwritten::NoAncestor | Unwritten::Paused) => {}
                Err(Unwritten::Failed) => progress.failures += 1,
            }
        }
        progress.no_room += rest.iter().filter(|key| !disk.has(key)).count();
        progress
    }
}
