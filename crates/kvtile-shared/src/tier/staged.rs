//! Staging memory: copies of blocks that wait for their bundle to become whole and to be written.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use kvtile_blocks::BlockKey;
use kvtile_tiers::tier::ContentDigest;
use parking_lot::{Condvar, Mutex};

/// Bytes that are copied and checksummed at a time, so that they are in a core's cache for both.
const CHUNK_BYTES: usize = 128 << 10;

/// A bounded number of bytes.
#[derive(Debug)]
pub(super) struct StagingRoom {
    bytes_max: u64,
    used: Mutex<u64>,
    changed: Condvar,
}

/// A copy of a block. Its room is free again when the last owner drops it.
pub(super) struct StagedBytes {
    bytes: Vec<u8>,
    checksum: u64,
    room: Arc<StagingRoom>,
}

impl fmt::Debug for StagedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StagedBytes")
            .field("bytes", &self.bytes.len())
            .field("checksum", &self.checksum)
            .finish_non_exhaustive()
    }
}

impl StagingRoom {
    pub(super) fn new(bytes_max: u64) -> Arc<StagingRoom> {
        Arc::new(StagingRoom {
            bytes_max,
            used: Mutex::new(0),
            changed: Condvar::new(),
        })
    }

    /// Takes room for `bytes` bytes, if there is.
    fn take(&self, bytes: u64) -> bool {
        let mut used = self.used.lock();
        let after = used.saturating_add(bytes);
        let is_room = after <= self.bytes_max;
        if is_room {
            *used = after;
        }
        is_room
    }

    fn give(&self, bytes: u64) {
        let mut used = self.used.lock();
        *used = used.saturating_sub(bytes);
        drop(used);
        self.changed.notify_all();
    }

    /// Waits until some room becomes free; false after `until`.
    pub(super) fn wait(&self, until: Instant) -> bool {
        let mut used = self.used.lock();
        // A short wait, because room may have become free before it.
        let step = Duration::from_millis(20);
        let left = until.saturating_duration_since(Instant::now()).min(step);
        self.changed.wait_for(&mut used, left);
        drop(used);
        Instant::now() < until
    }

    /// Copies a block and computes its checksum; `None` without room.
    pub(super) fn copy(
        self: &Arc<Self>,
        key: &BlockKey,
        position: u32,
        from: &[u8],
    ) -> Option<Arc<StagedBytes>> {
        if !self.take(from.len() as u64) {
            return None;
        }
        let mut staged = StagedBytes {
            bytes: Vec::with_capacity(from.len()),
            checksum: 0,
            room: Arc::clone(self),
        };
        let mut digest = ContentDigest::new(key, position);
        for chunk in from.chunks(CHUNK_BYTES) {
            digest.update(chunk);
            staged.bytes.extend(chunk);
        }
        staged.checksum = digest.finish();
        Some(Arc::new(staged))
    }

    #[cfg(test)]
    fn used(&self) -> u64 {
        *self.used.lock()
    }
}

impl StagedBytes {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn checksum(&self) -> u64 {
        self.checksum
    }
}

impl Drop for StagedBytes {
    fn drop(&mut self) {
        // The room of the allocation, also if the copy did not finish.
        self.room.give(self.bytes.capacity() as u64);
    }
}

#[cfg(test)]
mod tests {
    use kvtile_tiers::tier::content_checksum;

    use super::*;

    #[test]
    fn copies_take_room_until_the_last_owner_drops_them() {
        let room = StagingRoom::new(300_000);
        let key = BlockKey::from_bytes([3; 16]);
        let bytes: Vec<u8> = (0..150_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let first = room.copy(&key, 7, &bytes).unwrap();
        assert_eq!(first.bytes(), bytes);
        assert_eq!(first.checksum(), content_checksum(&key, 7, &bytes));
        let second = room.copy(&key, 7, &bytes).unwrap();
        assert!(room.copy(&key, 7, &bytes).is_none());
        assert!(!room.wait(Instant::now()));
        let clone = Arc::clone(&first);
        drop(first);
        assert!(room.copy(&key, 7, &bytes).is_none());
        drop(clone);
        assert!(room.copy(&key, 7, &bytes).is_some());
        drop(second);
        assert_eq!(room.used(), 0);
    }
}
