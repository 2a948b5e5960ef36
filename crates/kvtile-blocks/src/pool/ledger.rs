//! Pins with a deadline: one record for each guard, not for each block, so that whoever forgot to
//! let go is found. Nothing is taken from anybody.

use super::settings::{Claim, OwnerId};
use super::sync::Lock;
use crate::Tick;

/// Blocks that were pinned for longer than was said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinReport {
    /// Who pinned them.
    pub owner: OwnerId,
    /// When they should have been released.
    pub deadline: Tick,
    /// How many are still pinned.
    pub blocks: usize,
    /// Since when.
    pub since: Tick,
}

/// The record of a guard.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PinRecord(usize);

#[derive(Debug)]
pub(super) struct Ledger {
    records: Lock<Records>,
}

#[derive(Debug, Default)]
struct Records {
    entries: Vec<Option<PinReport>>,
    vacant: Vec<usize>,
}

impl Ledger {
    pub(super) fn new() -> Ledger {
        Ledger {
            records: Lock::new(Records::default()),
        }
    }

    /// Writes down a claim on so many blocks, if it has a deadline.
    pub(super) fn open(&self, claim: &Claim, blocks: usize) -> Option<PinRecord> {
        let deadline = claim.deadline?;
        Some(self.records.lock().insert(PinReport {
            owner: claim.owner,
            deadline,
            blocks,
            since: claim.now,
        }))
    }

    /// Another record like this one, for so many of its blocks.
    pub(super) fn split(&self, record: &PinRecord, blocks: usize) -> Option<PinRecord> {
        let mut records = self.records.lock();
        let entry = records.entries.get_mut(record.0)?.as_mut()?;
        entry.blocks = entry.blocks.saturating_sub(blocks);
        let part = PinReport { blocks, ..*entry };
        Some(records.insert(part))
    }

    /// Adds blocks of another claim: the earlier deadline counts, and the older pin.
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

    /// More or fewer blocks than before.
    pub(super) fn resize(&self, record: &PinRecord, blocks: usize) {
        let mut records = self.records.lock();
        if let Some(Some(entry)) = records.entries.get_mut(record.0) {
            entry.blocks = blocks;
        }
    }

    pub(super) fn close(&self, record: PinRecord) {
        self.records.lock().remove(record);
    }

    /// What should have been released before `now`, the longest overdue first.
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

    /// How many guards have a record.
    pub(super) fn len(&self) -> usize {
        let records = self.records.lock();
        records.entries.len() - records.vacant.len()
    }
}

impl Records {
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
