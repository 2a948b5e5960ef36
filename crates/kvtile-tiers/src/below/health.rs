//! The backoff of one kind of operation of a tier: its reads, its writes or its syncs. After a
//! failure its owner pauses the operation, longer with every failure. So a full disk costs one
//! attempt and one log line a pause, not one for each block.
//!
//! It does not know what the operation does, nor which thread does it.

use std::{error::Error, time::Duration};

use parking_lot::{Mutex, MutexGuard};

/// The pause after the first failure.
const DELAY_MIN: Duration = Duration::from_secs(1);

/// The longest pause.
const DELAY_MAX: Duration = Duration::from_secs(60);

/// The backoff of one kind of operation: after a failure it pauses, longer with every further
/// failure (1 s to 60 s). So a place that fails costs one attempt and one log line a pause.
#[derive(Debug)]
pub struct OperationHealth {
    /// The operation, as the log names it.
    what: String,
    state: Mutex<HealthState>,
}

#[derive(Debug, Default)]
struct HealthState {
    /// The time of the first failure since the last success.
    failing_since: Option<Duration>,
    /// The end of the pause.
    retry_at: Duration,
    delay: Duration,
    /// Whether a pause has ended and the attempt after it is in flight.
    is_trying: bool,
    /// Failed attempts since the first failure.
    failed: u64,
    /// Blocks skipped during pauses.
    left_out: u64,
}

impl OperationHealth {
    /// An operation without failures; `what` names it in the log.
    #[must_use]
    pub fn new(what: String) -> OperationHealth {
        OperationHealth {
            what,
            state: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HealthState> {
        self.state.lock()
    }

    /// Whether the operation may be tried now. After a pause only one caller gets true until the
    /// delay has passed again.
    pub fn allows(&self, now: Duration) -> bool {
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

    /// The end of the pause; `None` if the operation does not fail.
    #[must_use]
    pub fn paused_until(&self) -> Option<Duration> {
        let state = self.lock();
        state.failing_since.map(|_| state.retry_at)
    }

    /// Counts blocks skipped during a pause.
    pub fn left_out(&self, blocks: u64) {
        self.lock().left_out += blocks;
    }

    /// Records a failed attempt: the operation pauses.
    pub fn failed(&self, now: Duration, error: &dyn Error) {
        let mut state = self.lock();
        state.failed += 1;
        let is_first = state.failing_since.is_none();
        if !is_first && !std::mem::take(&mut state.is_trying) {
            // The attempt began before the pause: it is counted and does not extend the pause.
            return;
        }
        state.delay = match is_first {
            true => DELAY_MIN,
            false => state.delay.saturating_mul(2).min(DELAY_MAX),
        };
        state.failing_since.get_or_insert(now);
        state.retry_at = now.saturating_add(state.delay);
        let HealthState {
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

    /// Records a successful attempt: the pause ends.
    pub fn succeeded(&self, now: Duration) {
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

/// The system's error, to append to the text of an error.
fn cause_of(error: &dyn Error) -> String {
    let source = error.source();
    source.map_or(String::new(), |source| format!(": {source}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FolderError, TierError};

    #[test]
    fn a_failing_operation_is_tried_once_a_pause_and_pauses_grow() {
        let health = OperationHealth::new("writes to the disk tier".to_owned());
        let seconds = Duration::from_secs;
        assert!(health.allows(seconds(0)) && health.paused_until().is_none());
        let mut now = seconds(5);
        let mut tries = 0;
        health.failed(now, &TierError::Folder(FolderError::NotDurable));
        while now < seconds(605) {
            now += Duration::from_millis(10);
            if health.allows(now) {
                tries += 1;
                health.failed(now, &TierError::Folder(FolderError::NotDurable));
            }
        }
        // 1, 2, 4, 8, 16 and 32 s are 63 s; every later pause is 60 s.
        assert_eq!(tries, 6 + (600 - 63) / 60);
        health.succeeded(now);
        assert!(health.allows(now) && health.paused_until().is_none());
    }

    #[test]
    fn failures_of_attempts_that_were_under_way_do_not_make_the_pause_longer() {
        let health = OperationHealth::new("writes to the disk tier".to_owned());
        let now = Duration::from_secs(1);
        health.failed(now, &TierError::Folder(FolderError::NotDurable));
        health.failed(
            now + DELAY_MIN / 2,
            &TierError::Folder(FolderError::NotDurable),
        );
        assert_eq!(health.paused_until(), Some(now + DELAY_MIN));
    }
}
