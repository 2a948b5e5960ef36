//! The bounded log: a ring that is allocated once, under one mutex. It does not know its
//! subscribers; each keeps its own position.

use super::{Event, EventKind, EventSnapshot, EventSubscriber, StoredBlock, TierId};
use crate::{BlockKey, BlocksError, GroupId};
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::num::NonZeroUsize;
use std::sync::Arc;

/// Changes of one or several tiers, in one total order. Appending a batch takes the lock once and
/// allocates nothing.
#[derive(Debug)]
pub struct EventLog {
    ring: Mutex<EventRing>,
    /// Signalled after events were appended, and when waits end.
    appended: Condvar,
}

#[derive(Debug)]
struct EventRing {
    /// Grows to its capacity, which is allocated up front; then the oldest entry is overwritten.
    entries: Vec<LogEntry>,
    capacity: usize,
    /// Index of the next event: `next_sequence % capacity`.
    cursor: usize,
    next_sequence: u64,
    /// Whether nothing waits for events any more.
    waits_ended: bool,
}

/// An event without its sequence number, which follows from its index. It is bytes only, so that no
/// space is lost to alignment.
#[derive(Clone, Copy, Debug)]
struct LogEntry {
    tier: TierId,
    /// The group id, in little-endian order.
    group: [u8; 4],
    kind: EventKind,
}

const _: () = assert!(align_of::<LogEntry>() == 1, "an entry has no padding");

/// The outcome of copying events out of the log.
pub(super) enum LogCopyOutcome {
    /// This many events were copied; the reader's position advances by as many.
    Events(usize),
    /// The position has been overwritten; `oldest` is the oldest sequence number in the ring.
    Forgotten { oldest: u64 },
    /// The position is past the end of the log; `next` is the next sequence number.
    Ahead { next: u64 },
}

impl EventLog {
    /// A log that keeps the last `capacity` events.
    ///
    /// # Errors
    /// If the ring cannot be allocated.
    pub fn new(capacity: NonZeroUsize) -> Result<EventLog, BlocksError> {
        let mut entries = Vec::new();
        entries
            .try_reserve_exact(capacity.get())
            .map_err(|_| BlocksError::EventLogTooLarge {
                capacity: capacity.get(),
            })?;
        Ok(EventLog {
            ring: Mutex::new(EventRing {
                entries,
                capacity: capacity.get(),
                cursor: 0,
                next_sequence: 0,
                waits_ended: false,
            }),
            appended: Condvar::new(),
        })
    }

    /// Reports that consecutive blocks of a chain were stored, the first one after `parent`.
    pub fn stored(
        &self,
        tier: TierId,
        group: GroupId,
        parent: Option<BlockKey>,
        keys: &[BlockKey],
    ) {
        let mut ring = self.lock();
        let mut parent = parent;
        for &key in keys {
            ring.push((tier, group), EventKind::Stored { key, parent });
            parent = Some(key);
        }
        drop(ring);
        self.appended.notify_all();
    }

    /// Reports that blocks were removed, in this order.
    pub fn removed(&self, tier: TierId, group: GroupId, keys: &[BlockKey]) {
        let mut ring = self.lock();
        for &key in keys {
            ring.push((tier, group), EventKind::Removed { key });
        }
        drop(ring);
        self.appended.notify_all();
    }

    /// Reports that a tier has lost all blocks of a group.
    pub fn cleared(&self, tier: TierId, group: GroupId) {
        self.lock().push((tier, group), EventKind::Cleared);
        self.appended.notify_all();
    }

    /// Appends changes of one group in one tier, in this order. The lock is held while the iterator
    /// runs, so the iterator must not use this log.
    pub fn append(&self, tier: TierId, group: GroupId, kinds: impl IntoIterator<Item = EventKind>) {
        let mut ring = self.lock();
        for kind in kinds {
            ring.push((tier, group), kind);
        }
        drop(ring);
        self.appended.notify_all();
    }

    /// Ends all waits of subscribers for events, those that begin later too: the owner of the log
    /// closes. Events can still be appended and read.
    pub fn end_waits(&self) {
        self.lock().waits_ended = true;
        self.appended.notify_all();
    }

