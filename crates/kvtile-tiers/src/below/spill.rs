//! The spill list of a tier: blocks to write apart from evictions, and the sync after writes. A
//! dedicated thread does both, so that neither waits behind loads.
//!
//! The list contains the names of blocks (`K`) and times. It does not know where the bytes are, nor
//! how they are written.

use std::{collections::VecDeque, time::Duration};

use parking_lot::{Condvar, Mutex, MutexGuard};

/// The number of unsynced blocks at which a sync begins.
pub const SYNC_BLOCKS: usize = 64;

/// The age of the oldest unsynced write or erasure at which a sync begins.
pub const SYNC_WITHIN: Duration = Duration::from_millis(250);

/// The longest sleep of the thread before it reads the cache's clock again.
const PATIENCE: Duration = Duration::from_millis(50);

#[derive(Debug)]
struct SpillState<K> {
    /// Blocks to write, in the order of their stores.
    keys: VecDeque<K>,
    /// The time of the oldest unsynced write or erasure.
    dirty_since: Option<Duration>,
    /// Blocks written since the last sync began.
    written: usize,
    closed: bool,
}

impl<K> SpillState<K> {
    fn is_sync_due(&self, now: Duration) -> bool {
        let is_old = |since: Duration| now.saturating_sub(since) >= SYNC_WITHIN;
        self.written >= SYNC_BLOCKS || self.dirty_since.is_some_and(is_old)
    }
}

/// The operation that is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SpillDue<K> {
    /// A write of at most [`SYNC_BLOCKS`] blocks; some may have left memory or be on the tier
    /// already.
    Write(Vec<K>),
    /// A sync.
    Sync,
    /// No operation now.
    Nothing,
    /// The list is closed.
    Closed,
}

/// The ends of the backoffs of writes and syncs.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TierPauses {
    pub(crate) writes: Option<Duration>,
    pub(crate) syncs: Option<Duration>,
}

/// The spill list of a tier.
#[derive(Debug)]
pub(crate) struct SpillList<K> {
    state: Mutex<SpillState<K>>,
    changed: Condvar,
    /// Whether the tier is durable; other tiers are never synced.
    syncs: bool,
}

impl<K> SpillList<K> {
    /// The spill list of a tier that is durable, or not.
    pub(crate) fn new(is_durable: bool) -> SpillList<K> {
        SpillList {
            state: Mutex::new(SpillState {
                keys: VecDeque::new(),
                dirty_since: None,
                written: 0,
                closed: false,
            }),
            changed: Condvar::default(),
            syncs: is_durable,
        }
    }

    fn lock(&self) -> MutexGuard<'_, SpillState<K>> {
        self.state.lock()
    }

    /// Adds blocks to write. If the list is longer than `keys_max`, drops the keys for which
    /// `is_there` is false. Returns how many it dropped.
    pub(crate) fn push(
        &self,
        keys: impl IntoIterator<Item = K>,
        keys_max: usize,
        is_there: impl Fn(&K) -> bool,
    ) -> usize {
        let mut state = self.lock();
        state.keys.extend(keys);
        let before = state.keys.len();
        if before > keys_max {
            state.keys.retain(is_there);
        }
        let dropped = before - state.keys.len();
        drop(state);
        self.changed.notify_all();
        dropped
    }

    /// Records written blocks: a sync becomes due.
    pub(crate) fn wrote(&self, blocks: usize, now: Duration) {
        if !self.syncs {
            return;
        }
        let mut state = self.lock();
        let before = state.written;
        state.written += blocks;
        state.dirty_since.get_or_insert(now);
        let wakes = before == 0 || (before < SYNC_BLOCKS && state.written >= SYNC_BLOCKS);
        drop(state);
        if wakes {
            self.changed.notify_all();
        }
    }

    /// Records a change other than a written block: a sync becomes due.
    pub(crate) fn touched(&self, now: Duration) {
        if !self.syncs {
            return;
        }
        let mut state = self.lock();
        let wakes = state.dirty_since.is_none();
        state.dirty_since.get_or_insert(now);
        drop(state);
        if wakes {
            self.changed.notify_all();
        }
    }

    /// Records the start of a sync, which covers all earlier writes.
    pub(crate) fn sync_begins(&self) {
        let mut state = self.lock();
        state.dirty_since = None;
        state.written = 0;
    }

    /// Whether anything is unsynced.
    pub(crate) fn is_dirty(&self) -> bool {
        self.lock().dirty_since.is_some()
    }

    /// Blocks written since the last sync began.
    pub(crate) fn written(&self) -> usize {
        self.lock().written
    }

    /// The operation that is due at `now`, unless it is paused.
    pub(crate) fn due(&self, now: Duration, pauses: TierPauses) -> SpillDue<K> {
        SpillList::due_of(&mut self.lock(), now, pauses)
    }

    fn due_of(state: &mut SpillState<K>, now: Duration, pauses: TierPauses) -> SpillDue<K> {
        let is_paused = |until: Option<Duration>| until.is_some_and(|until| now < until);
        if state.closed {
            return SpillDue::Closed;
        }
        if state.is_sync_due(now) && !is_paused(pauses.syncs) {
            return SpillDue::Sync;
        }
        if is_paused(pauses.writes) {
            return SpillDue::Nothing;
        }
        if state.keys.is_empty() {
            return SpillDue::Nothing;
        }
        let blocks = state.keys.len().min(SYNC_BLOCKS);
        SpillDue::Write(state.keys.drain(..blocks).collect())
    }

    /// Waits for a due operation; `Nothing` after a timeout.
    pub(crate) fn wait(&self, now: impl Fn() -> Duration, pauses: TierPauses) -> SpillDue<K> {
        let mut state = self.lock();
        let due = SpillList::due_of(&mut state, now(), pauses);
        if !matches!(due, SpillDue::Nothing) {
            return due;
        }
        // Without unsynced writes and keys, only a change of the list can make an operation due.
        let idle = state.dirty_since.is_none() && state.keys.is_empty();
        if idle {
            self.changed.wait(&mut state);
        } else {
            self.changed.wait_for(&mut state, PATIENCE);
        }
        SpillList::due_of(&mut state, now(), pauses)
    }

    /// Takes the first blocks of the list, at most [`SYNC_BLOCKS`].
    pub(crate) fn take(&self) -> Vec<K> {
        let mut state = self.lock();
        let blocks = state.keys.len().min(SYNC_BLOCKS);
        state.keys.drain(..blocks).collect()
    }

    /// Whether the list is closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Closes the list. Returns the number of keys that it dropped.
    pub(crate) fn close(&self) -> usize {
        let mut state = self.lock();
        state.closed = true;
        let left = std::mem::take(&mut state.keys).len();
        drop(state);
        self.changed.notify_all();
        left
    }
}

