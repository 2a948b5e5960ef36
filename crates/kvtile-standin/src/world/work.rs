//! Work that was enqueued: what depends on what, and which of it runs next.

use super::order::Moment;
use kvtile_random::SplitMix64;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// A piece of enqueued work, numbered in the order in which it was enqueued.
pub(crate) type WorkNumber = u64;

/// What a piece of work does.
pub(crate) enum WorkKind {
    /// Nothing: it is a point in the order.
    Point,
    /// Copies bytes; the source is read at a moment of its own where it is read ahead of the order.
    Copy {
        to: u64,
        from: u64,
        bytes: usize,
        read: Option<Moment>,
    },
    /// Writes bytes that were read before.
    Write { to: u64, data: Vec<u8> },
    /// Fills bytes.
    Fill { to: u64, value: u8, bytes: usize },
    /// Runs a kernel.
    Launch(PendingLaunch),
}

/// A launch that has not run.
pub(crate) struct PendingLaunch {
    pub(crate) ptx: Arc<str>,
    pub(crate) kernel: Arc<str>,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared_bytes: u32,
    pub(crate) parameters: Vec<u8>,
}

/// Work and when it happens.
pub(crate) struct PendingWork {
    pub(crate) kind: WorkKind,
    pub(crate) moment: Moment,
    /// How much of what it waits for has not ended.
    waits_for: usize,
    /// What waits for it.
    followers: Vec<WorkNumber>,
}

/// All work that has not ended.
#[derive(Default)]
pub(crate) struct WorkList {
    pending: HashMap<WorkNumber, PendingWork>,
    /// Work that waits for nothing.
    ready: Vec<WorkNumber>,
    last: WorkNumber,
}

impl WorkList {
    /// Adds work behind `after`.
    pub(crate) fn add(
        &mut self,
        kind: WorkKind,
        moment: Moment,
        after: impl IntoIterator<Item = WorkNumber>,
    ) -> WorkNumber {
        self.last += 1;
        let number = self.last;
        let mut waits_for = 0;
        for before in after {
            if let Some(before) = self.pending.get_mut(&before) {
                before.followers.push(number);
                waits_for += 1;
            }
        }
        if waits_for == 0 {
            self.ready.push(number);
        }
        self.pending.insert(
            number,
            PendingWork {
                kind,
                moment,
                waits_for,
                followers: Vec::new(),
            },
        );
        number
    }

    /// Whether work has not ended.
    pub(crate) fn is_pending(&self, number: WorkNumber) -> bool {
        self.pending.contains_key(&number)
    }

    /// Work that has not ended.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &PendingWork> + Clone {
        self.pending.values()
    }

    /// How much work has not ended.
    pub(crate) fn len(&self) -> usize {
        self.pending.len()
    }

    /// Takes a random piece of work that waits for nothing. What waits for it may run next.
    pub(crate) fn take_any(&mut self, numbers: &mut SplitMix64) -> Option<PendingWork> {
        if self.ready.is_empty() {
            return None;
        }
        let chosen = self.ready.swap_remove(numbers.index(self.ready.len()));
        let work = self.pending.remove(&chosen)?;
        for follower in &work.followers {
            if let Some(next) = self.pending.get_mut(follower) {
                next.waits_for -= 1;
                if next.waits_for == 0 {
                    self.ready.push(*follower);
                }
            }
        }
        Some(work)
    }

    /// Drops all work: the device was lost.
    pub(crate) fn clear(&mut self) {
        self.pending.clear();
        self.ready.clear();
    }
}

/// Whether a destination overlaps another destination or source of another entry.
pub(crate) fn overlaps(entries: &[(Range<u64>, Range<u64>)]) -> bool {
    let mut ranges: Vec<(Range<u64>, bool)> = Vec::with_capacity(2 * entries.len());
    for (to, from) in entries {
        ranges.push((to.clone(), true));
        ranges.push((from.clone(), false));
    }
    ranges.sort_by_key(|(range, _)| (range.start, range.end));
    let (mut read_end, mut write_end) = (0, 0);
    for (range, is_write) in ranges {
        if range.start < write_end || (is_write && range.start < read_end) {
            return true;
        }
        let end = if is_write {
            &mut write_end
        } else {
            &mut read_end
        };
        *end = range.end.max(*end);
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlaps_of_a_batch_are_found() {
        assert!(!overlaps(&[(0..4, 10..14), (4..8, 10..14)]));
        assert!(overlaps(&[(0..4, 10..14), (3..8, 20..25)]));
        assert!(overlaps(&[(0..4, 10..14), (12..16, 20..24)]));
        assert!(overlaps(&[(0..10, 5..15)]));
    }
}
