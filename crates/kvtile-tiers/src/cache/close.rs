//! Closing: what is in host memory to the disk, then everything is given back.

use std::{thread, time::Duration};

use super::{Cache, FlushReport};

impl Cache {
    /// Closes the cache as dropping it does, and says what became of the blocks in host memory.
    ///
    /// Jobs that wait end as closed, those under way come to their end. With a disk tier, what is only in
    /// host memory is brought to it, within [`DiskSettings::close_within`](super::DiskSettings::close_within)
    /// and the time of one sync; with [`DiskWrites::AfterUses`](super::DiskWrites::AfterUses) only blocks with
    /// so many uses are. Then threads, host memory and the folder are given back, also while matches live:
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
        if let Some(disk) = &self.inner.disk {
            for _ in 0..disk.spill.close() {
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
        self.inner.unregister();
        report
    }

    /// What is in host memory to the disk, and what the disk has to its platter.
    fn last_flush(&self) -> FlushReport {
        let Some(disk) = &self.inner.disk else {
            return FlushReport::default();
        };
        let within = self.inner.settings.disk.as_ref();
        let within = within.map_or(Duration::ZERO, |disk| disk.close_within);
        if within.is_zero() {
            if disk.spill.is_dirty() {
                self.inner.sync_disk(disk);
            }
            return FlushReport::default();
        }
        let report = self.inner.flush(Some(within), true);
        if !report.durable {
            log::warn!(
                "of {} blocks in host memory {} are not on disk after the cache was closed: no room for {}, no time \
                 for {}, and {} failed",
                report.wanted,
                report.no_room + report.late + report.failed,
                report.no_room,
                report.late,
                report.failed
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