#[cfg(test)]
mod tests {
    use kvtile_blocks::BlockKey;

    use super::*;

    fn key(number: u8) -> BlockKey {
        BlockKey::from_bytes([number; 16])
    }

    #[test]
    fn a_sync_is_due_after_so_many_blocks_or_so_much_time_and_before_any_write() {
        let spill = SpillList::new(true);
        let start = Duration::from_secs(9);
        spill.push([key(1)], 10, |_| true);
        for _ in 1..SYNC_BLOCKS {
            spill.wrote(1, start);
        }
        assert_eq!(
            spill.due(start, TierPauses::default()),
            SpillDue::Write(vec![key(1)])
        );
        assert_eq!(spill.due(start, TierPauses::default()), SpillDue::Nothing);
        assert_eq!(
            spill.due(start + SYNC_WITHIN, TierPauses::default()),
            SpillDue::Sync
        );
        spill.wrote(1, start);
        spill.push([key(2)], 10, |_| true);
        assert_eq!(spill.due(start, TierPauses::default()), SpillDue::Sync);
        spill.sync_begins();
        assert_eq!(
            spill.due(start + SYNC_WITHIN, TierPauses::default()),
            SpillDue::Write(vec![key(2)])
        );
        spill.touched(start);
        let (now, later) = (start + SYNC_WITHIN, start + SYNC_WITHIN * 2);
        let syncs = TierPauses {
            writes: Some(later),
            syncs: Some(later),
        };
        assert_eq!(spill.due(now, syncs), SpillDue::Nothing);
        assert_eq!(spill.due(later, syncs), SpillDue::Sync);
        // Writes pause, syncs do not.
        let writes = TierPauses {
            syncs: None,
            ..syncs
        };
        assert_eq!(spill.due(now, writes), SpillDue::Sync);
        spill.sync_begins();
        spill.push([key(3)], 10, |_| true);
        assert_eq!(spill.due(now, writes), SpillDue::Nothing);
        assert_eq!(spill.due(later, writes), SpillDue::Write(vec![key(3)]));
    }

    #[test]
    fn a_tier_that_is_not_durable_is_written_and_never_synced() {
        let spill = SpillList::new(false);
        spill.touched(Duration::ZERO);
        spill.wrote(SYNC_BLOCKS, Duration::ZERO);
        let later = SYNC_WITHIN * 2;
        assert!(!spill.is_dirty() && spill.written() == 0);
        assert_eq!(spill.due(later, TierPauses::default()), SpillDue::Nothing);
        spill.push([key(1)], 10, |_| true);
        assert_eq!(
            spill.due(later, TierPauses::default()),
            SpillDue::Write(vec![key(1)])
        );
    }

    #[test]
    fn the_list_keeps_the_host_blocks_and_their_order() {
        let spill = SpillList::new(true);
        assert_eq!(spill.push([key(1), key(2), key(3)], 3, |_| false), 0);
        assert_eq!(spill.push([key(4)], 3, |at| *at != key(2)), 1);
        assert_eq!(
            spill.due(Duration::ZERO, TierPauses::default()),
            SpillDue::Write(vec![key(1), key(3), key(4)])
        );
        spill.push([key(5)], 3, |_| true);
        assert_eq!(spill.close(), 1);
        assert_eq!(
            spill.due(Duration::ZERO, TierPauses::default()),
            SpillDue::Closed
        );
    }
}
