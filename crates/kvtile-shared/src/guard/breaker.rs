//! A breaker for one kind of call: after several failures in a row, or one call that is late, it
//! refuses calls for a time.

use std::{
    error::Error,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use kvtile_tiers::OperationHealth;

/// Failures in a row that open the breaker.
const FAILURES_MAX: u32 = 3;

/// The state of a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreBreakerState {
    /// Calls begin.
    Closed,
    /// Calls are refused until the pause ends.
    Open,
    /// The pause has ended; the next call is a trial.
    Trial,
}

impl StoreBreakerState {
    /// Its name: `closed`, `open` or `trial`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            StoreBreakerState::Closed => "closed",
            StoreBreakerState::Open => "open",
            StoreBreakerState::Trial => "trial",
        }
    }
}

/// A breaker. Times are those of the cache's clock.
#[derive(Debug)]
pub(crate) struct StoreBreaker {
    health: OperationHealth,
    failures: AtomicU32,
}

impl StoreBreaker {
    /// A closed breaker; `what` names the calls in the log.
    pub(crate) fn new(what: String) -> StoreBreaker {
        StoreBreaker {
            health: OperationHealth::new(what),
            failures: AtomicU32::new(0),
        }
    }

    /// Whether a call may begin. After a pause, one call is let through as a trial.
    pub(crate) fn allows(&self, now: Duration) -> bool {
        self.health.allows(now)
    }

    /// Whether calls are refused now, without counting as a trial.
    pub(crate) fn is_open(&self, now: Duration) -> bool {
        self.health.paused_until().is_some_and(|until| now < until)
    }

    /// Whether calls have failed and none has succeeded since.
    pub(crate) fn is_failing(&self) -> bool {
        self.health.paused_until().is_some()
    }

    /// Its state, without counting as a trial.
    pub(crate) fn state(&self, now: Duration) -> StoreBreakerState {
        match self.health.paused_until() {
            None => StoreBreakerState::Closed,
            Some(until) if now < until => StoreBreakerState::Open,
            Some(_) => StoreBreakerState::Trial,
        }
    }

    /// Counts blocks that a pause left out.
    pub(crate) fn left_out(&self, blocks: u64) {
        self.health.left_out(blocks);
    }

    /// A call succeeded.
    pub(crate) fn succeeded(&self, now: Duration) {
        self.failures.store(0, Ordering::Relaxed);
        self.health.succeeded(now);
    }

    /// A call failed.
    pub(crate) fn failed(&self, now: Duration, error: &dyn Error) {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        if failures >= FAILURES_MAX || self.health.paused_until().is_some() {
            self.health.failed(now, error);
        }
    }

    /// A call did not return in time.
    pub(crate) fn late(&self, now: Duration, error: &dyn Error) {
        self.health.failed(now, error);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{SharedStoreError, StoreOperation};

    #[test]
    fn three_failures_in_a_row_or_one_late_call_open_it() {
        let error = SharedStoreError::late(StoreOperation::Read);
        let breaker = StoreBreaker::new("reads".to_owned());
        let now = Duration::from_secs(5);
        breaker.failed(now, &error);
        breaker.failed(now, &error);
        breaker.succeeded(now);
        breaker.failed(now, &error);
        breaker.failed(now, &error);
        assert!(breaker.allows(now) && !breaker.is_open(now));
        breaker.failed(now, &error);
        assert!(!breaker.allows(now) && breaker.is_open(now));
        assert_eq!(breaker.state(now), StoreBreakerState::Open);
        let later = now + Duration::from_secs(2);
        assert_eq!(breaker.state(later), StoreBreakerState::Trial);
        assert!(breaker.allows(later), "one trial");
        assert!(!breaker.allows(later), "and no second one");
        breaker.succeeded(later);
        assert!(breaker.allows(later));
        assert_eq!(breaker.state(later), StoreBreakerState::Closed);
        breaker.late(later, &error);
        assert!(breaker.is_open(later));
    }
}
