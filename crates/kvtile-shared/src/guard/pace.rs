//! The measured speed of a store, and how many calls at a time it is given.
//!
//! A call of `n` bytes is expected to take `latency + n / throughput`. Both are means of recent
//! calls. The limit of calls in flight grows by one for every round of calls that took at most four
//! times the lowest expected time, and shrinks by a quarter when calls take longer, or fail.

use std::time::Duration;

use parking_lot::Mutex;

/// Weight of the newest measurement in the means.
const WEIGHT: f64 = 0.2;

/// Calls of at most this many bytes measure latency, larger ones throughput.
const SMALL_BYTES: u64 = 64 << 10;

/// A call that takes this many times the unloaded time is slow. With 2, a server that shared two
/// cores with its caller was given too few calls to be busy: it stored 41 to 83 % of what it stored
/// with 16 calls at a time, with 4 it stores 61 to 95 %.
const SLOW: f64 = 4.0;

/// The share of writes whose value the store has already, before the first write. A cache that looks prompts up before it
/// computes them writes present values only where two caches compute the same at the same time.
const PRESENT: f64 = 0.5;

/// How much slower the lowest times become with every call, so that they follow a store whose
/// latency has changed.
const FORGETTING: f64 = 1.005;

#[derive(Debug)]
struct PaceState {
    /// Seconds of a small call.
    latency: f64,
    bytes_per_second: f64,
    /// The lowest latency of late, in seconds.
    latency_min: f64,
    /// The highest throughput of late.
    bytes_per_second_max: f64,
    is_measured: bool,
    limit: f64,
    /// The share of recent writes whose value the store had already.
    present: f64,
}

/// The speed of one store.
#[derive(Debug)]
pub(crate) struct StorePace {
    state: Mutex<PaceState>,
    limit_max: usize,
}

impl StorePace {
    /// A store with these start values.
    pub(crate) fn new(latency: Duration, bytes_per_second: u64, limit_max: usize) -> StorePace {
        let limit_max = limit_max.max(1);
        let latency = latency.as_secs_f64().max(1e-6);
        let bytes_per_second = bytes_per_second.max(1) as f64;
        StorePace {
            state: Mutex::new(PaceState {
                latency,
                bytes_per_second,
                latency_min: latency,
                bytes_per_second_max: bytes_per_second,
                is_measured: false,
                limit: (limit_max as f64 / 2.0).max(1.0),
                present: PRESENT,
            }),
            limit_max,
        }
    }

    /// A call of `bytes` bytes succeeded after `time`.
    pub(crate) fn measured(&self, bytes: u64, time: Duration) {
        let time = time.as_secs_f64().max(1e-6);
        let mut state = self.state.lock();
        state.is_measured = true;
        state.latency_min *= FORGETTING;
        state.bytes_per_second_max /= FORGETTING;
        if bytes <= SMALL_BYTES {
            state.latency += WEIGHT * (time - state.latency);
            state.latency_min = state.latency_min.min(time);
        } else {
            // The latency may have been over-estimated: at least half of the time is transfer.
            let transfer = (time - state.latency_min).max(time / 2.0);
            let rate = bytes as f64 / transfer;
            state.bytes_per_second += WEIGHT * (rate - state.bytes_per_second);
            state.bytes_per_second_max = state.bytes_per_second_max.max(rate);
        }
        let unloaded = state.latency_min + bytes as f64 / state.bytes_per_second_max;
        state.limit = match time <= SLOW * unloaded {
            true => (state.limit + 1.0 / state.limit).min(self.limit_max as f64),
            false => shrunk(state.limit),
        };
    }

    /// A call failed, or was late.
    pub(crate) fn failed(&self) {
        let mut state = self.state.lock();
        state.limit = shrunk(state.limit);
    }

    /// The most calls at a time.
    pub(crate) fn limit(&self) -> usize {
        let limit = self.state.lock().limit;
        // At least 1, at most `limit_max`: the search avoids a cast.
        (1..=self.limit_max)
            .take_while(|calls| *calls as f64 <= limit + 1e-9)
            .last()
            .unwrap_or(1)
    }

    /// A write, or the query before it, found the value in the store or not.
    pub(crate) fn met(&self, is_present: bool) {
        let met = if is_present { 1.0 } else { 0.0 };
        let mut state = self.state.lock();
        state.present += WEIGHT * (met - state.present);
    }

    /// Whether a query before a write of `bytes` bytes saves time: the bytes that recent writes would not have had to
    /// send take longer than a call without any.
    pub(crate) fn is_query_worth(&self, bytes: u64) -> bool {
        let state = self.state.lock();
        state.present * bytes as f64 / state.bytes_per_second > state.latency
    }

    /// The expected time of `calls` reads of `bytes` bytes each; `None` before the first
    /// measurement.
    pub(crate) fn estimate(&self, calls: usize, bytes: u64) -> Option<Duration> {
        let at_once = self.limit();
        let state = self.state.lock();
        if !state.is_measured {
            return None;
        }
        let one = state.latency + bytes as f64 / state.bytes_per_second;
        let rounds = calls.div_ceil(at_once) as f64;
        Duration::try_from_secs_f64(one * rounds).ok()
    }
}

fn shrunk(limit: f64) -> f64 {
    (limit * 0.75).max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn the_limit_grows_while_calls_are_fast_and_shrinks_while_they_are_slow() {
        let pace = StorePace::new(ms(10), 100_000_000, 32);
        assert_eq!(pace.limit(), 16);
        for _ in 0..1000 {
            pace.measured(100, ms(10));
        }
        assert_eq!(pace.limit(), 32);
        for _ in 0..10 {
            pace.measured(100, ms(100));
        }
        assert!(pace.limit() < 4, "{}", pace.limit());
        for _ in 0..100 {
            pace.failed();
        }
        assert_eq!(pace.limit(), 1);
        // A store that has become slower for good is used again.
        for _ in 0..2000 {
            pace.measured(100, ms(100));
        }
        assert!(pace.limit() > 16, "{}", pace.limit());
    }

    #[test]
    fn a_query_is_worth_the_bytes_that_it_saves() {
        let pace = StorePace::new(ms(30), 90_000_000, 4);
        let large = 16 << 20;
        assert!(pace.is_query_worth(large) && !pace.is_query_worth(1 << 20));
        // New values make it useless, present ones useful.
        for _ in 0..100 {
            pace.met(false);
        }
        assert!(!pace.is_query_worth(5 << 30));
        pace.met(true);
        assert!(pace.is_query_worth(large) && !pace.is_query_worth(1 << 20));
        for _ in 0..100 {
            pace.met(true);
        }
        assert!(pace.is_query_worth(4 << 20) && !pace.is_query_worth(1 << 20));
        for _ in 0..100 {
            pace.measured(0, ms(1));
        }
        assert!(pace.is_query_worth(1 << 20) && !pace.is_query_worth(64 << 10));
    }

    #[test]
    fn an_estimate_is_latency_and_throughput_in_rounds() {
        let pace = StorePace::new(ms(50), 1_000, 4);
        assert_eq!(pace.estimate(1, 1), None);
        for _ in 0..200 {
            pace.measured(10, ms(20));
            pace.measured(8 << 20, ms(20 + 80));
        }
        let one = pace.estimate(1, 8 << 20).unwrap();
        assert!(one > ms(80) && one < ms(130), "{one:?}");
        assert_eq!(pace.limit(), 4);
        let eight = pace.estimate(8, 8 << 20).unwrap();
        assert!(eight > one && eight < one * 3, "{eight:?}");
        assert_eq!(pace.estimate(0, 1), Some(Duration::ZERO));
    }
}
