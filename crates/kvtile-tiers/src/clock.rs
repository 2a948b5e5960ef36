//! What time it is for a cache.

use std::time::{Duration, Instant};

/// The clock that a cache goes by: deadlines, rates and times to live. A simulation brings its own.
pub trait Clock: Send + Sync {
    /// Time since any start that does not change; never goes back.
    fn now(&self) -> Duration;
}

/// The machine's monotonic clock, from the moment of its making.
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
