//! Whether one kind of operation of a tier works: its writes, or its syncs. After a failure the operation is
//! left alone for a while, longer with every failure, so that a full disk costs one attempt and one line of
//! the log now and then, not one for each block.
//!
//! It does not know what the operation does, nor which thread does it.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::error::TierError;

/// How long a tier is left alone after its first failure.
const DELAY_MIN: Duration = Duration::from_secs(1);

/// How long at most.
const DELAY_MAX: Duration = Duration::from_secs(60);

/// The health of one kind of operation.
#[derive(Debug)]
pub(super) struct Health {
    /// What it is, as the log names it.
    what: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Since when it fails.
    failing_since: Option<Duration>,
    /// When it is tried again.
    retry_at: Duration,
    delay: Duration,
    /// Whether a pause is over and the attempt after it has not ended.
    is_trying: bool,
    /// Attempts that failed since then.
    failed: u64,
    /// Blocks that were not even tried.
    left_out: u64,
}

impl Health {
    /// That of an operation that works.
    pub(super) fn new(what: String) -> Health {
        Health {
            what,
            state: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that holds the lock can leave it half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the operation may be tried now. One caller at a time learns that a pause is over.
    pub(super) fn allows(&self, now: Duration) -> bool {
        let mut state = self.lock();
        if state.failing_since.is_none() {
            return true;
        }
        if now < state.retry_at {
            return false;
        }
        state.retry_at = now.saturating_add(state.delay);
        state.is_trying = true;
        true
    }

    /// When the operation may be tried again; `None` where it does not fail.
    pub(super) fn paused_until(&self) -> Option<Duration> {
        let state = self.lock();
        state.failing_since.map(|_| state.retry_at)
    }

    /// Blocks were left out because the operation fails.
    pub(super) fn left_out(&self, blocks: u64) {
        self.lock().left_out += blocks;
    }

    /// An attempt failed: the operation is left alone from now on.
    pub(super) fn failed(&self, now: Duration, error: &TierError) {
        let mut state = self.lock();
        state.failed += 1;
        let is_first = state.failing_since.is_none();
        if !is_first && !std::mem::take(&mut state.is_trying) {
            // It had begun before the pause: it is counted, and the pause stays as it is.
            return;
        }
        state.delay = match is_first {
            true => DELAY_MIN,
            false => state.delay.saturating_mul(2).min(DELAY_MAX),
        };
        state.failing_since.get_or_insert(now);
        state.retry_at = now.saturating_add(state.delay);
        let State {
            delay,
            failed,
            left_out,
            ..
        } = *state;
        drop(state);
        let cause = cause_of(error);
        log::warn!(
            "{} fail: {error}{cause}; {failed} attempts failed and {left_out} blocks were left out so far; \
             the next attempt is in {} s",
            self.what,
            delay.as_secs()
        );
    }

    /// An attempt succeeded.
    pub(super) fn succeeded(&self, now: Duration) {
        let mut state = self.lock();
        let Some(since) = state.failing_since else {
            return;
        };
        let was = std::mem::take(&mut *state);
        drop(state);
        log::warn!(
            "{} work again after {:.1} s: {} attempts failed, and {} blocks were left out",
            self.what,
            now.saturating_sub(since).as_secs_f64(),
            was.failed,
            was.left_out
        );
    }
}

/// What the system said, behind an error's own text.
fn cause_of(error: &TierError) -> String {
    let source = std::error::Error::source(error);
    source.map_or(String::new(), |source| format!(": {source}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_operation_is_tried_once_a_pause_and_pauses_grow() {
        let health = Health::new("writes to the disk tier".to_owned());
        let seconds = Duration::from_secs;
        assert!(health.allows(seconds(0)) && health.paused_until().is_none());
        let mut now = seconds(5);
        let mut tries = 0;
        health.failed(now, &TierError::NotDurable);
        while now < seconds(605) {
            now += Duration::from_millis(10);
            if health.allows(now) {
                tries += 1;
                health.failed(now, &TierError::NotDurable);
            }
        }
        // 1, 2, 4, 8, 16 and 32 s are 63 s; the rest goes by minutes.
        assert_eq!(tries, 6 + (600 - 63) / 60);
        health.succeeded(now);
        assert!(health.allows(now) && health.paused_until().is_none());
    }

    #[test]
    fn failures_of_attempts_that_were_under_way_do_not_make_the_pause_longer() {
        let health = Health::new("writes to the disk tier".to_owned());
        let now = Duration::from_secs(1);
        health.failed(now, &TierError::NotDurable);
        health.failed(now + DELAY_MIN / 2, &TierError::NotDurable);
        assert_eq!(health.paused_until(), Some(now + DELAY_MIN));
    }
}
