//! The throughput of a tier, estimated from its recent transfers.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Weight of the newest measurement in the mean.
const WEIGHT: f64 = 0.2;

/// An exponentially weighted mean of bytes per second; unknown until the first measurement.
#[derive(Debug, Default)]
pub(crate) struct TierRate {
    /// Bits of an `f64`; 0 (which is 0.0) while unknown.
    bytes_per_second: AtomicU64,
}

impl TierRate {
    /// Adds a measurement: `bytes` took `time`.
    pub(crate) fn measured(&self, bytes: u64, time: Duration) {
        let seconds = time.as_secs_f64();
        if bytes == 0 || seconds <= 0.0 {
            return;
        }
        let now = bytes as f64 / seconds;
        let before = f64::from_bits(self.bytes_per_second.load(Ordering::Relaxed));
        let mean = if before > 0.0 {
            before + WEIGHT * (now - before)
        } else {
            now
        };
        // Two concurrent measurements may lose one of them; the mean tolerates that.
        self.bytes_per_second
            .store(mean.to_bits(), Ordering::Relaxed);
    }

    /// Bytes per second; `None` before the first measurement.
    pub(crate) fn bytes_per_second(&self) -> Option<f64> {
        let rate = f64::from_bits(self.bytes_per_second.load(Ordering::Relaxed));
        (rate > 0.0).then_some(rate)
    }
}

/// Whether reading KV from a tier takes no longer than computing it: `reading` against `tokens` at
/// `tokens_per_second`, a finite number above 0.
#[must_use]
pub fn reading_pays(reading: Duration, tokens: u64, tokens_per_second: f64) -> bool {
    reading.as_secs_f64() <= tokens as f64 / tokens_per_second
}
