//! Closing: what is in host memory to the durable tiers, then everything is given back.

use std::thread;

use super::{Cache, FlushReport, flush, open};

impl Cache {
    /// Closes the cache as dropping it does, and says what became of the blocks in host memory.
    ///
    /// Jobs that wait end as closed, those under way come to their end. What is in host memory is brought
    /// to the durable tiers, to each within [`TierSettings::close_within`](crate::tier::TierSettings::close_within)
    /// and the time of one sync; with [`TierWrites::AfterUses`](crate::tier::TierWrites::AfterUses) only blocks
    /// with so many uses are. Then threads, host memory and the folder are given back, also while matches live:
    /// these have no blocks any more.
    ///
    /// Called on a thread of the cache itself (by a waker), it does not wait for that thread, which gives
    /// everything back when it returns from there.
    pub fn close(mut self) -> FlushReport {
        self.end()
    }

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
                // One that panicked has said so already.
                let _ = worker.join();
            }
        }
        let report = self.last_flush();
        open::unregister(&self.inner);
        report
    }

    /// What is in host memory to the durable tiers, and what these have to where it outlives the process.
    fn last_flush(&self) -> FlushReport {
        let report = flush::flush(&self.inner, true);
        // Where no durable tier may be written to, the settings say that blocks are lost.
        let mut tiers = self.inner.durable_tiers();
        let may_write = tiers.any(|below| !below.settings.close_within.is_zero());
        if may_write && !report.durable {
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
                 {no_room}, no time for {late}, {failed} failed, and {no_tier} follow blocks that are on none",
                no_tier + no_room + late + failed
            );
        }
        report
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        self.end();
    }
}
