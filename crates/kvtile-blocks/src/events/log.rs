//! The bounded log: a ring that is allocated once, under one mutex. It knows no subscriber; each of
//! them keeps its own place.

use super::{Event, EventKind, Snapshot, StoredBlock, Subscriber, TierId};
use crate::{BlockKey, BlocksError, GroupId};
use parking_lot::{Mutex, MutexGuard};
use std::num::NonZeroUsize;
use std::sync::Arc;

/// Changes of one or several tiers, in one order. A batch takes the lock once and allocates nothing.
#[derive(Debug)]
pub struct EventLog {
    ring: Mutex<Ring>,
}

#[derive(Debug)]
struct Ring {
    /// Grows to its capacity, which is allocated at the start, and is then overwritten in turn.
    entries: Vec<Entry>,
    capacity: usize,
    /// Where the next event goes: `next_sequence % capacity`.
    cursor: usize,
    next_sequence: u64,
}

/// An event without its number, which follows from its place: bytes alone, so that nothing is lost to alignment.
#[derive(Clone, Copy, Debug)]
struct Entry {
    tier: TierId,
    /// The number of the group, in little-endian order.
    group: [u8; 4],
    kind: EventKind,
}

const _: () = assert!(align_of::<Entry>() == 1, "an entry has no padding");

/// Events that were copied out of the log, or how far it has moved on.
pub(super) enum Copied {
    /// So many; the reader's place moves by as much.
    Events(usize),
    /// The place is not in the ring any more; this is the oldest one that is.
    Forgotten { oldest: u64 },
    /// The place was never reached; this is the next one.
    Ahead { next: u64 },
}

impl EventLog {
    /// A log that remembers the last `capacity` events.
    ///
    /// # Errors
    /// Where there is no memory for that many.
    pub fn new(capacity: NonZeroUsize) -> Result<EventLog, BlocksError> {
        let mut entries = Vec::new();
        entries
            .try_reserve_exact(capacity.get())
            .map_err(|_| BlocksError::EventLogTooLarge {
                capacity: capacity.get(),
            })?;
        Ok(EventLog {
            ring: Mutex::new(Ring {
                entries,
                capacity: capacity.get(),
                cursor: 0,
                next_sequence: 0,
            }),
        })
    }

    /// Blocks that follow each other were stored: the first one after `parent`.
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
    }

    /// Blocks were removed, in this order.
    pub fn removed(&self, tier: TierId, group: GroupId, keys: &[BlockKey]) {
        let mut ring = self.lock();
        for &key in keys {
            ring.push((tier, group), EventKind::Removed { key });
        }
    }

    /// A tier has lost all blocks of a group.
    pub fn cleared(&self, tier: TierId, group: GroupId) {
        self.lock().push((tier, group), EventKind::Cleared);
    }

    /// Any changes of one group in one tier, in this order. The lock is held while the iterator runs, which
    /// must therefore not use this log.
    pub fn append(&self, tier: TierId, group: GroupId, kinds: impl IntoIterator<Item = EventKind>) {
        let mut ring = self.lock();
        for kind in kinds {
            ring.push((tier, group), kind);
        }
    }

    /// The sequence number of the event that comes next; as many have been appended.
    #[must_use]
    pub fn next_sequence(&self) -> u64 {
        self.lock().next_sequence
    }

    /// How many events are remembered at most.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.lock().capacity
    }

    /// A reader of what comes from now on. One that has to know what is stored already takes a
    /// [`snapshot`](Self::snapshot) afterwards.
    #[must_use]
    pub fn subscribe(self: &Arc<Self>) -> Subscriber {
        Subscriber::new(Arc::clone(self), self.next_sequence())
    }

    /// A list of what is stored, and which events to apply on top of it. `list` asks the owners,
    /// each of which lists a block under the lock under which it appends that block's events. The
    /// log is not locked meanwhile.
    pub fn snapshot(&self, list: impl FnOnce(&mut Vec<StoredBlock>)) -> Snapshot {
        let from = self.next_sequence();
        let mut blocks = Vec::new();
        list(&mut blocks);
        Snapshot {
            from,
            until: self.next_sequence(),
            blocks,
        }
    }

    /// Copies up to `max` events from `next` on to the end of `out`.
    pub(super) fn copy(&self, next: u64, out: &mut Vec<Event>, max: usize) -> Copied {
        let ring = self.lock();
        if next > ring.next_sequence {
            return Copied::Ahead {
                next: ring.next_sequence,
            };
        }
        // Saturates only when the place is older than anything the ring can hold.
        let behind = usize::try_from(ring.next_sequence - next).unwrap_or(usize::MAX);
        let Some(skipped) = ring.entries.len().checked_sub(behind) else {
            return Copied::Forgotten {
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
        Copied::Events(wanted)
    }

    /// Asserts what must hold between its parts; for tests.
    ///
    /// # Panics
    /// Where something does not hold.
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

    /// Each push leaves the ring whole, so that a panic of a caller's iterator breaks nothing.
    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock()
    }
}

impl Ring {
    fn push(&mut self, (tier, group): (TierId, GroupId), kind: EventKind) {
        let group = group.0.to_le_bytes();
        let pushed = Entry { tier, group, kind };
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

    /// Where the oldest entry is: at the cursor once the ring is full.
    fn oldest_index(&self) -> usize {
        if self.entries.len() == self.capacity {
            self.cursor
        } else {
            0
        }
    }
}
