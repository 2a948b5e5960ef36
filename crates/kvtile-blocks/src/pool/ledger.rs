//! Pins with a deadline. It keeps one record for each guard, not for each block, so that forgotten
//! guards are reported. No pin is revoked.

use super::settings::{OwnerId, PinClaim};
use super::sync::PoolLock;
use crate::Tick;

/// Blocks that were pinned past their deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinReport {
    /// The holder of the pins.
    pub owner: OwnerId,
    /// When they were due to be released.
    pub deadline: Tick,
    /// The number of blocks still pinned.
    pub blocks: usize,
    /// When they were pinned.
    pub since: Tick,
}

/// The handle of a guard's record.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PinRecord(usize);

#[derive(Debug)]
pub(super) struct PinLedger {
    records: PoolLock<PinRecords>,
}

#[derive(Debug, Default)]
struct PinRecords {
    entries: Vec<Option<PinReport>>,
    vacant: Vec<usize>,
}

impl PinLedger {
    pub(super) fn new() -> PinLedger {
        PinLedger {
            records: PoolLock::new(PinRecords::default()),
        }
    }

    /// Opens a record for a claim on `blocks` blocks, if the claim has a deadline.
    pub(super) fn open(&self, claim: &PinClaim, blocks: usize) -> Option<PinRecord> {
        let deadline = claim.deadline?;
        Some(self.records.lock().insert(PinReport {
            owner: claim.owner,
            deadline,
            blocks,
            since: claim.now,
        }))
    }

    /// Moves `blocks` blocks of a record into a new record with the same claim.
    pub(super) fn split(&self, record: &PinRecord, blocks: usize) -> Option<PinRecord> {
        let mut records = self.records.lock();
        let entry = records.entries.get_mut(record.0)?.as_mut()?;
        entry.blocks = entry.blocks.saturating_sub(blocks);
        let part = PinReport { blocks, ..*entry };
        Some(records.insert(part))
    }

    /// Merges another record into this one: the earlier deadline and the earlier start count.
    pub(super) fn merge(&self, record: &PinRecord, other: PinRecord) {
        let mut records = self.records.lock();
        let Some(added) = records.remove(other) else {
            return;
        };
        if let Some(Some(entry)) = records.entries.get_mut(record.0) {
            entry.blocks += added.blocks;
            entry.deadline = entry.deadline.min(added.deadline);
            entry.since = entry.since.min(added.since);
        }
    }

    /// Sets the number of blocks of a record.
    pub(super) fn resize(&self, record: &PinRecord, blocks: usize) {
        let mut records = self.records.lock();
        if let Some(Some(entry)) = records.entries.get_mut(record.0) {
            entry.blocks = blocks;
        }
    }

    pub(super) fn close(&self, record: PinRecord) {
        self.records.lock().remove(record);
    }

    /// The records with a deadline before `now`, the longest overdue first.
    pub(super) fn overdue(&self, now: Tick) -> Vec<PinReport> {
        let records = self.records.lock();
        let late = |report: &&PinReport| report.deadline < now;
        let mut reports: Vec<PinReport> = records
            .entries
            .iter()
            .flatten()
            .filter(late)
            .copied()
            .collect();
        drop(records);
        reports.sort_by_key(|report| (report.deadline, report.owner));
        reports
    }

    /// The number of open records.
    pub(super) fn len(&self) -> usize {
        let records = self.records.lock();
        records.entries.len() - records.vacant.len()
    }
}

impl PinRecords {
    fn insert(&mut self, report: PinReport) -> PinRecord {
        let Some(index) = self.vacant.pop() else {
            self.entries.push(Some(report));
            return PinRecord(self.entries.len() - 1);
        };
        if let Some(entry) = self.entries.get_mut(index) {
            *entry = Some(report);
        }
        PinRecord(index)
    }

    fn remove(&mut self, record: PinRecord) -> Option<PinReport> {
        let report = self.entries.get_mut(record.0)?.take();
        self.vacant.push(record.0);
        report
    }
}
