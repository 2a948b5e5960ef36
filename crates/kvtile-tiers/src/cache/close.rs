//! Closing a cache: it writes the blocks of host memory to the durable tiers and releases its
//! resources.

use std::thread;

use super::{Cache, CacheBackend, FlushReport, LocalCache, flush, open};

impl Cache {
    /// Closes the cache as dropping it does, and reports the outcome of the blocks in host memory.
    ///
    /// Queued jobs complete as closed; running jobs complete normally. The cache writes the blocks
    /// of host memory to the durable tiers, each within
    /// [`TierSettings::close_within`](crate::tier::TierSettings::close_within) plus the time of one
    /// sync. With [`TierWrites::AfterUses`](crate::tier::TierWrites::AfterUses) it writes only
    /// blocks with enough uses. Then it releases threads, host memory and the folder even if
    /// matches are alive; those matches have no blocks from then on.
    ///
    /// On a thread of the cache itself (in a waker), it does not wait for that thread, which
    /// releases its share when the call returns.
    ///
    /// A connected cache only ends its connection, and reports nothing: the daemon keeps the blocks.
    pub fn close(self) -> FlushReport {
        match self.backend {
            CacheBackend::Here(mut cache) => cache.end(),
            CacheBackend::There(_) => FlushReport::default(),
        }
    }
}

impl LocalCache {
    fn end(&mut self) -> FlushReport {
        if self.is_closed {
            return FlushReport::default();
        }
        self.is_closed = true;
        drop(self.inner.queue.close());
        drop(self.inner.chains.close());
        for below in &self.inner.below {
            for _ in 0..below.spill.close() {
                self.inner.metrics.unqueued(super::QueueLabel::Spill);
            }
        }
        for worker in self.workers.drain(..) {
            // A thread cannot wait for itself.
            if worker.thread().id() != thread::current().id() {
                // A panic of the thread is already in the log.
                let _ = worker.join();
            }
        }
        let report = self.last_flush();
        open::unregister(&self.inner);
        report
    }

    /// Flushes host memory to the durable tiers, within the time that closing allows.
    fn last_flush(&self) -> FlushReport {
        let report = flush::flush(&self.inner, true);
        // With `close_within` 0 on every durable tier, the settings accept the loss of these
        // blocks.
        let mut tiers = self.inner.durable_tiers();
        let may_write = tiers.any(|below| !below.settings.close_within.is_zero());
        // On a shared tier the tail of a chain is never durable.
        let is_shared = self
            .inner
            .durable_tiers()
            .any(|below| below.abilities.is_shared);
        let is_lost = match is_shared {
            true => report.no_room + report.late + report.failed > 0,
            false => !report.durable,
        };
        if may_write && is_lost {
            let FlushReport {
                wanted,
                no_tier,
                no_room,
                late,
                failed,
                ..
            } = report;
            log::warn!(
                "of {wanted} blocks in host memory {} are on no durable tier after the cache was closed: no room for \
                 {no_room}, no time for {late}, {failed} failed, and {no_tier} have no durable tier",
                no_tier + no_room + late + failed
            );
        }
        report
    }
}

impl Drop for LocalCache {
    fn drop(&mut self) {
        self.end();
    }
}