    /// Waits until there is an event from `next` on; false if waits have ended.
    pub(super) fn wait(&self, next: u64) -> bool {
        let mut ring = self.lock();
        while ring.next_sequence <= next && !ring.waits_ended {
            self.appended.wait(&mut ring);
        }
        !ring.waits_ended
    }

    /// The sequence number of the next event, which is the number of events appended so far.
    #[must_use]
    pub fn next_sequence(&self) -> u64 {
        self.lock().next_sequence
    }

    /// The maximum number of events that the log keeps.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.lock().capacity
    }

    /// A reader of future events. A reader that needs the blocks already stored takes a
    /// [`snapshot`](Self::snapshot) afterwards.
    #[must_use]
    pub fn subscribe(self: &Arc<Self>) -> EventSubscriber {
        EventSubscriber::new(Arc::clone(self), self.next_sequence())
    }

    /// A list of the stored blocks, and the range of events to apply on top of it. `list` collects
    /// the blocks from their owners; each owner lists a block under the lock under which it appends
    /// that block's events. The log is not locked during `list`.
    pub fn snapshot(&self, list: impl FnOnce(&mut Vec<StoredBlock>)) -> EventSnapshot {
        let from = self.next_sequence();
        let mut blocks = Vec::new();
        list(&mut blocks);
        EventSnapshot {
            from,
            until: self.next_sequence(),
            blocks,
        }
    }

    /// Appends to `out` up to `max` events from `next` on.
    pub(super) fn copy(&self, next: u64, out: &mut Vec<Event>, max: usize) -> LogCopyOutcome {
        let ring = self.lock();
        if next > ring.next_sequence {
            return LogCopyOutcome::Ahead {
                next: ring.next_sequence,
            };
        }
        // Saturates only if the position is older than anything the ring can hold.
        let behind = usize::try_from(ring.next_sequence - next).unwrap_or(usize::MAX);
        let Some(skipped) = ring.entries.len().checked_sub(behind) else {
            return LogCopyOutcome::Forgotten {
                oldest: ring.oldest(),
            };
        };
        let wanted = behind.min(max);
        out.reserve(wanted);
        let (newer, older) = ring.entries.split_at(ring.oldest_index());
        let entries = older.iter().chain(newer).skip(skipped).take(wanted);
        out.extend((next..).zip(entries).map(|(sequence, entry)| Event {
            sequence,
            tier: entry.tier,
            group: GroupId(u32::from_le_bytes(entry.group)),
            kind: entry.kind,
        }));
        LogCopyOutcome::Events(wanted)
    }

    /// Asserts the log's invariants; for tests.
    ///
    /// # Panics
    /// If an invariant is violated.
    pub fn check_integrity(&self) {
        let ring = self.lock();
        let capacity = ring.capacity as u64;
        assert!(
            ring.entries.capacity() >= ring.capacity,
            "the ring is allocated"
        );
        assert_eq!(
            ring.entries.len() as u64,
            ring.next_sequence.min(capacity),
            "the ring holds the last events"
        );
        assert_eq!(
            ring.cursor as u64,
            ring.next_sequence % capacity,
            "the cursor follows the sequence"
        );
    }

    /// Each push leaves the ring consistent, so a panic in a caller's iterator breaks nothing.
    fn lock(&self) -> MutexGuard<'_, EventRing> {
        self.ring.lock()
    }
}

impl EventRing {
    fn push(&mut self, (tier, group): (TierId, GroupId), kind: EventKind) {
        let group = group.0.to_le_bytes();
        let pushed = LogEntry { tier, group, kind };
        match self.entries.get_mut(self.cursor) {
            Some(entry) => *entry = pushed,
            None => self.entries.push(pushed),
        }
        self.cursor += 1;
        if self.cursor == self.capacity {
            self.cursor = 0;
        }
        self.next_sequence += 1;
    }

    /// The sequence number of the oldest entry.
    fn oldest(&self) -> u64 {
        self.next_sequence - self.entries.len() as u64
    }

    /// Index of the oldest entry: the cursor once the ring is full.
    fn oldest_index(&self) -> usize {
        if self.entries.len() == self.capacity {
            self.cursor
        } else {
            0
        }
    }
}
