//! What the thread of each tier does: writes what is to be written, and syncs in time.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use kvtile_blocks::BlockKey;

use super::{Inner, QueueLabel, below::Below, spill::Due};
use crate::{error::TierError, tier::SyncReport};

/// How long the thread of a tier rests where even its clock panics.
const AFTER_PANIC: Duration = Duration::from_millis(50);

impl Inner {
    /// Waits until everything written to a tier before is durable.
    pub(super) fn sync(&self, below: &Below) -> SyncReport {
        below.spill.sync_begins();
        let report = below.sync();
        let now = self.clock.now();
        match &report.failure {
            Some(error) => {
                below.syncs.failed(now, error);
                below.spill.touched(now);
            }
            None => below.syncs.succeeded(now),
        }
        report
    }

    /// Serves a tier until it is closed.
    pub(super) fn serve_tier(&self, below: &Below) {
        loop {
            let turn = || {
                let due = below.spill.wait(|| self.clock.now(), below.pauses());
                let is_end = due == Due::Closed;
                self.serve(below, due);
                is_end
            };
            match catch_unwind(AssertUnwindSafe(turn)) {
                Ok(true) => return,
                Ok(false) => {}
                // Where the clock panics, this is how the thread learns that it is to end.
                Err(_) if below.spill.is_closed() => return,
                Err(_) => self.tier_panicked(below),
            }
        }
    }

    /// A turn of a tier's thread panicked: as after a failure, the tier and its syncs are left alone for a
    /// while, and what was not synced stays to be synced.
    fn tier_panicked(&self, below: &Below) {
        let error = TierError::Panicked {
            what: "the thread of a tier",
        };
        log::error!("{error}; this is a defect; the cache goes on");
        let noted = catch_unwind(AssertUnwindSafe(|| {
            let now = self.clock.now();
            below.syncs.failed(now, &error);
            below.spill.touched(now);
        }));
        if noted.is_err() {
            std::thread::sleep(AFTER_PANIC);
        }
    }

    /// Does what is due at a tier; false where nothing is.
    pub(super) fn step_tier(&self, below: &Below) -> bool {
        let due = below.spill.due(self.clock.now(), below.pauses());
        let is_something = matches!(due, Due::Write(_) | Due::Sync);
        self.serve(below, due);
        is_something
    }

    fn serve(&self, below: &Below, due: Due) {
        match due {
            Due::Write(keys) => {
                for _ in &keys {
                    self.metrics.unqueued(QueueLabel::Spill);
                }
                if below.takes_blocks(self.clock.now()) {
                    // What was not written is written when it is evicted, if the tier takes blocks then.
                    let _ = self.write_keys(below, &keys);
                } else {
                    below.writes.left_out(keys.len() as u64);
                }
            }
            Due::Sync => {
                // After a failure one attempt at a time ends the pause.
                if below.syncs.allows(self.clock.now()) {
                    self.sync(below);
                }
            }
            Due::Nothing | Due::Closed => {}
        }
    }

    /// Host blocks are to be written to a tier by its thread.
    pub(super) fn spill(&self, below: &Below, keys: &[BlockKey]) {
        for _ in keys {
            self.metrics.queued(QueueLabel::Spill);
        }
        let is_there = |key: &BlockKey| self.host.pool.has(key);
        for _ in 0..below.spill.push(keys, self.spill_keys_max(), is_there) {
            self.metrics.unqueued(QueueLabel::Spill);
        }
    }

    /// Above so many, keys of blocks that have left host memory are dropped from the list of those to
    /// write: no more than half of them can be there.
    pub(super) fn spill_keys_max(&self) -> usize {
        self.host.pool.blocks().saturating_mul(2)
    }
}
