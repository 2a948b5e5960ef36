//! Flushing, clearing and closing a block store.

use std::{
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use super::{BlockStore, StoreFlush, write};
use crate::error::{FolderError, TierError};

impl BlockStore {
    /// Writes all stored blocks to the tiers and syncs the durable tiers, on the caller's thread, even
    /// while a tier is in a backoff after failures. After `within` it begins no further batch of
    /// writes; the batch under way and the sync take as long as a tier may take to answer.
    pub fn flush(&self, within: Option<Duration>) -> StoreFlush {
        let parts = &self.parts;
        let end = within.and_then(|within| Instant::now().checked_add(within));
        for below in &parts.below {
            write::write_waiting(parts, below, end);
        }
        match end {
            None => parts.unwritten.wait(),
            Some(end) => {
                let left = end.saturating_duration_since(Instant::now());
                parts.unwritten.wait_for(left);
            }
        }
        let unwritten = parts.unwritten.jobs();
        let mut durable = false;
        let mut is_synced = true;
        let mut lost = 0;
        for below in &parts.below {
            if below.abilities.is_durable {
                durable = true;
                let synced = below.sync(&*parts.clock);
                is_synced &= synced.failure.is_none();
                lost += below.take_lost();
            }
        }
        let failed = parts.failed.swap(0, Ordering::SeqCst) + lost;
        StoreFlush {
            durable: durable && is_synced && unwritten == 0 && failed == 0,
            unwritten,
            failed,
        }
    }

    /// Removes all blocks that no load reads, and returns how many. Of stores in flight it removes
    /// the blocks too.
    ///
    /// # Errors
    /// The erasures of a durable tier could not be synced
    /// ([`FolderError::NotDurable`]).
    pub fn clear(&self) -> Result<usize, TierError> {
        let parts = &self.parts;
        let removing = parts.removing.write();
        parts.removals.remove_all();
        let mut removed = 0;
        for group in &parts.groups {
            removed += group.staging.forget_all();
        }
        for below in &parts.below {
            removed += below.tier.clear(parts.tick());
        }
        drop(removing);
        let mut is_durable = true;
        for below in &parts.below {
            if below.abilities.is_durable {
                below.spill.touched(parts.clock.now());
                is_durable &= below.sync(&*parts.clock).failure.is_none();
            }
        }
        match is_durable {
            true => Ok(removed),
            false => Err(TierError::Folder(FolderError::NotDurable)),
        }
    }

    /// Closes the store as dropping it does. Waiting jobs end as closed; running jobs end normally,
    /// so this waits for reads that touch rows. Stored blocks are written and synced, at most for
    /// `within` (default: the longest
    /// [`close_within`](crate::tier::TierSettings::close_within) of the tiers); later ones are lost
    /// and counted.
    pub fn close(mut self, within: Option<Duration>) -> StoreFlush {
        self.end(within)
    }

    fn end(&mut self, within: Option<Duration>) -> StoreFlush {
        if self.is_closed {
            return StoreFlush::default();
        }
        self.is_closed = true;
        let parts = &self.parts;
        drop(parts.loads.close());
        drop(parts.stores.close());
        parts.jobs.wait();
        let longest = parts.below.iter().map(|below| below.settings.close_within);
        let within = within.or(longest.max()).unwrap_or_default();
        let report = self.flush(Some(within));
        if report.unwritten + report.failed > 0 {
            log::warn!(
                "the block store was closed: {} stored blocks were not written in time, {} writes failed",
                report.unwritten,
                report.failed
            );
        }
        for below in &parts.below {
            below.spill.close();
        }
        for thread in self.threads.drain(..) {
            // A thread cannot wait for itself.
            if thread.thread().id() != thread::current().id() {
                // A panic of the thread is already in the log.
                let _ = thread.join();
            }
        }
        for group in &parts.groups {
            group.staging.forget_all();
            if let Err(error) = parts.manager.unregister(group.staging.handle) {
                log::warn!("staging memory of a closed block store is still in use: {error}");
            }
        }
        report
    }
}

impl Drop for BlockStore {
    fn drop(&mut self) {
        self.end(None);
    }
}
