//! The clock of a cache.

use std::time::{Duration, Instant};

/// The clock that a cache uses for deadlines, rates and times to live. A simulation supplies its
/// own.
pub trait Clock: Send + Sync {
    /// Time since a fixed starting point; never decreases.
    fn now(&self) -> Duration;
}

/// The machine's monotonic clock, starting at 0 when the value is created.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    start: Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        SystemClock {
            start: Instant::now(),
        }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }
}
